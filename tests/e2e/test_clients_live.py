"""Three clients and a group on a real server: made live, limited, isolated, kept over a restart."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.serving import SMALL, Server, serve, tenfold_run

PROMPT = "The quick brown fox jumps over the lazy dog, again and again. " * 3
ADMIN = {"TENFOLD_ADMIN_KEY": "root"}


def ask(server: Server, key: str, **body: Any) -> httpx.Response:
    """A greedy completion of 4 tokens by the owner of ``key``."""
    fields = {"model": "tiny", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    headers = {"Authorization": f"Bearer {key}"}
    body = {**fields, "ignore_eos": True, **body}
    return server.http.post("/v1/completions", json=body, headers=headers)


def cached(reply: httpx.Response) -> int:
    assert reply.status_code == 200, reply.text
    return int(reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.slow
def test_clients_made_live(tiny: Mapping[str, Path], tmp_path: Path) -> None:
    home, state = tmp_path / "home", tmp_path / "state" / "clients.json"
    models = {"tiny": tiny["tiny"]}
    sets = (*SMALL, "server.admin_key=root", f"server.state={state}", "schedule.policy=dlpm")

    with serve(tmp_path / "one", home, models, *sets) as server:
        assert ask(server, "anything").status_code == 200, "nobody needs a key yet"

        def cli(*words: str) -> str:
            done = tenfold_run(home, "clients", *words, "--url", server.url, env=ADMIN)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        cli("groups", "add", "research", "--weight", "2", "--tokens-per-minute", "2000")
        ann = cli("add", "ann", "--group", "research", "--isolate")
        bob = cli("add", "bob", "--group", "research", "--requests-per-minute", "3")
        cy = json.loads(cli("add", "cy", "--json"))["key"]
        assert ask(server, "anything").status_code == 401

        # Isolation: ann meets only what she left herself.
        assert cached(ask(server, bob)) > 0, "from before there were clients"
        assert cached(ask(server, ann)) == 0
        assert cached(ask(server, ann)) > 0
        assert cached(ask(server, ann, cache_salt="s")) == 0
        assert cached(ask(server, bob, cache_salt="s")) == 0
        assert cached(ask(server, cy, cache_salt="s")) > 0, "equal salts meet"

        # Limits: each choice counts, and the group's tokens are those of its clients together.
        reply = ask(server, bob, n=2)
        assert reply.status_code == 429 and "requests_per_minute" in reply.text
        assert reply.headers["x-ratelimit-remaining-requests"] == "1"
        assert 1 <= int(reply.headers["Retry-After"]) <= 61
        used = [ask(server, ann).json()["usage"]["total_tokens"] for _ in range(2)]
        reply = ask(server, bob)
        assert reply.headers["x-ratelimit-remaining-requests"] == "0"
        spent = 6 * used[0] + used[1] + reply.json()["usage"]["total_tokens"]
        assert int(reply.headers["x-ratelimit-remaining-tokens"]) == 2000 - spent
        server.http.headers["Authorization"] = "Bearer root"
        assert server.settled()
        fresh = cli("rotate", "ann")
        cli("set", "cy", "--disable")
        assert ask(server, ann).status_code == 401
        assert ask(server, cy).status_code == 403

    text = state.read_text()
    assert not any(key in text for key in (ann, bob, cy, fresh))
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    log = (tmp_path / "one" / "stderr").read_text()
    assert "audit" in log and "action=client.rotate name=ann" in log
    assert not any(key in log for key in (ann, bob, cy, fresh))

    with serve(tmp_path / "two", home, models, *sets) as server:
        assert ask(server, fresh).status_code == 200
        assert ask(server, ann).status_code == 401
        reply = ask(server, cy)
        assert reply.status_code == 403 and "'cy' is disabled" in reply.text
