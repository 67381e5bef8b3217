"""The official ``openai`` SDK, sync and async, drives every endpoint over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from fake_backend import FakeBackend
from fastapi import FastAPI
from loopback import serving, tenants_of

from tenfold.core.errors import Overloaded
from tenfold.core.types import Usage
from tenfold.fleet.types import ChoiceEnd, Delta, Finished, ToolCallDelta
from tenfold.server.app import create_app
from tenfold.server.settings import ServerSettings

pytestmark = pytest.mark.anyio

MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.fixture
def app(backend: FakeBackend) -> FastAPI:
    return create_app(backend, ServerSettings(), tenants_of(ann="key-a"))


@pytest.fixture
async def sdk(address: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{address}/v1", api_key="key-a", max_retries=0
    ) as client:
        yield client


def tool_events(request: object) -> list[Any]:
    return [
        Delta(0, reasoning="hm", token_ids=[1]),
        Delta(0, tool_calls=[ToolCallDelta(0, "c1", "add", "")], token_ids=[2]),
        Delta(0, tool_calls=[ToolCallDelta(0, arguments="{}")], token_ids=[3]),
        ChoiceEnd(0, "tool_calls"),
        Finished(Usage(1, 3)),
    ]


async def test_chat(sdk: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    reply = await sdk.chat.completions.create(
        model="tiny", messages=MESSAGES, n=2, logprobs=True, top_logprobs=1, max_tokens=4
    )
    assert [choice.message.content for choice in reply.choices] == ["Hello, world!"] * 2
    assert reply.usage is not None and reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 2
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.content[0].top_logprobs[0].token == "a"  # type: ignore[index]
    assert backend.requests[0].client == "ann"


async def test_chat_stream(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello, world!"
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 12


async def test_chat_stream_helper(sdk: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    backend.events = tool_events
    async with sdk.chat.completions.stream(model="tiny", messages=MESSAGES, tools=[TOOL]) as stream:
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None and calls[0].function.name == "add"


async def test_tools_go_round(sdk: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    backend.events = tool_events
    first = await sdk.chat.completions.create(model="tiny", messages=MESSAGES, tools=[TOOL])
    message = first.choices[0].message
    assert message.reasoning_content == "hm"  # type: ignore[attr-defined]
    backend.events = None
    # The SDK sends its own answer back as it is, with every null and extra of its models.
    history = [*MESSAGES, message, {"role": "tool", "tool_call_id": "c1", "content": "4"}]
    raw = await sdk.chat.completions.with_raw_response.create(
        model="tiny", messages=history, tools=[TOOL]
    )
    assert raw.parse().choices[0].message.content == "Hello, world!"
    assert "X-Tenfold-Ignored" not in raw.headers


async def test_structured_output(sdk: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    backend.tokens = ['{"a"', ": 1}"]
    reply = await sdk.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True},
        },
    )
    assert reply.choices[0].message.content == '{"a": 1}'
    assert backend.requests[0].sampling.constraint is not None


async def test_completions(sdk: openai.AsyncOpenAI) -> None:
    reply = await sdk.completions.create(model="base", prompt=["a", "b"], logprobs=1, echo=False)
    assert [choice.text for choice in reply.choices] == ["Hello, world!"] * 2
    stream = await sdk.completions.create(model="base", prompt=[1, 2], stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello, world!"


async def test_embeddings(sdk: openai.AsyncOpenAI) -> None:
    # The SDK asks for base64 by itself and decodes it.
    reply = await sdk.embeddings.create(model="embedder", input=["a", "b"])
    assert [entry.embedding for entry in reply.data] == [[0.5, 0.5, -0.5, 0.5]] * 2
    plain = await sdk.embeddings.create(model="embedder", input="a", encoding_format="float")
    assert plain.data[0].embedding == [0.5, 0.5, -0.5, 0.5]


async def test_models(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["tiny", "base", "embedder"]
    assert (await sdk.models.retrieve("tiny")).owned_by == "tenfold"


async def test_errors(sdk: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.models.retrieve("nope")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await sdk.chat.completions.create(model="tiny", messages=MESSAGES, temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.AuthenticationError):
        await sdk.with_options(api_key="nope").models.list()
    with pytest.raises(openai.PermissionDeniedError):
        await sdk.get("/admin/queue", cast_to=object)
    backend.fail = Overloaded("full", retry_after=1)
    with pytest.raises(openai.RateLimitError):
        await sdk.chat.completions.create(model="tiny", messages=MESSAGES)


async def test_error_in_a_stream(sdk: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    backend.fail_later = Overloaded("lost")
    stream = await sdk.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="lost"):
        async for _ in stream:
            pass


async def test_closing_a_stream_cancels(sdk: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    backend.hold_after = 2
    stream = await sdk.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    await backend.reached.wait()
    await stream.close()
    await backend.closed.wait()
    assert backend.live == {}


async def test_timeouts_cancel(sdk: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    backend.hold_after = 0
    with pytest.raises(openai.APITimeoutError):
        await sdk.with_options(timeout=0.2).chat.completions.create(model="tiny", messages=MESSAGES)
    await backend.closed.wait()


async def test_sync_sdk(app: FastAPI) -> None:
    def drive(address: str) -> str:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="key-a") as client:
            assert len(client.models.list().data) == 3
            whole = client.chat.completions.create(model="tiny", messages=MESSAGES)
            assert whole.choices[0].message.content == "Hello, world!"
            assert client.completions.create(model="base", prompt="x").choices[0].text
            assert len(client.embeddings.create(model="embedder", input="x").data) == 1
            stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    async with serving(app) as address:
        assert await asyncio.to_thread(drive, address) == "Hello, world!"


async def test_sdk_comes_back_when_told_to_wait(
    sdk: openai.AsyncOpenAI, backend: FakeBackend
) -> None:
    backend.fail = Overloaded("full", retry_after=1)
    patient = sdk.with_options(max_retries=1)
    task = asyncio.create_task(patient.chat.completions.create(model="tiny", messages=MESSAGES))
    while not backend.requests:
        await asyncio.sleep(0)
    backend.fail = None
    assert (await task).choices[0].message.content == "Hello, world!"
