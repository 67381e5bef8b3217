"""The interference benchmark over a client that sends words at a known pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from tenfold.bench.interference import interfere
from tenfold.client.base import Client
from tenfold.core.types import Usage
from tenfold.fleet.types import ChoiceEnd, Delta, Finished, GenerateEvent, GenerateRequest


class Paced(Client):
    """A word every millisecond, every tenth while a long prompt is in work. No token ids, as over
    HTTP."""

    def __init__(self) -> None:
        self.busy = False

    async def stream(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        if request.sampling.max_tokens == 1:
            self.busy = True
            await asyncio.sleep(0.2)
            self.busy = False
            yield Delta(0, "x")
        else:
            while True:
                await asyncio.sleep(0.02 if self.busy else 0.001)
                yield Delta(0, "word ")
        yield ChoiceEnd(0, "length")
        yield Finished(Usage(1, 1, 0))

    async def embed(self, model: str, texts: list[str]) -> list[list[float]]:
        return []

    async def models(self) -> list[str]:
        return ["m"]


def test_gaps_before_and_during_are_told_apart() -> None:
    found = asyncio.run(interfere(Paced(), "m", streams=3, prompt_tokens=64, warm_seconds=0.2))
    assert found.ttft >= 0.2
    assert 0 < found.before.p50 < 0.015 < found.during.p50
    body = found.to_json()
    assert body["p99_over_target"] == found.during.p99 / 0.2 and "times" not in body
