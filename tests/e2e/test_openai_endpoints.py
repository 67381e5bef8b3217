"""The official ``openai`` SDK against the real stack: every endpoint, every kind of answer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from e2e.serving import Server
from models.tiny import SPECIALS

HI: list[Any] = [{"role": "user", "content": "Say something about the weather"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def sdk(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_whole_and_streamed_say_the_same(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": HI, "max_tokens": 24, "temperature": 0}
    whole = sdk.chat.completions.create(**asked)
    assert whole.object == "chat.completion" and whole.model == "tiny"
    assert whole.choices[0].message.role == "assistant"
    chunks = list(
        sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    ends = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert ends[-1] == whole.choices[0].finish_reason
    assert ends[:-1] == [None] * (len(ends) - 1)
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_completions_of_text_and_of_ids_agree(sdk: openai.OpenAI, server: Server) -> None:
    ids = server.post("/tokenize", model="tiny", prompt="The rain in Spain")["tokens"]
    assert server.post("/detokenize", model="tiny", tokens=ids)["prompt"] == "The rain in Spain"
    asked: Any = {"model": "tiny", "max_tokens": 12, "temperature": 0}
    texts = [
        sdk.completions.create(prompt=prompt, **asked).choices[0].text
        for prompt in ("The rain in Spain", ids)
    ]
    assert texts[0] == texts[1]
    both = sdk.completions.create(prompt=["The rain in Spain", "on the plain"], echo=True, **asked)
    assert both.choices[0].text == "The rain in Spain" + texts[0]
    assert both.choices[1].text.startswith("on the plain") and both.choices[1].index == 1
    pieces = [
        c.choices[0].text
        for c in sdk.completions.create(prompt=ids, stream=True, **asked)
        if c.choices
    ]
    assert "".join(pieces) == texts[0]


def test_usage_counts_what_the_cache_had(sdk: openai.OpenAI) -> None:
    prompt = list(range(100, 180))
    first = sdk.completions.create(model="tiny", prompt=prompt, max_tokens=4).usage
    again = sdk.completions.create(model="tiny", prompt=prompt, max_tokens=4).usage
    assert first is not None and first.prompt_tokens_details is not None
    assert again is not None and again.prompt_tokens_details is not None
    assert (first.prompt_tokens, first.prompt_tokens_details.cached_tokens) == (80, 0)
    assert again.prompt_tokens_details.cached_tokens == 64
    assert again.total_tokens == 80 + again.completion_tokens
    salted = sdk.completions.create(
        model="tiny", prompt=prompt, max_tokens=4, extra_body={"cache_salt": "mine"}
    ).usage
    assert salted is not None and salted.prompt_tokens_details is not None
    assert salted.prompt_tokens_details.cached_tokens == 0


def test_several_choices_of_one_seed(sdk: openai.OpenAI) -> None:
    asked: Any = {
        "model": "tiny",
        "messages": HI,
        "max_tokens": 16,
        "n": 3,
        "seed": 7,
        "top_p": 0.9,
    }
    first, again = (sdk.chat.completions.create(**asked).choices for _ in range(2))
    texts = [choice.message.content for choice in first]
    assert [choice.index for choice in first] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in again] == texts
    other = sdk.chat.completions.create(**{**asked, "seed": 8}).choices
    assert [choice.message.content for choice in other] != texts
    streamed = {0: "", 1: "", 2: ""}
    for chunk in sdk.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts


def test_logprobs(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    chat = sdk.chat.completions.create(messages=HI, logprobs=True, top_logprobs=3, **asked)
    assert chat.choices[0].logprobs is not None and chat.usage is not None
    entries = chat.choices[0].logprobs.content or []
    assert len(entries) == chat.usage.completion_tokens
    for entry in entries:
        ranked = [rival.logprob for rival in entry.top_logprobs]
        assert len(ranked) == 3 and ranked == sorted(ranked, reverse=True)
        assert entry.logprob == ranked[0] <= 0  # greedy takes the likeliest
        assert sum(math.exp(p) for p in ranked) <= 1 + 1e-6
    raw = b"".join(bytes(e.bytes or []) for e in entries if e.token not in SPECIALS)
    assert (chat.choices[0].message.content or "") == raw.decode("utf-8", "replace")
    text = sdk.completions.create(prompt="the", logprobs=2, **asked).choices[0]
    assert text.logprobs is not None and text.logprobs.token_logprobs is not None
    assert len(text.logprobs.tokens or []) == len(text.logprobs.token_logprobs) == 6
    assert all(len(top) == 2 for top in text.logprobs.top_logprobs or [])


def test_stop_strings_and_ids(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": "the", "max_tokens": 40, "temperature": 0}
    free = sdk.completions.create(**asked).choices[0].text
    stop = free[10:13]
    cut = sdk.completions.create(**asked, stop=[stop, "never said"]).choices[0]
    assert cut.text == free[: free.index(stop)]
    assert cut.finish_reason == "stop" and cut.stop_reason == stop  # type: ignore[attr-defined]
    streamed = sdk.completions.create(**asked, stop=stop, stream=True)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == cut.text
    scored = sdk.completions.create(**asked, logprobs=0).choices[0].logprobs
    assert scored is not None and scored.tokens
    short = sdk.completions.create(**asked, extra_body={"min_tokens": 3}).choices[0]
    assert short.text == free


def test_limits_on_length(sdk: openai.OpenAI) -> None:
    reply = sdk.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=5)
    assert reply.usage is not None and reply.usage.completion_tokens <= 5
    reply = sdk.chat.completions.create(
        model="tiny", messages=HI, max_tokens=9, extra_body={"ignore_eos": True, "min_tokens": 9}
    )
    assert reply.usage is not None and reply.usage.completion_tokens == 9
    assert reply.choices[0].finish_reason == "length"


def check_person(text: str) -> None:
    found = json.loads(text)
    assert set(found) == {"name", "age", "tags"}
    assert isinstance(found["name"], str) and len(found["name"]) <= 8
    assert type(found["age"]) is int and 0 <= found["age"] <= 150
    assert len(found["tags"]) <= 3 and set(found["tags"]) <= {"a", "b"}


@pytest.mark.parametrize("stream", [False, True])
def test_noise_constrained_by_a_schema_is_valid(sdk: openai.OpenAI, stream: bool) -> None:
    """A model of random weights has nothing to say, yet every answer fits the schema."""
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}}
    for seed in range(4):
        asked: Any = {"model": "tiny", "messages": HI, "seed": seed, "response_format": wanted}
        if stream:
            chunks = sdk.chat.completions.create(**asked, stream=True)
            check_person("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
        else:
            choice = sdk.chat.completions.create(**asked).choices[0]
            assert choice.finish_reason == "stop"
            check_person(choice.message.content or "")


def test_regex_and_grammar(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": "the", "seed": 3, "max_tokens": 64}
    regex = sdk.completions.create(**asked, extra_body={"guided_regex": "[0-9]{3}-[a-c]{2}"})
    digits, letters = regex.choices[0].text.split("-")
    assert (
        digits.isdigit() and len(digits) == 3 and len(letters) == 2 and set(letters) <= set("abc")
    )
    grammar = 'start: ("yes" | "no") "!"'
    said = sdk.completions.create(**asked, extra_body={"guided_grammar": grammar}).choices[0]
    assert said.text in ("yes!", "no!") and said.finish_reason == "stop"


def test_tools_required_and_back(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "tools": [WEATHER], "tool_choice": "required", "seed": 5}
    first = sdk.chat.completions.create(messages=HI, **asked).choices[0]
    assert first.finish_reason == "tool_calls" and first.message.tool_calls
    for call in first.message.tool_calls:
        assert call.id and call.type == "function" and call.function.name == "weather"
        found = json.loads(call.function.arguments)
        assert set(found) == {"city", "days"} and found["days"] in (1, 2)
    answers: list[Any] = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        for call in first.message.tool_calls
    ]
    history: list[Any] = [*HI, first.message, *answers]
    after = sdk.chat.completions.create(
        model="tiny", messages=history, tools=[WEATHER], tool_choice="none", max_tokens=8
    ).choices[0]
    assert after.message.tool_calls is None


def test_a_named_tool_streams_its_arguments(sdk: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    chunks = sdk.chat.completions.create(
        model="tiny", messages=HI, tools=[WEATHER], tool_choice=named, seed=2, stream=True
    )
    pieces = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or []]
    calls: dict[int, str] = {}
    for piece in pieces:
        assert piece.function is not None
        calls[piece.index] = calls.get(piece.index, "") + (piece.function.arguments or "")
    assert [p.function.name for p in pieces if p.function and p.function.name] == ["weather"]
    assert json.loads(calls[0])["days"] in (1, 2)


def test_embeddings(sdk: openai.OpenAI, server: Server) -> None:
    texts = ["the cat", "on the mat", "the cat"]
    packed = sdk.embeddings.create(model="embedder", input=texts)
    plain = sdk.embeddings.create(model="embedder", input=texts, encoding_format="float")
    for ours, theirs in zip(packed.data, plain.data, strict=True):
        assert ours.embedding == pytest.approx(theirs.embedding, abs=1e-6)
        assert math.hypot(*theirs.embedding) == pytest.approx(1, abs=1e-5)
    assert plain.data[0].embedding == pytest.approx(plain.data[2].embedding, abs=1e-6)
    ids = server.post("/tokenize", model="embedder", prompt="the cat")["tokens"]
    by_id = sdk.embeddings.create(model="embedder", input=ids, encoding_format="float")
    assert by_id.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > 0


def test_models(sdk: openai.OpenAI) -> None:
    assert {model.id for model in sdk.models.list()} == {"tiny", "other", "embedder"}
    assert sdk.models.retrieve("tiny").owned_by == "tenfold"
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.models.retrieve("nope")
    assert missing.value.code == "model_not_found"


def test_errors_are_the_sdks_own(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="served: tiny, other, embedder"):
        sdk.chat.completions.create(model="gpt-4", messages=HI)
    with pytest.raises(openai.BadRequestError) as wrong:
        sdk.embeddings.create(model="tiny", input="x")
    assert wrong.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        sdk.chat.completions.create(model="embedder", messages=HI)
    assert wrong.value.param == "model"


def test_nothing_is_left(server: Server) -> None:
    server.settled()
