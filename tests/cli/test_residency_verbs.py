"""sleep, wake, pin, limit, keep and why against a server with canned answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from canned import CannedServer
from typer.testing import CliRunner

from tenfold.cli.main import app

runner = CliRunner()
MODEL = {"id": "a/b", "status": "ready", "residency": {"cpu:0": "host"}, "held": False}
MODEL |= {"pinned": False, "ttl": None, "floor_bytes": 0, "limit_bytes": None, "evict_cost": 1.0}
FULL = {**MODEL, "residency": {"cpu:0": "resident", "cpu:1": "cold"}, "held": True, "pinned": True}
FULL |= {"ttl": 300.0, "floor_bytes": 1 << 30, "limit_bytes": 2 << 30, "evict_cost": 2.5}
WAKE = {"device": "cpu:0", "kind": "wake", "model": "a/b", "why": "2 requests wait"}
WAKE |= {"age": 2.0, "pages": 40, "seconds": 0.125}
RUNG = {"device": "cpu:0", "kind": "reserved", "model": "", "why": "a/b wants 12 pages"}
RUNG |= {"age": 130.0, "pages": 0, "seconds": 0.0}
PATH = "/v1/admin/models/a/b"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CannedServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    answers: dict[str, Any] = {
        f"POST {PATH}/{action}": (200, MODEL) for action in ("sleep", "wake", "pin", "limit")
    }
    answers[f"PATCH {PATH}/residency"] = (200, FULL)
    log = "GET /v1/admin/decisions?most="
    answers[log + "20&limits=false"] = (200, {"data": [WAKE, RUNG]})
    answers[log + "3&limits=true&model=a%2Fb"] = (200, {"data": []})
    answers["POST /v1/admin/models/x/sleep"] = (
        409,
        {"error": {"message": "x is pinned", "code": "conflict"}},
    )
    made = CannedServer(answers)
    monkeypatch.setenv("TENFOLD_URL", made.url)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        ("sleep a/b", {"to": "host", "force": False, "hold": False}),
        ("sleep a/b --cold --force --hold", {"to": "cold", "force": True, "hold": True}),
        ("wake a/b", {}),
        ("pin a/b", {"pinned": True}),
        ("pin a/b --off", {"pinned": False}),
        ("limit a/b 512MiB", {"limit": 512 << 20}),
        ("limit a/b none", {"limit": None}),
        (
            "keep a/b --ttl 1h30m --floor 1GiB --evict-cost 2.5",
            {"ttl": 5400.0, "floor": 1 << 30, "evict_cost": 2.5},
        ),
        ("keep a/b --ttl none --floor none", {"ttl": None, "floor": None}),
    ],
)
def test_what_is_sent(server: CannedServer, words: str, sent: dict[str, Any]) -> None:
    shown = runner.invoke(app, [*words.split(), "--key", "root"])
    assert shown.exit_code == 0 and shown.stdout == ""
    method, path, headers, body = server.asked[0]
    verb = words.split()[0]
    if verb == "keep":
        assert (method, path) == ("PATCH", f"{PATH}/residency")
        assert shown.stderr == (
            "a/b is awake on cpu:0, asleep (disk) on cpu:1; held until tenfold wake; pinned; "
            "KV limit 2.0 GiB; KV floor 1.0 GiB; sleeps 5 min after its last request; "
            "evict cost 2.5.\n"
        )
    else:
        assert (method, path) == ("POST", f"{PATH}/{verb}")
        assert shown.stderr == "a/b is asleep (host) on cpu:0.\n"
    assert (headers["authorization"], body) == ("Bearer root", sent)
    as_json = runner.invoke(app, [*words.split(), "--json"])
    assert json.loads(as_json.stdout) == (FULL if verb == "keep" else MODEL)


def test_what_is_wrong_never_leaves(server: CannedServer) -> None:
    for words, said in (
        ("limit a/b lots", "is not a size"),
        ("keep a/b --ttl soon", "no span of time"),
        ("keep a/b", "nothing to change"),
    ):
        shown = runner.invoke(app, words.split())
        assert shown.exit_code == 2 and said in shown.stderr and shown.stderr.count("\n") == 1
    assert server.asked == []
    refused = runner.invoke(app, ["sleep", "x"])
    assert (refused.exit_code, refused.stderr) == (1, "Error: x is pinned\n")


def test_why(server: CannedServer) -> None:
    lines = [" ".join(line.split()) for line in runner.invoke(app, ["why"]).stdout.splitlines()]
    assert lines == [
        "ago device decision model pages took why",
        "2 min cpu:0 reserved - - - a/b wants 12 pages",
        "2.0 s cpu:0 wake a/b 40 125 ms 2 requests wait",
    ]
    assert json.loads(runner.invoke(app, ["why", "--json"]).stdout) == [WAKE, RUNG]
    shown = runner.invoke(app, ["why", "a/b", "--most", "3", "--limits"])
    assert (shown.exit_code, shown.stdout[:9]) == (0, "No memory")
