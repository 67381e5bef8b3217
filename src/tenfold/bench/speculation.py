"""What guessing tokens is worth: the same answers with speculation off, always and where it pays.

One service a setting, each with a worker of its own; all stay loaded and take turns, so a round's
ratios compare moments that lie close together. Prompts are computed before the clock starts: what
is timed is decoding, as it is served, HTTP left out.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tenfold.client.base import ask, collect
from tenfold.client.inprocess import InProcessClient
from tenfold.core.settings import DeviceSettings, Speculation
from tenfold.core.types import SamplingParams
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.types import ChatPrompt, TextPrompt
from tenfold.fleet.workers import LocalWorker
from tenfold.scheduling.admission import AdmissionController, Limits

MODES: tuple[Speculation, ...] = ("off", "ngram", "auto")

_LINE = (
    "In year {n} the harbour lights went out one by one, while the keeper counted boats, barrels "
    "and birds on the long grey wall, and nobody came up the hill to ask him why. "
)
_QUESTIONS = (
    "Explain to a child why the sky is blue.",
    "Write a short story about a lighthouse and a fox.",
    "How do I learn to play the piano?",
    "What should I pack for a week in the mountains?",
)

Prompt = TextPrompt | ChatPrompt


@dataclass(slots=True)
class Turn:
    """One setting's turn in one round. ``rate``: output tokens a second, all streams together."""

    rate: float
    drafted: int
    accepted: int


class _Served:
    """A started service of one model under one setting."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.client = InProcessClient(service)

    @classmethod
    async def start(cls, path: Path, mode: Speculation, settings: dict[str, Any]) -> _Served:
        service = Service(
            [DeviceSettings(speculation=mode, **settings)],
            [ModelSource("model", str(path))],
            admission=AdmissionController(Limits.unbounded()),
            make_worker=LocalWorker,
        )
        await service.start()
        return cls(service)

    async def answer(self, prompts: Sequence[Prompt], output: int) -> list[list[int]]:
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        replies = [collect(self.client.stream(ask("model", one, sampling))) for one in prompts]
        return [reply.choices[0].token_ids for reply in await asyncio.gather(*replies)]

    async def drafts(self) -> tuple[int, int]:
        (device,) = await self.service.stats()
        return device.models[0].drafted_tokens, device.models[0].accepted_tokens

    async def turn(self, prompts: Sequence[Prompt], output: int) -> tuple[Turn, list[list[int]]]:
        await self.answer(prompts, 1)
        before = await self.drafts()
        began = time.perf_counter()
        answers = await self.answer(prompts, output)
        seconds = time.perf_counter() - began
        drafted, accepted = (b - a for a, b in zip(before, await self.drafts(), strict=True))
        return Turn(sum(map(len, answers)) / seconds, drafted, accepted), answers


def prompts_of(kind: str, streams: int, round_: int) -> list[Prompt]:
    """``repeat``: a text that has been said three times. ``chat``: an open question."""
    first = round_ * streams
    if kind == "repeat":
        return [TextPrompt(_LINE.format(n=1700 + first + i) * 3) for i in range(streams)]
    return [
        ChatPrompt([{"role": "user", "content": f"{_QUESTIONS[i % 4]} (Request {first + i}.)"}])
        for i in range(streams)
    ]


async def speculate(
    path: Path,
    *,
    settings: dict[str, Any],
    streams: Sequence[int] = (1, 4, 16),
    output: int = 128,
    rounds: int = 3,
) -> dict[str, Any]:
    """Medians of interleaved rounds per kind of prompt and number of streams, ratios to "off", and
    whether all settings said the same. ``settings``: of the device, all but ``speculation``."""
    served = {mode: await _Served.start(path, mode, settings) for mode in MODES}
    try:
        found = {
            kind: {
                str(count): await _rounds(served, kind, count, output, rounds) for count in streams
            }
            for kind in ("repeat", "chat")
        }
    finally:
        for one in served.values():
            await one.client.close()
    return {
        "settings": {"model": path.name, "output": output, "rounds": rounds, **settings},
        "kinds": found,
    }


async def _rounds(
    served: dict[Speculation, _Served], kind: str, count: int, output: int, rounds: int
) -> dict[str, Any]:
    turns: dict[str, list[Turn]] = {mode: [] for mode in served}
    same = True
    for round_ in range(rounds + 1):
        prompts = prompts_of(kind, count, round_)
        answers = []
        order = list(served.items())
        for mode, one in order if round_ % 2 else reversed(order):
            turn, said = await one.turn(prompts, output)
            answers.append(said)
            if round_:  # the first round warms caches, the cost model and the rule
                turns[mode].append(turn)
        same = same and all(said == answers[0] for said in answers)
    return {
        "identical": same,
        "rounds": {mode: [asdict(turn) for turn in all_] for mode, all_ in turns.items()},
        "median": {mode: statistics.median(t.rate for t in all_) for mode, all_ in turns.items()},
        "ratio": {
            mode: statistics.median(
                t.rate / off.rate for t, off in zip(all_, turns["off"], strict=True)
            )
            for mode, all_ in turns.items()
        },
        "accepted": {
            mode: sum(t.accepted for t in all_) / max(1, sum(t.drafted for t in all_))
            for mode, all_ in turns.items()
        },
    }
