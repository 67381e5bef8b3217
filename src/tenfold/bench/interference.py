"""What a long prompt does to streams that are already running.

Some streams decode; a long prompt arrives in their midst. The gaps between the streams'
tokens while the prompt is being computed are what a user of those streams feels.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import asdict, dataclass, field

from tenfold.bench.report import Spread
from tenfold.client.base import Client, ask
from tenfold.core.types import SamplingParams
from tenfold.fleet.types import Delta, TextPrompt

_SEED_WORDS = 977


@dataclass(slots=True)
class Interference:
    """Gaps in seconds. ``during`` counts gaps that overlap the long prompt's computation."""

    streams: int
    prompt_tokens: int
    target: float
    ttft: float
    before: Spread
    during: Spread
    times: list[list[float]] = field(default_factory=list)
    arrived: float = 0.0

    def to_json(self) -> dict[str, object]:
        body = asdict(self)
        body.pop("times")
        return body | {"p99_over_target": self.during.p99 / self.target}


async def interfere(
    client: Client,
    model: str,
    *,
    streams: int = 8,
    prompt_tokens: int = 4096,
    warm_seconds: float = 5.0,
    target: float = 0.2,
    salt: int = 0,
) -> Interference:
    """Run it once. The long prompt's tokens differ with ``salt``, so no cache answers for it."""
    began = time.perf_counter()
    rows: list[list[float]] = [[] for _ in range(streams)]
    stop = asyncio.Event()

    async def decode(number: int) -> None:
        prompt = [1000 + salt + number * 13 + i for i in range(32)]
        sampling = SamplingParams(max_tokens=100_000, temperature=0.0, ignore_eos=True)
        async for event in client.stream(ask(model, TextPrompt(prompt), sampling)):
            if isinstance(event, Delta) and (event.text or event.token_ids):
                rows[number].append(time.perf_counter() - began)
            if stop.is_set():
                return

    tasks = [asyncio.create_task(decode(i)) for i in range(streams)]
    while not all(rows):
        await asyncio.sleep(0.05)
        for task in tasks:
            if task.done():
                task.result()
    await asyncio.sleep(warm_seconds)
    arrived = time.perf_counter() - began
    long = [1000 + (salt * 31 + i * _SEED_WORDS) % 30_000 for i in range(prompt_tokens)]
    only_one = SamplingParams(max_tokens=1, temperature=0.0)
    async for _ in client.stream(ask(model, TextPrompt(long), only_one)):
        pass
    answered = time.perf_counter() - began
    await asyncio.sleep(1.0)
    stop.set()
    await asyncio.gather(*tasks)
    return _result(rows, arrived, answered, prompt_tokens, target)


def _result(
    rows: list[list[float]], arrived: float, answered: float, prompt_tokens: int, target: float
) -> Interference:
    before, during = [], []
    first_all = max(row[0] for row in rows)
    for row in rows:
        for a, b in itertools.pairwise(row):
            if first_all <= a and b < arrived:
                before.append(b - a)
            elif b > arrived and a < answered:
                during.append(b - a)
    return Interference(
        len(rows),
        prompt_tokens,
        target,
        answered - arrived,
        Spread.of(before),
        Spread.of(during),
        rows,
        arrived,
    )
