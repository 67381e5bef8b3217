"""top and schedule against a server with canned answers; watching, on a terminal of its own."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from canned import CannedServer
from typer.testing import CliRunner

from tenfold.cli import top_view as view
from tenfold.cli.main import app
from tenfold.cli.output import make_table

runner = CliRunner()
MODEL = {"name": "m", "state": "ready", "device": "cpu:0", "devices": ["cpu:0"], "pinned": True}
MODEL |= {"generated_tokens": 77}
PART = {"name": "m", "weight_pages": 50, "kv_pages": 30, "cached_pages": 20, "running": 2}
PART |= {"waiting": 1, "residency": "resident", "held": False}
DEVICE = {"name": "cpu:0", "page_bytes": 2 << 20, "capacity_pages": 512, "mapped_pages": 128}
DEVICE |= {"scratch_pages": 4, "rounds": 9, "jain": 0.9876, "reserved_pages": 6, "models": [PART]}
PLACE = {"request_id": "r1", "client": "ann", "prompt_tokens": 40, "matched_tokens": 32}
PLACE |= {"waited": 1.25, "why": "32 of 40 prompt tokens are cached"}
WHY = {"device": "cpu:0", "model": "m", "policy": "dlpm", "waiting": 3, "chosen": [PLACE]}
WHY |= {"next": [{**PLACE, "request_id": "r2"}]}


def client(name: str, **fields: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {"service": 0.0, "share": None, "fair": None, "credit": None}
    nothing |= {"drift": 0.0, "hit_rate": None, "waiting": 0, "running": 0, "oldest_wait": 0.0}
    return {"name": name, **nothing, **fields}


CLIENTS = [
    client("idle", service=9e6),
    client("ann", share=0.25, fair=0.5, waiting=3, oldest_wait=130.0, credit=-1234.5, drift=-0.14),
    client("bob", share=0.75, fair=0.5, running=2, hit_rate=0.9, service=12345.6),
]
STATUS = {"version": "1", "ready": True, "draining": False, "now": 5.0, "uptime": 7500.0}
STATUS |= {"models": [MODEL], "devices": [DEVICE], "queue": [{}], "clients": CLIENTS}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CannedServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = CannedServer(
        {
            "GET /v1/status": (200, STATUS),
            "GET /v1/admin/schedule?most=20": (200, {"object": "list", "data": [WHY]}),
            "GET /v1/admin/schedule?most=2&model=a%2Fb": (200, {"object": "list", "data": []}),
        }
    )
    monkeypatch.setenv("TENFOLD_URL", made.url)
    yield made
    made.close()


def test_once(server: CannedServer) -> None:
    shown = runner.invoke(app, ["top", "--once", "--every", "0.1", "--key", "k"])
    assert shown.exit_code == 0
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert lines[0] == "Tenfold 1, ready, up 2 h 5 min, 1 live request"
    assert "cpu:0 128 512 4 25 % 1.0 GiB 9 0.988" in lines
    drawn = "███▓▒".ljust(32, "·")
    assert f"cpu:0 {drawn} 6 ready 50 30 20" in lines
    assert f"m {drawn} awake (pinned) 50 30 20 - 2/1 -" in lines
    assert lines[-1] == " ".join(view.LEGEND.split())
    assert lines[-5:-2] == [
        "bob 75 % 50 % 12,346 - 0 % 90 % 2/0 -",
        "ann 25 % 50 % 0 -1,234 -14 % - 0/3 2 min",
        "idle - - 9,000,000 - 0 % - 0/0 -",
    ]
    assert [call[2]["authorization"] for call in server.asked] == ["Bearer k", "Bearer k"]
    assert runner.invoke(app, ["top", "--every", "0.1"]).stdout == shown.stdout


def test_json(server: CannedServer) -> None:
    found = json.loads(runner.invoke(app, ["top", "--json", "--every", "0.1"]).stdout)
    assert [row["name"] for row in found["clients"]] == ["bob", "ann", "idle"]
    assert found["models"][0]["tokens_per_second"] is None
    assert found["devices"] == [{**DEVICE, "models": [{**PART, "pages_moved": 0}]}]


def test_speeds_are_between_two_looks() -> None:
    later = {
        **STATUS,
        "now": 7.0,
        "models": [{**MODEL, "generated_tokens": 97}, {**MODEL, "name": "x"}],
    }
    assert view.speeds(STATUS, later) == {"m": 10.0}
    anew = {**later, "models": [{**MODEL, "generated_tokens": 3}]}
    assert view.speeds(STATUS, anew) == {"m": 0.0}
    assert view.as_data(STATUS, later)["models"][1]["tokens_per_second"] is None


def test_bars_are_of_the_capacity() -> None:
    def bar(weights: int, kv: int, cached: int, ready: int = 0) -> str:
        pages = {"weight_pages": weights, "kv_pages": kv, "cached_pages": cached}
        return view.bar(pages, 100, 10, ready)

    assert bar(30, 40, 10, 20) == "███▓▓▓▒░░·"
    assert bar(0, 0, 0) == "··········" and view.bar(PART, 0, 4) == "····"
    assert bar(100, 50, 0) == "██████████"
    assert bar(14, 14, 0) == "█▓▓·······"  # ends are rounded, not parts


def test_what_moved_is_between_two_looks() -> None:
    parts = [{**PART, "kv_pages": 12}, {**PART, "name": "new"}]
    later = {**STATUS, "devices": [{**DEVICE, "models": parts}]}
    moved = view.movement(STATUS, later)
    assert moved == {("cpu:0", "m"): -18, ("cpu:0", "new"): 80}
    rows = view.memory(later, moved, {}, 8).rows
    assert [row[6] for row in rows] == ["", "-18", "+80"]
    away = {**STATUS, "models": [{**MODEL, "devices": [], "state": "loading"}]}
    assert view.memory(away, {}, {}, 8).rows[-1][:3] == ("  m", "", "loading")


def test_a_small_screen_says_what_it_leaves_out() -> None:
    crowd = {**STATUS, "clients": [client(f"c{n:02}", share=0.02) for n in range(50)]}
    rows = view.clients(crowd, 4).rows
    assert [row[0] for row in rows] == ["c00", "c01", "c02", "and 47 more"]
    assert len({len(row) for row in rows}) == 1
    assert len(view.clients(crowd).rows) == 50


def test_long_names_give_way_to_numbers() -> None:
    from rich.console import Console

    long = {**STATUS, "clients": [{**CLIENTS[2], "name": "n" * 60}]}
    console = Console(width=80)
    with console.capture() as seen:
        console.print(make_table(*view.clients(long), width=80))
    header, row = seen.get().splitlines()
    assert header.split()[-1] == "oldest"
    assert "…" in row and "12,346" in row and row.startswith("nnnnnnnn")


def test_watching_ends_with_q(server: CannedServer) -> None:
    """A terminal of its own: drawn until the key comes, which is not echoed."""
    ours, theirs = pty.openpty()
    program = [sys.executable, "-m", "tenfold.cli.main", "top", "--every", "0.1"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen = b""
    while b"bob" not in seen:
        seen += os.read(ours, 65536)
    server.answers["GET /v1/status"] = (503, {"error": {"message": "gone", "code": "unavailable"}})
    while b"gone" not in seen:
        seen += os.read(ours, 65536)
    os.write(ours, b"q")
    try:
        while more := os.read(ours, 65536):
            seen += more
    except OSError:
        pass  # the other end is closed
    assert process.wait(timeout=20) == 0
    os.close(ours)
    assert b"Traceback" not in seen


def test_schedule(server: CannedServer) -> None:
    shown = runner.invoke(app, ["schedule", "--key", "root"])
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert lines[0] == "m on cpu:0: dlpm, 3 waiting, the first 1 shown"
    assert "r2 ann 40 32 1.2 s 32 of 40 prompt tokens are cached" in lines
    assert lines.index("Next:") < lines.index("Chosen last:")
    assert server.asked[0][2]["authorization"] == "Bearer root"
    assert json.loads(runner.invoke(app, ["schedule", "--json"]).stdout) == [WHY]


def test_schedule_of_one_model(server: CannedServer) -> None:
    shown = runner.invoke(app, ["schedule", "a/b", "--most", "2"])
    assert (shown.exit_code, shown.stdout[:8]) == (0, "No model")


def test_no_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for words in (["top", "--once"], ["schedule"]):
        shown = runner.invoke(app, [*words, "--url", "http://127.0.0.1:9"])
        assert (shown.exit_code, shown.stderr.count("\n")) == (1, 1)
