"""The HTTP client speaks plain OpenAI: checked against raw bytes, not against our own server."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tenfold.client.base import ask, collect
from tenfold.client.http import HttpClient
from tenfold.core.errors import ModelNotFound, TenfoldError, Unavailable, WorkerLost
from tenfold.core.types import Constraint, SamplingParams
from tenfold.fleet.types import ChatPrompt, TextPrompt


def _sse(*chunks: object) -> bytes:
    return b"".join(f"data: {json.dumps(c)}\n\n".encode() for c in chunks) + b"data: [DONE]\n\n"


def _client(answer: httpx.Response, seen: list[httpx.Request]) -> HttpClient:
    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answer

    return HttpClient("http://test/v1/", "secret", transport=httpx.MockTransport(handle))


def test_a_chat_stream_becomes_one_reply() -> None:
    body = _sse(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 0, "delta": {"content": "Hel"}}]},
        {"choices": [{"index": 0, "delta": {"content": "lo", "reasoning_content": "hm"}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [
            {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{"}}]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [
            {"index": 0, "function": {"arguments": "}"}}]}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3,
                                  "prompt_tokens_details": {"cached_tokens": 4}}},
    )  # fmt: skip
    seen: list[httpx.Request] = []
    client = _client(httpx.Response(200, content=body), seen)
    sampling = SamplingParams(
        temperature=0.0, stop=("x",), logit_bias={5: 1.0}, constraint=Constraint("regex", "a+")
    )
    prompt = ChatPrompt([{"role": "user", "content": "hi"}], tools=[{"t": 1}], tool_choice="f")
    reply = asyncio.run(collect(client.stream(ask("m", prompt, sampling))))
    assert reply.text == "Hello"
    assert reply.choices[0].reasoning == "hm"
    assert reply.choices[0].finish_reason == "tool_calls"
    assert [(c.id, c.name, c.arguments) for c in reply.choices[0].tool_calls] == [("c1", "f", "{}")]
    assert (reply.usage.prompt_tokens, reply.usage.cached_tokens) == (9, 4)
    sent = json.loads(seen[0].content)
    assert str(seen[0].url) == "http://test/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert sent["temperature"] == 0.0 and sent["stop"] == ["x"] and sent["guided_regex"] == "a+"
    assert sent["logit_bias"] == {"5": 1.0} and "top_p" not in sent
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "f"}}


def test_completions_take_text_and_token_ids() -> None:
    body = _sse({"choices": [{"index": 0, "text": "abc", "finish_reason": "length"}]})
    for prompt in ("once", [1, 2, 3]):
        seen: list[httpx.Request] = []
        client = _client(httpx.Response(200, content=body), seen)
        reply = asyncio.run(client.complete("m", prompt))  # type: ignore[arg-type]
        assert reply.text == "abc" and reply.choices[0].finish_reason == "length"
        assert json.loads(seen[0].content)["prompt"] == prompt


def test_errors_come_back_as_their_own_kind() -> None:
    body = {
        "error": {"message": "no such", "type": "x", "code": "model_not_found", "param": "model"}
    }
    client = _client(httpx.Response(404, json=body), [])
    with pytest.raises(ModelNotFound, match="no such"):
        asyncio.run(client.complete("m", "x"))
    client = _client(httpx.Response(500, content=b"<html>"), [])
    with pytest.raises(TenfoldError, match="500"):
        asyncio.run(client.models())
    late = {"error": {"message": "died", "type": "x", "code": "worker_lost", "param": None}}
    client = _client(httpx.Response(200, content=_sse(late)), [])
    with pytest.raises(WorkerLost):
        asyncio.run(client.complete("m", "x"))


def test_an_unreachable_server_is_unavailable() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    client = HttpClient("http://test", transport=httpx.MockTransport(refuse))
    with pytest.raises(Unavailable, match="http://test"):
        asyncio.run(collect(client.stream(ask("m", TextPrompt("x")))))


def test_embeddings_keep_their_order() -> None:
    rows = [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": [1.0, 0.0]}]
    client = _client(httpx.Response(200, json={"data": rows}), [])
    assert asyncio.run(client.embed("m", ["a", "b"])) == [[1.0, 0.0], [0.0, 1.0]]
