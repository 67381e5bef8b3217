"""Over a real socket: a closed connection ends its work, a silent stream is kept alive."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from fastapi import FastAPI
from loopback import CHAT, serving

from tenfold.core.errors import Overloaded, Unavailable, WorkerLost
from tenfold.server.app import create_app
from tenfold.server.settings import ServerSettings

pytestmark = pytest.mark.anyio
URL = "/v1/chat/completions"


class Wire:
    """One connection, by hand: what is sent and when it closes is the test's business."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def post(cls, address: str, path: str, body: dict[str, Any]) -> Wire:
        host, _, port = address.removeprefix("http://").partition(":")
        wire = cls(*await asyncio.open_connection(host, int(port)))
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(raw)}\r\n\r\n"
        )
        wire.writer.write(head.encode() + raw)
        return wire

    async def until(self, needle: bytes) -> bytes:
        return await self.reader.readuntil(needle)

    def vanish(self) -> None:
        self.writer.transport.abort()


COMPLETION = {"model": "base", "prompt": ["a", "b", "c"], "n": 2}


@pytest.mark.parametrize("hold_after", [0, 2])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [(URL, CHAT), ("/v1/completions", COMPLETION)])
async def test_a_closed_connection_cancels(
    address: str,
    backend: FakeBackend,
    request_lines: list[str],
    hold_after: int,
    stream: bool,
    path: str,
    body: dict[str, Any],
) -> None:
    backend.hold_after = hold_after
    wire = await Wire.post(address, path, {**body, "stream": stream})
    await backend.reached.wait()
    if stream and hold_after:
        await wire.until(b"data: ")
    expected = 3 if path == "/v1/completions" else 1
    while len(backend.live) < expected:
        await asyncio.sleep(0)
    wire.vanish()
    await backend.closed.wait()
    while backend.live or not request_lines:
        await asyncio.sleep(0)
    assert len(backend.aborted) == expected
    line = json.loads(request_lines[0])
    assert (line["status"], line["finish"], line["stream"]) == (499, "abort", stream)


async def test_a_closed_connection_cancels_an_embedding(address: str, backend: FakeBackend) -> None:
    backend.hold_after = 0
    wire = await Wire.post(address, "/v1/embeddings", {"model": "embedder", "input": "x"})
    await backend.reached.wait()
    wire.vanish()
    await backend.closed.wait()


async def test_a_half_sent_body(
    address: str, backend: FakeBackend, request_lines: list[str]
) -> None:
    host, _, port = address.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + b"Content-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.transport.abort()
    while not request_lines:
        await asyncio.sleep(0)
    assert json.loads(request_lines[0])["status"] == 499
    assert backend.requests == []


async def test_live_requests_are_listed(address: str, backend: FakeBackend) -> None:
    backend.hold_after = 1
    wire = await Wire.post(address, URL, {**CHAT, "user": "ann", "stream": True})
    await backend.reached.wait()
    async with httpx.AsyncClient(base_url=address) as client:
        queue = (await client.get("/v1/admin/queue")).json()["data"]
        status = (await client.get("/v1/status")).json()
    assert [(entry["client"], entry["state"]) for entry in queue] == [("ann", "running")]
    assert (status["queue"], status["clients"][0]["live"]) == (queue, 1)
    wire.vanish()
    await backend.closed.wait()


@pytest.mark.parametrize("hold_after", [0, 3])
async def test_pings_while_silent(backend: FakeBackend, hold_after: int) -> None:
    backend.hold_after = hold_after
    app = create_app(backend, ServerSettings(ping_seconds=0.01))
    async with serving(app) as address:
        wire = await Wire.post(address, URL, {**CHAT, "stream": True})
        for _ in range(2):
            text = await wire.until(b": ping\n\n")
        if hold_after == 0:
            assert b"data: " not in text
        backend.gate.set()
        rest = await wire.until(b"data: [DONE]\n\n")
        assert b'"content":"!"' in rest
        wire.vanish()


async def test_error_after_a_ping_is_an_event(backend: FakeBackend) -> None:
    backend.hold_after = 0
    backend.events = lambda request: []
    app = create_app(backend, ServerSettings(ping_seconds=0.01))

    async def fail_after_ping(wire: Wire) -> bytes:
        await wire.until(b": ping\n\n")
        backend.gate.set()
        return await wire.until(b"}}\n\n")

    async def held() -> Any:
        backend.reached.set()
        await backend.gate.wait()
        raise Overloaded("full")
        yield  # an async generator

    backend.generate = lambda request: held()  # type: ignore[method-assign,assignment]
    async with serving(app) as address:
        wire = await Wire.post(address, URL, {**CHAT, "stream": True})
        assert b"event: error\ndata: " in await fail_after_ping(wire)
        wire.vanish()


async def test_stop_all_ends_streams_and_answers(app: FastAPI, backend: FakeBackend) -> None:
    backend.hold_after = 2
    async with serving(app) as address, httpx.AsyncClient(base_url=address) as client:
        stream = await Wire.post(address, URL, {**CHAT, "stream": True})
        await stream.until(b'"content":"Hello"')
        whole = asyncio.create_task(client.post(URL, json=CHAT))
        while len(backend.live) < 2:
            await asyncio.sleep(0)
        app.state.server.stop_all(Unavailable("the server is shutting down"))
        assert b"event: error" in await stream.until(b"}}\n\n")
        assert (await whole).status_code == 503
        assert len(backend.aborted) == 2
        stream.vanish()


async def test_draining_lets_running_requests_finish(app: FastAPI, backend: FakeBackend) -> None:
    backend.hold_after = 2
    async with serving(app) as address, httpx.AsyncClient(base_url=address) as client:
        whole = asyncio.create_task(client.post(URL, json=CHAT))
        await backend.reached.wait()
        reply = await client.post("/v1/admin/drain")
        assert reply.json() == {"status": "draining"}
        assert (await client.get("/ready")).status_code == 503
        assert (await client.post(URL, json=CHAT)).status_code == 503
        backend.gate.set()
        assert (await whole).status_code == 200
        assert (await client.post("/v1/admin/drain", json={"wait": True})).json() == {
            "status": "drained"
        }


@pytest.mark.parametrize("announced", [True, False])
async def test_the_413_arrives(backend: FakeBackend, announced: bool) -> None:
    """A client still writing its body must be able to read the refusal."""
    app = create_app(backend, ServerSettings(body_limit=1000))

    async def body() -> Any:
        for _ in range(100):
            yield b"x" * 100_000

    headers = {"Content-Type": "application/json"}
    if announced:
        headers["Content-Length"] = str(10_000_000)
    async with serving(app) as address, httpx.AsyncClient(base_url=address) as client:
        reply = await client.post(URL, content=body(), headers=headers)
        assert reply.status_code == 413
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("late", [False, True])
async def test_vanishing_clients_leave_nothing(
    address: str, backend: FakeBackend, late: bool
) -> None:
    """Fifty clients come, read a little or nothing, and are gone without a word."""
    backend.tokens = ["x"] * 200
    backend.fail_later = WorkerLost("never reached by most")

    async def visit(number: int) -> None:
        wire = await Wire.post(address, URL, {**CHAT, "stream": number % 2 == 0})
        if late and number % 2 == 0:
            with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                for _ in range(number):
                    await wire.until(b"\n\n")
        wire.vanish()

    await asyncio.gather(*(visit(number) for number in range(50)))
    async with httpx.AsyncClient(base_url=address) as client:
        while (await client.get("/v1/admin/queue")).json()["data"]:
            pass
    assert backend.live == {}
