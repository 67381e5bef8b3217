"""Running for real: binding, readiness, and what signals do to running requests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fake_backend import FakeBackend
from loopback import CHAT

from tenfold.core.errors import ConfigError
from tenfold.server.app import create_app
from tenfold.server.run import bind, serve
from tenfold.server.settings import ServerSettings

pytestmark = pytest.mark.anyio
URL = "/v1/chat/completions"
HERE = Path(__file__).parent


def test_a_taken_port() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port}.*in use.*--port"):
            bind("127.0.0.1", port)


def test_bad_hosts_and_ports() -> None:
    for host, port in (("no such host", 0), ("", 99999), ("a" * 300, 0)):
        with pytest.raises(ConfigError):
            bind(host, port)


async def test_the_port_can_be_taken_before() -> None:
    backend = FakeBackend()
    app = create_app(backend, ServerSettings())
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    said: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(app, backend, "127.0.0.1", port, 5, said.set_result, listener=listener)
    )
    assert await said == port
    assert os.sched_getscheduler(0) == os.SCHED_BATCH  # it stands back while it serves
    os.kill(os.getpid(), signal.SIGTERM)
    await task
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_ipv6() -> None:
    try:
        with bind("::1", 0) as listener:
            assert listener.family == socket.AF_INET6
    except ConfigError:
        pytest.skip("this machine has no IPv6 loopback")


async def test_ready_is_said_when_a_request_would_succeed() -> None:
    backend = FakeBackend(is_ready=False)
    app = create_app(backend, ServerSettings())
    said: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    task = asyncio.create_task(serve(app, backend, "127.0.0.1", port, 5, said.set_result))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        while True:
            try:
                assert (await client.get("/ready")).status_code == 503
                break
            except httpx.ConnectError:
                await asyncio.sleep(0)
        assert (await client.get("/health")).status_code == 200
        assert not said.done()
        backend.is_ready = True
        assert await said == port
        assert (await client.get("/ready")).status_code == 200
    os.kill(os.getpid(), signal.SIGTERM)
    await task
    assert backend.drained.is_set()


@asynccontextmanager
async def server_process(
    drain_seconds: float,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "signal_server.py"),
        str(drain_seconds),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        ready = (await process.stdout.readline()).split()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{int(ready[1])}") as client:
            yield process, client
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def draining(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    assert await process.stdout.readline() == b"draining\n"


async def running(client: httpx.AsyncClient) -> asyncio.Task[httpx.Response]:
    """A streaming request that has sent its first token and hangs."""
    task = asyncio.create_task(client.post(URL, json={**CHAT, "stream": True}))
    while not (await client.get("/v1/admin/queue")).json()["data"]:
        pass
    return task


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(number: signal.Signals) -> None:
    async with server_process(60) as (process, client):
        task = await running(client)
        process.send_signal(number)
        await draining(process)
        assert (await client.get("/ready")).status_code == 503
        refused = await client.post(URL, json=CHAT)
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        reply = await task
        assert reply.text.endswith("data: [DONE]\n\n")
        assert await process.wait() == 0


async def test_out_of_time() -> None:
    async with server_process(0.05) as (process, client):
        task = await running(client)
        process.send_signal(signal.SIGTERM)
        reply = await task
        assert '"code":"unavailable"' in reply.text
        assert await process.wait() == 0


async def test_a_second_signal_leaves_at_once() -> None:
    async with server_process(60) as (process, client):
        task = await running(client)
        process.send_signal(signal.SIGINT)
        await draining(process)
        process.send_signal(signal.SIGINT)
        assert "the server was stopped" in (await task).text
        assert await process.wait() == 128 + signal.SIGINT
