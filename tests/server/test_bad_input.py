"""Hand-made horrors: the answer is 4xx, in OpenAI's shape, and names the field."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from fastapi import FastAPI
from loopback import CHAT, client_of

from tenfold.core.errors import InvalidRequest
from tenfold.server.app import create_app
from tenfold.server.protocol.errors import ErrorBody
from tenfold.server.settings import ServerSettings
from tenfold.server.strict_json import MAX_DEPTH, strict_json

pytestmark = pytest.mark.anyio
URL = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def check_error(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text[:500]
    ErrorBody.model_validate(reply.json())
    error: dict[str, Any] = reply.json()["error"]
    assert len(error["message"]) < 600
    return error


FIELDS: list[tuple[str, Any, str]] = [
    ("model", None, "model"),
    ("model", "", "model"),
    ("model", 5, "model"),
    ("messages", [], "messages"),
    ("messages", "hello", "messages"),
    ("messages", None, "messages"),
    ("messages", ["hello"], "messages[0]"),
    ("messages", [{"content": "x"}], "messages[0].role"),
    ("messages", [{"role": "wizard", "content": "x"}], "messages[0].role"),
    ("messages", [{"role": "user"}], "messages[0].content"),
    ("messages", [{"role": "user", "content": 5}], "messages[0].content"),
    ("messages", [{"role": "user", "content": []}], "messages[0].content"),
    (
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "messages[0].content[0].type",
    ),
    ("messages", [{"role": "tool", "content": "4"}], "messages[0].tool_call_id"),
    (
        "messages",
        [
            {
                "role": "assistant",
                "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}],
            }
        ],
        "messages[0].tool_calls[0].function.arguments",
    ),
    (
        "messages",
        [
            {
                "role": "assistant",
                "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": '"\\ud800"'}}],
            }
        ],
        "messages[0].tool_calls[0].function.arguments",
    ),
    ("temperature", -0.1, "temperature"),
    ("temperature", 2.1, "temperature"),
    ("temperature", "warm", "temperature"),
    ("temperature", True, "temperature"),
    ("top_p", 0, "top_p"),
    ("top_p", 1.5, "top_p"),
    ("top_k", -2, "top_k"),
    ("min_p", -1, "min_p"),
    ("n", 0, "n"),
    ("n", 129, "n"),
    ("n", 10**100, "n"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", -5, "max_tokens"),
    ("max_tokens", 1.5, "max_tokens"),
    ("max_tokens", "many", "max_tokens"),
    ("max_completion_tokens", 0, "max_completion_tokens"),
    ("min_tokens", -1, "min_tokens"),
    ("seed", 2**63, "seed"),
    ("seed", 1.5, "seed"),
    ("stop", ["a"] * 5, "stop"),
    ("stop", [""], "stop[0]"),
    ("stop", "", "stop"),
    ("stop_token_ids", [-1], "stop_token_ids[0]"),
    ("stop_token_ids", [0x110000], "stop_token_ids"),
    ("presence_penalty", 3, "presence_penalty"),
    ("frequency_penalty", -2.5, "frequency_penalty"),
    ("repetition_penalty", 0, "repetition_penalty"),
    ("logit_bias", {"x": 1}, "logit_bias"),
    ("logit_bias", {"5": 101}, "logit_bias"),
    ("logit_bias", {"99999999999": 1}, "logit_bias"),
    ("logit_bias", {"1114112": 1}, "logit_bias"),
    ("logit_bias", [5], "logit_bias"),
    ("logprobs", 5, "logprobs"),
    ("top_logprobs", 3, "top_logprobs"),
    ("top_logprobs", 21, "top_logprobs"),
    ("response_format", "json", "response_format"),
    ("response_format", {"type": "xml"}, "response_format.type"),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"schema": {}}},
        "response_format.json_schema.name",
    ),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "wizard"}}},
        "response_format",
    ),
    ("guided_regex", "(", "guided_regex"),
    ("guided_grammar", "not a grammar", "guided_grammar"),
    ("tools", [{"type": "function"}], "tools[0].function"),
    ("tools", [{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name"),
    ("tools", [{"type": "function", "function": {"name": "a"}}] * 2, "tools"),
    ("tool_choice", "required", "tool_choice"),
    ("tool_choice", "sometimes", "tool_choice"),
    ("functions", [], "functions"),
    ("stream", "yes", "stream"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("stream_options", {"include_usage": 1}, "stream_options.include_usage"),
    ("priority", 1.5, "priority"),
    ("timeout", 0, "timeout"),
    ("timeout", 1e8, "timeout"),
    ("cache_salt", "", "cache_salt"),
    ("ttft_target", 0, "ttft_target"),
    ("tpot_target", -0.1, "tpot_target"),
    ("tpot_target", "fast", "tpot_target"),
    ("chat_template_kwargs", {"messages": []}, "chat_template_kwargs.messages"),
    ("user", 5, "user"),
]


@pytest.mark.parametrize(("field", "value", "param"), FIELDS)
async def test_the_field_is_named(
    client: httpx.AsyncClient, backend: FakeBackend, field: str, value: Any, param: str
) -> None:
    error = check_error(await client.post(URL, json={**CHAT, field: value}))
    assert error["param"] == param
    assert param in error["message"]
    assert backend.requests == []


async def test_contradictions(client: httpx.AsyncClient) -> None:
    tool = {"type": "function", "function": {"name": "a"}}
    named = {"type": "function", "function": {"name": "b"}}
    for fields, param in (
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"guided_regex": "a", "guided_grammar": "b"}, "guided_grammar"),
        ({"tools": [tool], "tool_choice": named}, "tool_choice.function.name"),
        ({"tools": [tool], "tool_choice": "required", "guided_regex": "a"}, "tool_choice"),
    ):
        error = check_error(await client.post(URL, json={**CHAT, **fields}))
        assert error["param"] == param


async def test_several_fields_are_named_together(client: httpx.AsyncClient) -> None:
    error = check_error(await client.post(URL, json={**CHAT, "n": 0, "top_p": 7}))
    assert "n: should be greater than or equal to 1, not 0" in error["message"]
    assert "top_p: should be less than or equal to 1, not 7" in error["message"]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400 + ".5"])
async def test_no_number(client: httpx.AsyncClient, text: str) -> None:
    raw = json.dumps(CHAT)[:-1] + f', "temperature": {text}}}'
    check_error(await client.post(URL, content=raw, headers=JSON))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\x00",
        b"{'model': 1}",
        b'{"model": "\xff"}',
        b'{"model": "\xed\xa0\x80"}',
        b'{"model": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"model": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda raw: repr(raw[:20]),
)
@pytest.mark.parametrize("path", [URL, "/v1/completions", "/v1/embeddings", "/tokenize"])
async def test_no_json(client: httpx.AsyncClient, path: str, raw: bytes) -> None:
    check_error(await client.post(path, content=raw, headers=JSON))


async def test_deep_but_fair_json(client: httpx.AsyncClient) -> None:
    def nested(depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for _ in range(depth):
            value = {"a": value}
        return value

    fair = {**CHAT, "chat_template_kwargs": nested(MAX_DEPTH - 3)}
    assert (await client.post(URL, json=fair)).status_code == 200
    check_error(await client.post(URL, json={**CHAT, "chat_template_kwargs": nested(MAX_DEPTH)}))


async def test_content_types(client: httpx.AsyncClient) -> None:
    raw = json.dumps(CHAT)
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ):
        error = check_error(
            await client.post(URL, content=raw, headers={"Content-Type": kind}), 415
        )
        assert error["param"] == "Content-Type"
    check_error(await client.post(URL, content=raw), 415)
    odd = {"Content-Type": "application/json; charset=utf-16"}
    check_error(await client.post(URL, content=raw, headers=odd), 415)
    for kind in ("application/json; charset=UTF-8", "application/vnd.api+json"):
        reply = await client.post(URL, content=raw, headers={"Content-Type": kind})
        assert reply.status_code == 200


async def test_paths_and_methods(client: httpx.AsyncClient) -> None:
    check_error(await client.get("/v1/nothing"), 404)
    check_error(await client.get("/v1/chat/completions/"), 404)
    reply = await client.get(URL)
    check_error(reply, 405)
    assert reply.headers["allow"] == "POST"
    check_error(await client.request("DELETE", "/v1/models"), 405)
    check_error(await client.post("/ready"), 405)
    check_error(await client.options(URL), 405)


async def test_unknown_model(client: httpx.AsyncClient) -> None:
    for path, body in (
        (URL, {**CHAT, "model": "\U0001f600 <script>"}),
        ("/v1/completions", {"model": "nope", "prompt": "x"}),
        ("/v1/embeddings", {"model": "nope", "input": "x"}),
        ("/tokenize", {"model": "nope", "prompt": "x"}),
    ):
        error = check_error(await client.post(path, json=body), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "tiny, base, embedder" in error["message"]


async def test_a_long_prompt_passes_untouched(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    text = "word " * 2_000_000
    reply = await client.post("/v1/completions", json={"model": "base", "prompt": text})
    assert reply.status_code == 200
    assert backend.requests[0].prompt.text == text  # type: ignore[union-attr]


async def test_a_long_list_of_ids(client: httpx.AsyncClient) -> None:
    body = {"model": "base", "prompt": [7] * 500_000 + [-1]}
    assert check_error(await client.post("/v1/completions", json=body))["param"] == "prompt"


@pytest.mark.parametrize("announced", [True, False])
async def test_body_limit_while_reading(backend: FakeBackend, announced: bool) -> None:
    app = create_app(backend, ServerSettings(body_limit=1000))
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 100_000
            yield b"x" * 100_000

    headers = {**JSON, **({"Content-Length": str(100_000_000)} if announced else {})}
    async with client_of(app) as client:
        reply = await client.post(URL, content=body(), headers=headers)
    error = check_error(reply, 413)
    assert "1000 bytes" in error["message"]
    assert read < 100_000_000


async def test_slow_body(backend: FakeBackend) -> None:
    app = create_app(backend, ServerSettings(body_seconds=0.01))
    sent = []

    async def receive() -> dict[str, Any]:
        if not sent:
            sent.append(1)
            return {"type": "http.request", "body": b"{", "more_body": True}
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    replies: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        replies.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": URL,
        "raw_path": URL.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
        "http_version": "1.1",
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
    assert replies[0]["status"] == 408


async def test_request_ids(client: httpx.AsyncClient) -> None:
    reply = await client.get("/health", headers={"X-Request-Id": "mine-1"})
    assert reply.headers["X-Request-Id"] == "mine-1"
    for odd in ("x" * 129, "two words", "é"):
        reply = await client.get("/health", headers={"X-Request-Id": odd.encode()})
        assert reply.headers["X-Request-Id"].startswith("req-")
    check = await client.post(URL, json={}, headers={"X-Request-Id": "mine-2"})
    assert check.headers["X-Request-Id"] == "mine-2"


async def test_two_apps_know_nothing_of_each_other(app: FastAPI) -> None:
    other = create_app(FakeBackend(served={}), ServerSettings())
    async with client_of(app) as one, client_of(other) as two:
        await one.post(URL, json=CHAT)
        assert "tiny" in (await one.get("/metrics")).text
        assert "tiny" not in (await two.get("/metrics")).text


@pytest.mark.parametrize("raw", [b'{"a": "\\ud83d\\ude00"}', b'[1e3, 1E+2, "\\\\ud800"]'])
async def test_suspects_that_are_innocent(raw: bytes) -> None:
    assert strict_json(raw) == json.loads(raw)


async def test_strict_json_names_the_document() -> None:
    with pytest.raises(InvalidRequest, match="the arguments is not valid JSON"):
        strict_json(b"{", what="the arguments")
