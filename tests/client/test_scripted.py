"""The scripted client answers in order, counts, and says when its script is over."""

from __future__ import annotations

import asyncio

import pytest

from tenfold.client.scripted import ScriptedClient
from tenfold.core.errors import Overloaded
from tenfold.core.types import SamplingParams


def test_answers_come_in_order_and_requests_are_kept() -> None:
    client = ScriptedClient(["one two", ["a", "b"], Overloaded("full")])

    async def talk() -> None:
        messages = [{"role": "user", "content": "how are you"}]
        first = await client.chat("m", messages)
        assert first.text == "one two"
        assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (3, 2)
        second = await client.complete("m", "x", SamplingParams(n=2))
        assert [c.text for c in second.choices] == ["a", "b"]
        with pytest.raises(Overloaded):
            await client.complete("m", "x")
        with pytest.raises(AssertionError, match="no answer left"):
            await client.complete("m", "x")

    asyncio.run(talk())
    assert len(client.asked) == 4


def test_equal_texts_embed_equally_and_at_unit_length() -> None:
    one, two, other = asyncio.run(ScriptedClient([]).embed("m", ["abc", "cab", "zzz"]))
    assert one == two != other
    assert sum(x * x for x in other) == pytest.approx(1.0)
