"""serve: which models, which settings, which line. Serving itself is tested with the server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tenfold.cli import serve
from tenfold.cli.main import app
from tenfold.core.config import LoadedConfig, load_config

runner = CliRunner()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[LoadedConfig]:
    """What would be served, without fetching or starting anything."""
    seen: list[LoadedConfig] = []
    monkeypatch.setattr(serve, "fetch_all", lambda loaded, accept: None)
    monkeypatch.setattr(serve, "_run", seen.append)
    return seen


def test_without_arguments_the_default_model_is_served(started: list[LoadedConfig]) -> None:
    assert runner.invoke(app, ["serve"]).exit_code == 0
    assert [model.source for model in started[0].to_models()] == ["smollm2-135m"]


def test_flags_file_and_settings(started: list[LoadedConfig], tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text('[server]\nport = 1\n[[models]]\nname = "a"\nsource = "smollm2-135m"\n')
    words = ["serve", "-c", str(path), "--host", "::1", "--set", "server.drain_seconds=3"]
    runner.invoke(app, words)
    server = started[0].config.server
    assert (server.host, server.port, server.drain_seconds) == ("::1", 1, 3.0)
    assert [model.name for model in started[0].to_models()] == ["a"]
    runner.invoke(app, [*words, "b=hf:o/r", "smollm2-135m", "--port", "7", "--exact"])
    assert [model.name for model in started[1].to_models()] == ["b", "smollm2-135m"]
    assert started[1].config.server.port == 7
    assert started[1].to_device_settings().kernels_mode == "exact"


def test_a_wrong_setting_is_one_line(started: list[LoadedConfig]) -> None:
    shown = runner.invoke(app, ["serve", "--set", "server.prot=1"])
    assert shown.exit_code == 2
    assert "did you mean server.port" in shown.stderr
    assert not started


def test_a_model_that_is_nowhere_ends_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TENFOLD_HOME", str(tmp_path))
    monkeypatch.setattr(serve, "_run", lambda loaded: pytest.fail("started"))
    for model in ("/no/such.gguf", "smolm2-135m"):
        assert runner.invoke(app, ["serve", model]).exit_code == 2


def test_the_defaults_are_the_servers_own() -> None:
    from tenfold.server.settings import ServerSettings

    assert serve.server_settings(load_config(env={})) == ServerSettings()


def test_every_server_setting_comes_from_the_config() -> None:
    from tenfold.server.settings import ServerSettings

    changed: dict[str, Any] = {
        "server.admin_key": "a",
        "server.cors": '["*"]',
        "server.max_body": "1MiB",
        "server.body_seconds": 1,
        "server.ping_seconds": 2,
        "server.request_timeout": 3,
        "server.max_choices": 4,
        "server.log_format": "json",
        "server.drain_grace": 5,
        "metrics.compat": "vllm",
        "metrics.public": "false",
        "metrics.max_clients": 6,
    }
    loaded = load_config(env={}, overrides=[f"{key}={value}" for key, value in changed.items()])
    settings, default = serve.server_settings(loaded), ServerSettings()
    same = [
        name
        for name in ServerSettings.__dataclass_fields__
        if getattr(settings, name) == getattr(default, name)
    ]
    assert same == []


def test_the_ready_line() -> None:
    line = serve.ready_line("127.0.0.1", 8000, "a, b")
    assert line == "Tenfold is ready at http://127.0.0.1:8000 (models: a, b)"
    for host in ("0.0.0.0", "::1", "::", "box.example"):
        shown = serve.ready_line(host, 1, "m")
        assert re.search(r"http://(127\.0\.0\.1|\[::1\]|box\.example):1 ", shown)
