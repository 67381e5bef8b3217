"""POST /v1/chat/completions over the fake backend: fields in, OpenAI's shapes out."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from loopback import CHAT, sse

from tenfold.core.errors import Overloaded, Unavailable, WorkerLost
from tenfold.core.types import Constraint, Usage
from tenfold.fleet.types import (
    ChatPrompt,
    ChoiceEnd,
    Delta,
    Finished,
    GenerateEvent,
    GenerateRequest,
    ToolCallDelta,
)
from tenfold.server.protocol.chat import ChatCompletion, ChatCompletionChunk

pytestmark = pytest.mark.anyio
URL = "/v1/chat/completions"


async def test_whole_answer(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    reply = await client.post(URL, json=CHAT)
    assert reply.status_code == 200
    body = reply.json()
    ChatCompletion.model_validate(body)
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, world!"},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 8,
        "completion_tokens": 4,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert backend.requests[0].id == body["id"]
    assert backend.aborted == []


async def test_stream_is_openais(client: httpx.AsyncClient) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
    reply = await client.post(URL, json={**CHAT, **options})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, last = sse(reply.text)
    assert last == "[DONE]"
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    first = [chunk["choices"][0] for chunk in chunks[:2]]
    assert [choice["index"] for choice in first] == [0, 1]
    assert all(choice["delta"] == {"role": "assistant", "content": ""} for choice in first)
    texts = ["", ""]
    for chunk in chunks[2:-1]:
        assert chunk["usage"] is None
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["Hello, world!"] * 2
    finishes = [c["choices"][0]["finish_reason"] for c in chunks[:-1]]
    assert [finish for finish in finishes if finish] == ["stop", "stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_stream_without_usage_has_none(client: httpx.AsyncClient) -> None:
    chunks = sse((await client.post(URL, json={**CHAT, "stream": True})).text)
    assert all("usage" not in chunk for chunk in chunks[:-1])
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


async def test_every_field_reaches_the_backend(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": -(2**63),
        "n": 2,
        "max_completion_tokens": 3,
        "min_tokens": 1,
        "stop": ["a", "b"],
        "stop_token_ids": [7],
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -100},
        "logprobs": True,
        "top_logprobs": 2,
        "ignore_eos": True,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object"}},
        },
        "priority": -3,
        "timeout": 9.5,
        "cache_salt": "mine",
        "ttft_target": 0.5,
        "tpot_target": 0.05,
        "chat_template_kwargs": {"enable_thinking": False},
        "parallel_tool_calls": False,
        "user": "ann",
    }
    reply = await client.post(URL, json={**CHAT, **fields})
    assert reply.status_code == 200, reply.text
    assert "X-Tenfold-Ignored" not in reply.headers
    request = backend.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (sampling.min_p, sampling.seed, sampling.n) == (0.05, -(2**63), 2)
    assert (sampling.max_tokens, sampling.min_tokens) == (3, 1)
    assert (sampling.stop, sampling.stop_token_ids) == (("a", "b"), (7,))
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.1, -0.1)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.1, {5: -100})
    assert (sampling.logprobs, sampling.ignore_eos) == (2, True)
    assert sampling.constraint == Constraint("json_schema", '{"type": "object"}')
    assert (request.priority, request.timeout, request.cache_salt) == (-3, 9.5, "mine")
    assert (request.ttft_target, request.itl_target) == (0.5, 0.05)
    assert request.client == "ann"
    assert isinstance(request.prompt, ChatPrompt)
    assert request.prompt.template_kwargs == {"enable_thinking": False}
    assert not request.prompt.parallel_tool_calls
    assert {choice["finish_reason"] for choice in reply.json()["choices"]} == {"length"}


async def test_messages_become_plain(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
        {"role": "assistant", "content": "so", "reasoning_content": "hm"},
        {"role": "assistant"},
    ]
    reply = await client.post(URL, json={"model": "tiny", "messages": messages})
    assert reply.status_code == 200, reply.text
    assert "X-Tenfold-Ignored" not in reply.headers
    prompt = backend.requests[0].prompt
    assert isinstance(prompt, ChatPrompt)
    call["function"] = {"name": "f", "arguments": "{}"}
    assert prompt.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
        {"role": "assistant", "content": "so", "reasoning_content": "hm"},
        {"role": "assistant", "content": ""},
    ]


TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {}}},
    }
    for name in ("add", "look")
]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "look"}}, "look"),
    ],
)
async def test_tool_choice(
    client: httpx.AsyncClient, backend: FakeBackend, choice: Any, expected: str
) -> None:
    reply = await client.post(URL, json={**CHAT, "tools": TOOLS, "tool_choice": choice})
    assert reply.status_code == 200, reply.text
    prompt = backend.requests[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert (prompt.tool_choice, prompt.tools) == (expected, TOOLS)


def _tool_events(request: GenerateRequest) -> list[GenerateEvent]:
    return [
        Delta(0, reasoning="I should ", token_ids=[1]),
        Delta(0, reasoning="add.", token_ids=[2]),
        Delta(0, token_ids=[3]),
        Delta(0, tool_calls=[ToolCallDelta(0, "call-1", "add", "")], token_ids=[4]),
        Delta(0, tool_calls=[ToolCallDelta(0, arguments='{"a":')], token_ids=[5]),
        Delta(0, tool_calls=[ToolCallDelta(0, arguments="1}")], token_ids=[6]),
        Delta(0, tool_calls=[ToolCallDelta(1, "call-2", "look", "{}")], token_ids=[7]),
        ChoiceEnd(0, "tool_calls"),
        Finished(Usage(5, 7)),
    ]


async def test_tool_calls_whole(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.events = _tool_events
    body = (await client.post(URL, json={**CHAT, "tools": TOOLS})).json()
    ChatCompletion.model_validate(body)
    choice = body["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "I should add.",
        "tool_calls": [
            {
                "id": "call-1",
                "type": "function",
                "function": {"name": "add", "arguments": '{"a":1}'},
            },
            {"id": "call-2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        ],
    }


async def test_tool_calls_streamed(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.events = _tool_events
    reply = await client.post(URL, json={**CHAT, "tools": TOOLS, "stream": True})
    chunks = sse(reply.text)[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[1:] == [
        {"reasoning_content": "I should "},
        {"reasoning_content": "add."},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call-1",
                    "type": "function",
                    "function": {"name": "add", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {
            "tool_calls": [
                {
                    "index": 1,
                    "id": "call-2",
                    "type": "function",
                    "function": {"name": "look", "arguments": "{}"},
                }
            ]
        },
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs(client: httpx.AsyncClient, stream: bool) -> None:
    body = {**CHAT, "logprobs": True, "top_logprobs": 2, "stream": stream}
    reply = await client.post(URL, json=body)
    if stream:
        found = [
            entry
            for chunk in sse(reply.text)[:-1]
            if chunk["choices"][0]["logprobs"]
            for entry in chunk["choices"][0]["logprobs"]["content"]
        ]
    else:
        found = reply.json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in found] == ["Hello", ",", " world", "!"]
    assert found[1] == {
        "token": ",",
        "logprob": -0.5,
        "bytes": [44],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "b", "logprob": -9999.0, "bytes": [98]},
        ],
    }


async def test_unknown_fields_are_named(client: httpx.AsyncClient) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi", "colour": 1}],
        "reasoning_effort": "low",
        "na me\r\n": 1,
        "metadata": None,
    }
    reply = await client.post(URL, json=body)
    assert reply.status_code == 200
    assert reply.headers["X-Tenfold-Ignored"] == "reasoning_effort,na_me__,messages[0].colour"


async def test_admission_error_before_the_stream(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.fail = Overloaded("the queue of tiny is full (8 requests)", retry_after=2.5)
    for stream in (False, True):
        reply = await client.post(URL, json={**CHAT, "stream": stream})
        assert reply.status_code == 429
        assert reply.headers["Retry-After"] == "3"
        assert reply.json()["error"] == {
            "message": "the queue of tiny is full (8 requests)",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }


async def test_error_in_the_middle(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.fail_later = WorkerLost("the worker of cpu:0 died")
    backend.events = lambda request: [Delta(0, "Hel", token_ids=[1])]
    reply = await client.post(URL, json={**CHAT, "stream": True})
    assert reply.status_code == 200
    assert reply.text.endswith("\n\n")
    *_, event = reply.text.strip().split("\n\n")
    assert event.startswith("event: error\ndata: ")
    assert sse(reply.text)[-1]["error"]["code"] == "worker_lost"
    whole = await client.post(URL, json=CHAT)
    assert whole.status_code == 502


async def test_an_aborted_choice_is_no_answer(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.events = lambda request: [ChoiceEnd(0, "abort"), Finished(Usage())]
    assert (await client.post(URL, json=CHAT)).status_code == 502


async def test_bug_becomes_a_plain_500(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.fail = RuntimeError("secret detail")
    for stream in (False, True):
        reply = await client.post(URL, json={**CHAT, "stream": stream})
        assert reply.status_code == 500
        assert "secret" not in reply.text
        assert reply.json()["error"]["type"] == "server_error"
        assert reply.headers["X-Request-Id"]


async def test_base_model_is_no_chat_model(client: httpx.AsyncClient) -> None:
    reply = await client.post(URL, json={**CHAT, "model": "base"})
    assert reply.status_code == 400
    assert "chat template" in reply.json()["error"]["message"]
    reply = await client.post(URL, json={**CHAT, "model": "embedder"})
    assert reply.status_code == 400
    assert "/v1/embeddings" in reply.json()["error"]["message"]


async def test_not_accepting(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.is_ready = False
    reply = await client.post(URL, json=CHAT)
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "2")
    backend.is_ready = True
    backend.fail = Unavailable("no worker came back")
    assert (await client.post(URL, json=CHAT)).headers["Retry-After"] == "1"
