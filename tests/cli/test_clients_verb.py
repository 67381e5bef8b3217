"""clients: what each verb asks of a server, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from canned import CannedServer
from typer.testing import CliRunner

from tenfold.cli.main import app

runner = CliRunner()
ADMIN = "/v1/admin"

GROUP: dict[str, Any] = {"name": "lab", "source": "config", "live": ["weight"], "weight": 2.0}
GROUP |= {"group": "", "requests_per_minute": 60, "tokens_per_minute": None, "max_concurrent": None}
KEYS = [
    {"id": "file-1", "created": None, "ends": 1e9},
    {"id": "key-1f", "created": 1e9, "ends": None},
]
ANN: dict[str, Any] = {**GROUP, "name": "ann", "group": "lab", "max_requests": None}
ANN |= {"max_tokens": None, "isolate": True, "disabled": False, "keys": KEYS}
MADE = {**ANN, "key": "tf-secret", "note": "It is closed now."}
GONE = {"name": "x", "deleted": True}
IN_USE = {"error": {"message": "ann is in the group 'lab'", "code": "conflict"}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CannedServer]:
    listed = {"object": "list", "keys_required": False, "data": [ANN]}
    made = CannedServer(
        {
            f"GET {ADMIN}/clients": (200, listed),
            f"POST {ADMIN}/clients": (200, MADE),
            f"GET {ADMIN}/clients/ann": (200, ANN),
            f"PATCH {ADMIN}/clients/ann": (200, ANN),
            f"DELETE {ADMIN}/clients/ann": (200, GONE),
            f"POST {ADMIN}/clients/ann/rotate": (200, {**MADE, "note": ""}),
            f"DELETE {ADMIN}/clients/ann/keys/key-1f": (200, ANN),
            f"GET {ADMIN}/groups": (200, {"object": "list", "data": [GROUP]}),
            f"POST {ADMIN}/groups": (200, GROUP),
            f"GET {ADMIN}/groups/lab": (200, GROUP),
            f"PATCH {ADMIN}/groups/lab": (200, GROUP),
            f"DELETE {ADMIN}/groups/lab": (409, IN_USE),
        }
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TENFOLD_URL", made.url)
    monkeypatch.setenv("TENFOLD_ADMIN_KEY", "root")
    yield made
    made.close()


def run(*words: str, code: int = 0) -> Any:
    shown = runner.invoke(app, ["clients", *words])
    assert shown.exit_code == code, shown.output
    return shown


def asked(server: CannedServer) -> tuple[str, str, Any]:
    method, path, headers, body = server.asked[-1]
    assert headers["authorization"] == "Bearer root"
    return method, path.removeprefix(ADMIN), body


def test_list_and_show(server: CannedServer) -> None:
    shown = run("list")
    header, line = shown.stdout.splitlines()
    assert header.split()[:4] == ["name", "group", "weight", "requests/min"]
    assert line.split() == ["ann", "lab", "2", "60", "-", "-", "2", "isolate"]
    assert "This server is open" in shown.stderr
    assert json.loads(run("list", "--json").stdout)["data"] == [ANN]
    shown = run("show", "ann").stdout
    assert "weight               2.0 (set live, over the config file)" in shown
    assert "isolate              true\n" in shown
    assert "file-1  config file" in shown and "key-1f  2001-09-0" in shown
    assert json.loads(run("show", "ann", "--json").stdout) == ANN


def test_add_prints_the_key_alone(server: CannedServer) -> None:
    shown = run(
        *("add", "ann", "--weight", "2", "--group", "lab", "--requests-per-minute", "60"),
        *("--tokens-per-minute", "9", "--max-concurrent", "8", "--max-requests", "7"),
        *("--max-tokens", "6", "--isolate"),
    )
    assert shown.stdout == "tf-secret\n"
    assert shown.stderr.startswith("It is closed now.\n")
    body = {"name": "ann", "weight": 2.0, "group": "lab", "requests_per_minute": 60}
    body |= {"tokens_per_minute": 9, "max_concurrent": 8, "max_requests": 7, "max_tokens": 6}
    assert asked(server) == ("POST", "/clients", {**body, "isolate": True})
    assert json.loads(run("add", "ann", "--json").stdout)["key"] == "tf-secret"
    assert asked(server) == ("POST", "/clients", {"name": "ann"})


def test_set_sends_what_is_given(server: CannedServer) -> None:
    run("set", "ann", "--weight", "3", "--disable", "--no-isolate", "--group", "")
    body: dict[str, Any] = {"weight": 3.0, "disabled": True, "isolate": False, "group": ""}
    assert asked(server) == ("PATCH", "/clients/ann", body)
    run("set", "ann", "--enable", "--reset", "weight", "--reset", "requests-per-minute", "--json")
    body = {"disabled": False, "weight": None, "requests_per_minute": None}
    assert asked(server) == ("PATCH", "/clients/ann", body)
    count = len(server.asked)
    assert "nothing to change" in run("set", "ann", code=2).stderr
    words = ("set", "ann", "--weight", "1", "--reset", "weight")
    assert "weight is set and reset" in run(*words, code=2).stderr
    assert len(server.asked) == count


def test_keys(server: CannedServer) -> None:
    assert run("rotate", "ann").stdout == "tf-secret\n"
    assert asked(server) == ("POST", "/clients/ann/rotate", {})
    run("rotate", "ann", "--grace", "60")
    assert asked(server)[2] == {"grace_seconds": 60.0}
    run("rotate", "ann", "--keep")
    assert asked(server)[2] == {"keep": True}
    assert "key-1f of ann is good no more; 2 left" in run("revoke", "ann", "key-1f").stderr
    assert asked(server) == ("DELETE", "/clients/ann/keys/key-1f", None)
    assert run("rm", "ann").stderr == "ann is gone.\n"
    assert asked(server) == ("DELETE", "/clients/ann", None)


def test_groups(server: CannedServer) -> None:
    assert run("groups", "list").stdout.splitlines()[1].split() == ["lab", "-", "2", "60", "-", "-"]
    assert json.loads(run("groups", "list", "--json").stdout)["data"] == [GROUP]
    assert "requests_per_minute  60" in run("groups", "show", "lab").stdout
    words = ("--weight", "2", "--group", "org", "--max-concurrent", "3")
    run("groups", "add", "lab", *words)
    body = {"name": "lab", "weight": 2.0, "group": "org", "max_concurrent": 3}
    assert asked(server) == ("POST", "/groups", body)
    run("groups", "set", "lab", "--tokens-per-minute", "5", "--reset", "weight")
    assert asked(server) == ("PATCH", "/groups/lab", {"tokens_per_minute": 5, "weight": None})
    refused = run("groups", "rm", "lab", code=1)
    assert refused.stderr == "Error: ann is in the group 'lab'\n"


def test_names_are_one_step_of_the_path(server: CannedServer) -> None:
    run("show", "../models?x", code=1)
    assert asked(server)[1] == "/clients/..%2Fmodels%3Fx"
