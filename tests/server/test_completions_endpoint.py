"""POST /v1/completions: prompts of every shape, echo, logprobs, several prompts at once."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from loopback import sse

from tenfold.core.errors import Overloaded
from tenfold.fleet.types import TextPrompt
from tenfold.server.protocol.completions import Completion

pytestmark = pytest.mark.anyio
URL = "/v1/completions"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([65, 66], [[65, 66]]),
        ([[65], [66, 67]], [[65], [66, 67]]),
    ],
)
async def test_prompts(
    client: httpx.AsyncClient, backend: FakeBackend, prompt: Any, expected: list[Any]
) -> None:
    reply = await client.post(URL, json={"model": "base", "prompt": prompt, "n": 2})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    Completion.model_validate(body)
    assert [request.prompt for request in backend.requests] == [TextPrompt(p) for p in expected]
    assert len({request.id for request in backend.requests}) == len(expected)
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(expected)))
    assert all(choice["text"] == "Hello, world!" for choice in body["choices"])
    assert body["usage"]["completion_tokens"] == 8 * len(expected)
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * len(expected)


async def test_echo_and_default_length(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {"model": "base", "prompt": [[72, 105], [66]], "echo": True}
    reply = (await client.post(URL, json=body)).json()
    assert [c["text"] for c in reply["choices"]] == ["HiHello, world!", "BHello, world!"]
    assert backend.requests[0].sampling.max_tokens == 16
    streamed = sse((await client.post(URL, json={**body, "stream": True})).text)
    texts = ["", ""]
    for chunk in streamed[:-1]:
        Completion.model_validate(chunk)
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["HiHello, world!", "BHello, world!"]
    assert streamed[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs(client: httpx.AsyncClient, stream: bool) -> None:
    body = {"model": "base", "prompt": "x", "logprobs": 1, "stream": stream}
    reply = await client.post(URL, json=body)
    merged: dict[str, list[Any]] = {}
    chunks = sse(reply.text)[:-1] if stream else [reply.json()]
    for chunk in chunks:
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            merged.setdefault(name, []).extend(values)
    assert merged == {
        "tokens": ["Hello", ",", " world", "!"],
        "token_logprobs": [-0.5] * 4,
        "top_logprobs": [{"a": -0.5}] * 4,
        "text_offset": [0, 5, 6, 12],
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [("suffix", "end"), ("best_of", 2), ("logprobs", 21), ("max_tokens", 0), ("prompt", "")],
)
async def test_refused(client: httpx.AsyncClient, field: str, value: Any) -> None:
    reply = await client.post(URL, json={"model": "base", "prompt": "x", field: value})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field
    assert field in reply.json()["error"]["message"]


async def test_nulls_are_absent(client: httpx.AsyncClient) -> None:
    body = {"model": "base", "prompt": "x", "suffix": None, "best_of": None, "stop": None}
    assert (await client.post(URL, json=body)).status_code == 200


async def test_one_failing_prompt_ends_all(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.fail = Overloaded("full", retry_after=1)
    reply = await client.post(URL, json={"model": "base", "prompt": ["a", "b", "c"]})
    assert reply.status_code == 429
    assert backend.live == {}


async def test_too_many_choices(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    reply = await client.post(URL, json={"model": "base", "prompt": ["a"] * 65, "n": 2})
    assert reply.status_code == 400
    assert "130 choices" in reply.json()["error"]["message"]
    assert backend.requests == []


async def test_ids_outside_the_vocabulary(client: httpx.AsyncClient) -> None:
    reply = await client.post(URL, json={"model": "base", "prompt": [5, 0x110000]})
    assert reply.status_code == 400
    assert "1114112 is outside the vocabulary" in reply.json()["error"]["message"]
