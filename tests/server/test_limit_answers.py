"""Hard limits as a caller meets them: the app over the service, on scripted and real engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_backend import FakeBackend
from fastapi import FastAPI
from loopback import CHAT, client_of, sse, tenants_of

from fleet.fakes import Fakes, FakeWorker, obliging
from fleet.services import serving, tiny
from tenfold.core.clock import VirtualClock
from tenfold.core.errors import RateLimited
from tenfold.core.messages import Command, Generate, RequestStarted, StepDone, TokenOutput
from tenfold.core.settings import ClientSettings, DeviceSettings
from tenfold.fleet.workers import InlineWorker, Worker
from tenfold.scheduling.limits import RateLimiter, Room, Standing
from tenfold.server.app import create_app
from tenfold.server.settings import ServerSettings

pytestmark = pytest.mark.anyio
URL = "/v1/completions"
ANN = {"Authorization": "Bearer key-a"}
BODY: dict[str, Any] = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 2, "ignore_eos": True}


def answering(worker: FakeWorker, command: Command) -> None:
    """Two tokens for every request, at once."""
    obliging(worker, command)
    if isinstance(command, Generate):
        id = command.request.id
        output = TokenOutput(id, [9, 10], "length")
        worker.say(StepDone(command.request.model, 0.0, [RequestStarted(id, 0.0, 0)], [output]))


@asynccontextmanager
async def limited(
    folder: Path, make_worker: Callable[[DeviceSettings], Worker], **limits: int
) -> AsyncIterator[tuple[httpx.AsyncClient, VirtualClock]]:
    async with serving([tiny(folder)], make_worker=make_worker) as service:
        clock = VirtualClock()
        service.limiter = RateLimiter(clock)
        service.limiter.set_limits([ClientSettings("ann", **limits)], [])  # type: ignore[arg-type]
        app = create_app(service, ServerSettings(), tenants_of(ann="key-a", bob="key-b"))
        async with client_of(app, **ANN) as client:
            yield client, clock


async def test_requests_a_minute(tmp_path: Path) -> None:
    async with limited(tmp_path, Fakes(answering), requests_per_minute=3) as (client, clock):
        first = await client.post(URL, json=BODY)
        assert first.status_code == 200, first.text
        assert first.headers["x-ratelimit-limit-requests"] == "3"
        assert first.headers["x-ratelimit-remaining-requests"] == "2"
        assert first.headers["x-ratelimit-reset-requests"] == "60.25s"
        assert "x-ratelimit-limit-tokens" not in first.headers
        clock.advance(20)
        streamed = await client.post(URL, json={**BODY, "stream": True, "n": 2})
        assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
        assert sse(streamed.text)[-1] == "[DONE]"
        for stream in (False, True):
            refused = await client.post(URL, json={**BODY, "stream": stream})
            assert refused.status_code == 429
            assert refused.headers["Retry-After"] == "41"
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert "client 'ann'" in error["message"] and "requests_per_minute" in error["message"]
        other = await client.post(URL, json=BODY, headers={"Authorization": "Bearer key-b"})
        assert other.status_code == 200
        assert not any(name.startswith("x-ratelimit") for name in other.headers)
        clock.advance(41)
        assert (await client.post(URL, json=BODY)).status_code == 200
        page = (await client.get("/metrics")).text
    limited_line = 'tenfold_requests_limited_total{client="ann",limit="requests_per_minute"} 2.0'
    assert limited_line in page
    assert "tenfold_requests_rejected_total{" not in page


async def test_several_prompts_are_let_in_together_or_not_at_all(tmp_path: Path) -> None:
    async with limited(tmp_path, Fakes(), requests_per_minute=3) as (client, _):
        reply = await client.post(URL, json={**BODY, "prompt": [[5], [6], [7], [8]]})
        assert reply.status_code == 429
        assert reply.headers["x-ratelimit-remaining-requests"] == "3", "the others are taken back"


async def test_what_can_never_fit_asks_for_no_retry(tmp_path: Path) -> None:
    async with limited(tmp_path, Fakes(answering), tokens_per_minute=50) as (client, _):
        reply = await client.post(URL, json={**BODY, "max_tokens": 48})
        assert reply.status_code == 429 and "no waiting helps" in reply.text
        assert (reply.headers["X-Should-Retry"], reply.headers["Retry-After"]) == ("false", "60")
        reply = await client.post(URL, json={**BODY, "max_tokens": None})
        assert reply.status_code == 200, "without a length a part of the limit is assumed"
        assert reply.headers["x-ratelimit-remaining-tokens"] == "45"


async def test_with_a_real_model(tmp_path: Path) -> None:
    limits = {"requests_per_minute": 6, "tokens_per_minute": 200, "max_concurrent": 2}
    async with limited(tmp_path, InlineWorker, **limits) as (client, clock):
        for count in (1, 2):
            reply = await client.post(URL, json={**BODY, "prompt": "the cat sat", "max_tokens": 20})
            used = reply.json()["usage"]["total_tokens"]
            assert reply.headers["x-ratelimit-remaining-tokens"] == str(200 - count * used)
            assert reply.headers["x-ratelimit-remaining-concurrent"] == "2"
        refused = await client.post(URL, json={**BODY, "max_tokens": 180})
        assert refused.status_code == 429 and "tokens_per_minute" in refused.text
        both = [client.post(URL, json={**BODY, "n": 2, "seed": n}) for n in (1, 2)]
        statuses = sorted(reply.status_code for reply in await asyncio.gather(*both))
        assert statuses == [200, 429], "four at once are more than two"
        clock.advance(61)
        reply = await client.post(URL, json={**BODY, "max_tokens": 180})
        assert reply.status_code == 200
        assert reply.headers["x-ratelimit-remaining-tokens"] == "17"


async def test_headers_of_a_backend(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.standings["ann"] = Standing(Room(60, 59, 0.9999), Room(1000, 10, 30.0), Room(4, 3, 0))
    reply = await client.post("/v1/chat/completions", json={**CHAT, "user": "ann"})
    found = {k: v for k, v in reply.headers.items() if k.startswith("x-ratelimit")}
    assert found == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "10",
        "x-ratelimit-reset-tokens": "30s",
        "x-ratelimit-limit-concurrent": "4",
        "x-ratelimit-remaining-concurrent": "3",
    }
    embedded = {"model": "embedder", "input": "x", "user": "ann"}
    reply = await client.post("/v1/embeddings", json=embedded)
    assert reply.headers["x-ratelimit-limit-requests"] == "60"
    reply = await client.get("/v1/models")
    assert not any(name.startswith("x-ratelimit") for name in reply.headers)


async def test_the_sdk_sees_a_rate_limit(app: FastAPI, backend: FakeBackend) -> None:
    backend.fail = RateLimited("no", limit="tokens_per_minute")
    transport = httpx.ASGITransport(app=app)
    async with openai.AsyncOpenAI(
        base_url="http://127.0.0.1/v1",
        api_key="x",
        max_retries=5,
        http_client=httpx.AsyncClient(transport=transport),
    ) as sdk:
        with pytest.raises(openai.RateLimitError):
            await sdk.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x"}]
            )
    assert len(backend.requests) == 1, "it was told not to try again"
