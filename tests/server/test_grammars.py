"""Checking constraints at the door: real grammars, and a flood of them."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fake_backend import FakeBackend
from loopback import CHAT

from tenfold.core.errors import InvalidRequest, Overloaded
from tenfold.core.types import Constraint
from tenfold.server.grammars import PARALLEL, GrammarCheck

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"response_format": {"type": "text"}}, None),
        ({"guided_regex": "[a-z]+"}, "regex"),
        ({"guided_grammar": 'start: "a" | "b"'}, "grammar"),
    ],
)
async def test_good_ones_pass(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, object], kind: str | None
) -> None:
    reply = await client.post("/v1/chat/completions", json={**CHAT, **fields})
    assert reply.status_code == 200, reply.text
    constraint = backend.requests[0].sampling.constraint
    assert (constraint.kind if constraint else None) == kind


async def test_a_flood_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check = GrammarCheck(patience=0.01)
    release, started = asyncio.Event(), asyncio.Semaphore(0)

    async def slow(work: object, constraint: object) -> None:
        started.release()
        await release.wait()

    monkeypatch.setattr("tenfold.server.grammars.asyncio.to_thread", slow)
    busy = [asyncio.create_task(check.check(Constraint("regex", "a"))) for _ in range(PARALLEL)]
    for _ in busy:
        await started.acquire()
    with pytest.raises(Overloaded):
        await check.check(Constraint("regex", "b"))
    release.set()
    await asyncio.gather(*busy)
    monkeypatch.undo()
    with pytest.raises(InvalidRequest, match="guided_regex"):
        await check.check(Constraint("regex", "("))
