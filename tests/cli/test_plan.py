"""``tenfold plan`` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.tiny import make_tiny
from tenfold.cli.main import app

runner = CliRunner()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny("llama", tmp_path / "tiny")


def test_a_table_and_json(model: Path) -> None:
    asked = ["plan", f"a={model}", f"b={model}", "--devices", "2x8MiB", "--policy", "balanced"]
    shown = runner.invoke(app, [*asked, "--rate", "a=100", "--read-speed", "1MiB"])
    assert shown.exit_code == 0, shown.output
    assert "awake weights" in shown.stdout and "Placement: balanced." in shown.stdout
    assert "1.0 MiB/s (as given)" in shown.stdout
    body = json.loads(runner.invoke(app, [*asked, "--json"]).stdout)
    assert [one["state"] for one in body["models"]] == ["awake", "awake"]
    assert {one["name"] for one in body["devices"]} == {"cpu:0", "cpu:1"}
    assert body["models"][0]["devices"] != body["models"][1]["devices"]


def test_one_that_fits_nowhere_is_an_error(tmp_path: Path) -> None:
    wide = make_tiny("llama", tmp_path / "wide", vocab_size=304, intermediate_size=8192)
    shown = runner.invoke(app, ["plan", f"a={wide}", "--devices", "6MiB"])
    assert shown.exit_code == 1
    assert "too large" in shown.stdout and "a needs" in shown.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rate", "b=1"], "a rate is given for 'b'"),
        (["--rate", "a"], "must be written MODEL=TOKENS"),
        (["--rate", "a=-1"], "must be written MODEL=TOKENS"),
        (["--devices", "nx2"], "write one like 2x8GiB"),
        (["--read-speed", "0"], "a read speed of 0"),
        (["--measure", "--read-speed", "1GiB"], "give one of them"),
        (["--policy", "best"], "placement.policy"),
    ],
)
def test_what_is_wrong_is_named(model: Path, options: list[str], said: str) -> None:
    shown = runner.invoke(app, ["plan", f"a={model}", *options])
    assert shown.exit_code == 2 and said in shown.stderr


def test_it_imports_no_torch(model: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from tenfold.cli.main import app;"
        f"r = CliRunner().invoke(app, ['plan', {str(model)!r}, '--devices', '1GiB']);"
        "assert r.exit_code == 0, r.output; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
