"""The program as a whole: it starts fast, and errors are lines with exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tenfold.cli import main
from tenfold.core.errors import ConfigError, TenfoldError

runner = CliRunner()
VERBS = (
    "serve",
    "chat",
    "pull",
    "models",
    "ps",
    "top",
    "schedule",
    "load",
    "unload",
    "sleep",
    "wake",
    "pin",
    "limit",
    "keep",
    "why",
    "clients",
    "bench",
    "doctor",
)


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys, tenfold.cli.main; "
        "heavy = 'torch numpy pydantic fastapi httpx uvicorn rich huggingface_hub gguf'.split(); "
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_names_every_verb() -> None:
    shown = runner.invoke(main.app, ["--help"])
    assert shown.exit_code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in shown.stdout
        assert runner.invoke(main.app, [verb, "--help"]).exit_code == 0


def test_version() -> None:
    assert runner.invoke(main.app, ["--version"]).stdout == "tenfold 0.1.0\n"


def test_errors_are_one_line_on_stderr_with_their_exit_code(tmp_path: Path) -> None:
    shown = runner.invoke(main.app, ["models", "list", "-c", str(tmp_path / "absent.toml")])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert shown.stderr.startswith("Error: cannot read the config file")
    assert shown.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    shown = runner.invoke(main.app, ["--debug", "models", "list", "-c", str(tmp_path / "none")])
    assert isinstance(shown.exception, ConfigError)


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (TenfoldError("it broke"), 1, "Error: it broke\n"),
        (ConfigError("bad key"), 2, "Error: bad key\n"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("x\ny"), 1, "Error: a bug in Tenfold: ZeroDivisionError: x y"),
    ],
)
def test_how_every_failure_ends(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise raised

    monkeypatch.setattr("tenfold.core.config.load_config", fail)
    monkeypatch.setattr("sys.argv", ["tenfold", "models", "list"])
    with pytest.raises(SystemExit) as left:
        main.run()
    assert left.value.code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(words)
    assert "Traceback" not in captured.err


def test_other_systems_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(SystemExit) as left:
        main.run()
    assert left.value.code == 2
    assert "WSL" in capsys.readouterr().err


def test_bench_is_handed_on() -> None:
    shown = runner.invoke(main.app, ["bench", "--help"])
    assert shown.exit_code == 0
    assert "serve" in shown.stdout
    wrong = runner.invoke(main.app, ["bench", "serve", "m", "--arrivals", "never"])
    assert wrong.exit_code == 2
    assert "--arrivals" in wrong.stderr
    assert runner.invoke(main.app, ["bench", "nonsense"]).exit_code == 2
