"""ps, load and unload against a server with canned answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from canned import CannedServer
from typer.testing import CliRunner

from tenfold.cli.main import app

runner = CliRunner()
MODEL = {"name": "m", "state": "ready", "device": "cpu:0", "pinned": True, "running": 2}
MODEL |= {"waiting": 1, "weight_pages": 50, "kv_pages": 3, "generated_tokens": 77}
MODEL |= {"devices": ["cpu:0", "cpu:1"], "residency": {"cpu:0": "resident", "cpu:1": "host"}}
MODEL |= {"held": False, "idle_seconds": 3.0, "sleeps_in": 30.0}
SLEEPER = {**MODEL, "name": "s", "residency": {"cpu:0": "cold"}, "held": True, "pinned": False}
SLEEPER |= {"running": 0, "waiting": 0, "idle_seconds": 200.0, "weight_pages": 0}
IDLER = {**SLEEPER, "name": "i", "residency": {"cpu:0": "resident"}, "held": False}
DEVICE = {"name": "cpu:0", "page_bytes": 2 << 20, "capacity_pages": 512, "mapped_pages": 53}
STATUS = {
    "ready": True,
    "draining": False,
    "models": [MODEL, SLEEPER, IDLER],
    "devices": [DEVICE],
    "queue": [{}],
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CannedServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = CannedServer(
        {
            "GET /v1/status": (200, STATUS),
            "POST /v1/admin/models/m/load": (200, {"id": "m", "status": "ready", "device": "c"}),
            "POST /v1/admin/models/m/pin": (200, {"id": "m", "status": "ready", "device": "c"}),
            "POST /v1/admin/models/m/unload": (200, {"id": "m", "unloaded": True}),
            "POST /v1/admin/models/other/unload": (
                409,
                {"error": {"message": "other is pinned", "code": "conflict"}},
            ),
        }
    )
    monkeypatch.setenv("TENFOLD_URL", made.url)
    yield made
    made.close()


def test_ps(server: CannedServer) -> None:
    shown = runner.invoke(app, ["ps"]).stdout
    for words in (
        "awake on 1 of 2 (pinned)",
        "asleep (disk) (held)",
        "cpu:0, cpu:1",
        "100.0 MiB",
        "6.0 MiB",
        "77",
        "106.0 MiB of 1.0 GiB mapped",
    ):
        assert words in shown
    assert "1 live request; ready" in shown
    times = [line.split()[-4:] for line in shown.splitlines()[1:4]]
    assert [row[-2:] for row in times] == [["-", "-"], ["min", "-"], ["30.0", "s"]]
    assert json.loads(runner.invoke(app, ["ps", "--json"]).stdout) == STATUS


def test_load_tells_source_and_key(server: CannedServer, tmp_path: Path) -> None:
    shown = runner.invoke(app, ["load", "m=hf:org/repo", "--pin", "--key", "root"])
    assert shown.exit_code == 0
    assert shown.stderr == "m is ready on c.\n"
    method, path, headers, body = server.asked[0]
    assert (method, path) == ("POST", "/v1/admin/models/m/load")
    assert headers["authorization"] == "Bearer root"
    assert body == {"source": "hf:org/repo"}
    assert server.asked[1][3] == {"pinned": True}


def test_load_makes_paths_absolute(
    server: CannedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert runner.invoke(app, ["load", "m.gguf"]).exit_code == 0
    assert server.asked[0][3] == {"source": str(tmp_path / "m.gguf")}


def test_unload_and_what_the_server_refuses(server: CannedServer) -> None:
    shown = runner.invoke(app, ["unload", "m", "--force", "--json"])
    assert json.loads(shown.stdout) == {"id": "m", "unloaded": True}
    assert server.asked[0][3] == {"force": True}
    refused = runner.invoke(app, ["unload", "other"])
    assert refused.exit_code == 1
    assert refused.stderr == "Error: other is pinned\n"


def test_no_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for words in (["ps"], ["load", "m"], ["unload", "m"]):
        shown = runner.invoke(app, [*words, "--url", "http://127.0.0.1:9"])
        assert shown.exit_code == 1
        assert "start one with: tenfold serve" in shown.stderr
        assert shown.stderr.count("\n") == 1


def test_something_that_is_no_tenfold(server: CannedServer) -> None:
    server.answers["GET /v1/status"] = (502, "a page")
    assert "status 502" in runner.invoke(app, ["ps"]).stderr
