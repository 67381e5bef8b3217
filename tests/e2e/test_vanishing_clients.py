"""Clients that hang up at any moment, streaming or not: nothing of theirs stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.serving import SMALL, Server, serve, until
from e2e.sse import stream

CLIENTS = 200
QUEUE = 300


@pytest.fixture(scope="module")
def server(
    tiny: Mapping[str, Path], home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Few pages, few places and a short queue: evictions, preemptions and refusals all happen."""
    limits = (f"queue.max_requests={QUEUE}", f"queue.client_requests={QUEUE}")
    sets = (*SMALL, *limits, f"server.max_choices={QUEUE}", "device.memory=4MiB")
    with serve(tmp_path_factory.mktemp("server"), home, tiny, *sets) as made:
        yield made


def request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body. Most ask for more than their client will stay for."""
    model = rng.choice(("tiny", "tiny", "other"))
    common: dict[str, Any] = {"model": model, "max_tokens": rng.choice((5, 50, 500, 1500))}
    common |= {"stream": rng.random() < 0.6, "ignore_eos": True, "n": rng.choice((1, 1, 1, 3))}
    match rng.randrange(6):
        case 0:
            text = "the rain " * rng.randrange(1, 100)
            return "/v1/chat/completions", common | {
                "messages": [{"role": "user", "content": text}]
            }
        case 1:
            return "/v1/completions", common | {"guided_regex": "[a-z ]{20,40}"} | {"prompt": "the"}
        case 2:
            texts = ["a short text"] * rng.randrange(1, 64)
            return "/v1/embeddings", {"model": "embedder", "input": texts}
        case 3:
            return "/v1/completions", common | {"prompt": [[5, 6, 7]] * rng.randrange(1, 5)}
    ids = [rng.randrange(3, 300) for _ in range(rng.randrange(1, 600))]
    shared = [9] * rng.choice((0, 64, 320))
    return "/v1/completions", common | {"prompt": shared + ids}


def head(path: str, size: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n\r\n"
    ).encode()


async def visit(port: int, rng: random.Random) -> None:
    """One connection: ask, listen for a while, vanish."""
    path, fields = request(rng)
    body = json.dumps(fields).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        sent = head(path, len(body)) + body
        if rng.random() < 0.1:  # gone in the middle of the question
            sent = sent[: rng.randrange(len(sent))]
        writer.write(sent)
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.choice((0.0, 0.001, 0.05, 0.3, 1.0))):
                while await reader.read(rng.choice((1, 100, 10_000))):
                    pass
    finally:
        if rng.random() < 0.5:
            # A reset instead of a goodbye.
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        else:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def haunt(port: int, seconds: float, seed: int) -> int:
    """CLIENTS clients at once, each coming back until the time is over. Gives the visits made."""
    end = asyncio.get_running_loop().time() + seconds
    visits = 0

    async def client(number: int) -> None:
        nonlocal visits
        rng = random.Random(f"{seed} {number}")
        while asyncio.get_running_loop().time() < end:
            # A flood would only show how many dead connections a kernel keeps in line.
            await asyncio.sleep(rng.uniform(0, 3))
            with contextlib.suppress(OSError):
                await visit(port, rng)
                visits += 1

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return visits


def check_nothing_is_left(server: Server, worker: int, sockets: int) -> None:
    server.settled()
    assert server.worker == worker, "the worker died on the way"
    until(lambda: open_files(server) <= sockets + 4, "connections being closed")
    # The queue has as many places as before: a request that takes all of them is not refused.
    ids = [[number] for number in range(10, 13)]
    choices = server.post("/v1/completions", model="tiny", prompt=ids, n=QUEUE // 3, max_tokens=1)
    assert len(choices["choices"]) == QUEUE
    server.settled()
    log = server.err.read_text()
    assert "Traceback" not in log and "status=500" not in log, log[-5000:]


def open_files(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def haunted(server: Server, seconds: float) -> None:
    worker, sockets = server.worker, open_files(server)
    visits = asyncio.run(haunt(server.port, seconds, seed=0))
    assert visits > CLIENTS
    check_nothing_is_left(server, worker, sockets)


def test_a_closed_stream_stops_the_work(server: Server) -> None:
    before = server.device()["models"][0]["generated_tokens"]
    with stream(server, "tiny", "go on", 8000) as answer:
        next(answer)
    made = server.settled()["models"][0]["generated_tokens"] - before
    assert 0 < made < 4000, "nobody read the other tokens"


def test_a_closed_request_stops_the_work(server: Server) -> None:
    before = server.settled()["models"][0]["generated_tokens"]
    body = {"model": "tiny", "prompt": "go on", "max_tokens": 8000, "ignore_eos": True, "n": 2}
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/completions", json=body, timeout=0.3)
    made = server.settled()["models"][0]["generated_tokens"] - before
    assert made < 8000, "nobody waits for the other tokens"


def test_a_place_in_the_queue_is_given_up(server: Server) -> None:
    """The waiting client goes before its turn comes, and the one after it is served."""
    with stream(server, "tiny", "go on", 3000) as answer:
        next(answer)
        with pytest.raises(httpx.ReadTimeout):
            body = {"model": "tiny", "prompt": [7] * 4000, "max_tokens": 4000, "ignore_eos": True}
            server.http.post("/v1/completions", json=body, timeout=0.05)
        assert len(server.complete("other", "the next", 4)) > 0
        until(lambda: len(server.queue()) == 1, "the queue to hold the stream alone")
    server.settled()


@pytest.mark.timeout(200)
def test_200_clients_vanish_and_leave_nothing(server: Server) -> None:
    haunted(server, 5)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_200_clients_vanish_for_a_minute(server: Server) -> None:
    haunted(server, 60)


def test_every_page_comes_back(server: Server) -> None:
    """Last in this file: unloads all models."""
    for name in ("tiny", "other", "embedder"):
        assert server.post(f"/v1/admin/models/{name}/unload")["unloaded"]
    until(lambda: server.device()["models"] == [], "the models to go")
    device = server.device()
    assert (device["mapped_pages"], device["integrity"]) == (0, [])
