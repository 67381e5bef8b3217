"""Each model by itself: how fast it answers and what it weighs; targets and budgets follow.

A target is ``TTFT_SCALE`` times the 95th percentile that the model has alone, one request at a
time, over the lengths of the trace (the Prism paper's way to set them, section 7.1). For the time
between tokens the paper takes twice that: on its devices one more decode row is all but free. On
two cores it is not, eight rows take three times as long as one, and ``TPOT_SCALE`` is 5 as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tenfold.bench.fair.drive import Driver
from tenfold.bench.models.point import Before, Machine, Target, device_stats, serving
from tenfold.client.inprocess import InProcessClient
from tenfold.core.errors import ConfigError
from tenfold.fleet.workloads.attainment import between
from tenfold.fleet.workloads.base import Call
from tenfold.fleet.workloads.trace import Asked, Speaker

TTFT_SCALE, TPOT_SCALE = 5.0, 5.0

CALLS = 60
"""Of each model, spread evenly over the lengths of the trace: the first so many of it would leave
the 95th percentile to chance."""

KV_SHARE = 0.25
"""Budget A: all weights, and so much of the peak of keys and values."""

WEIGHT_SHARE = 1 / 3
"""Budget B: so much of all weights."""


@dataclass(slots=True, frozen=True)
class Alone:
    """A model that has the machine to itself. Times are 95th percentiles in seconds; ``weights``,
    ``token`` (keys and values of one) and ``scratch`` are bytes."""

    ttft: float
    tpot: float
    weights: int
    token: int
    scratch: int
    calls: int

    @property
    def target(self) -> Target:
        return Target(TTFT_SCALE * self.ttft, TPOT_SCALE * self.tpot)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"target": asdict(self.target)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Alone:
        return cls(**{key: value for key, value in found.items() if key != "target"})


def measure_alone(
    machine: Machine, rows: Sequence[Asked], before: Before
) -> Iterator[tuple[str, Alone]]:
    """Every member of the fleet with the lengths of the trace, which are alike for all; two names
    of one source are measured once."""
    known: dict[str, Alone] = {}
    typical = representative(rows, CALLS)
    for member in machine.fleet:
        if member.source not in known:
            known[member.source] = asyncio.run(_alone(machine, member.name, typical, before))
        yield member.name, known[member.source]


def representative(rows: Sequence[Asked], count: int) -> list[Asked]:
    """As many of the rows, or all, at even steps of the order by prompt length; by time."""
    ordered = sorted(rows, key=lambda row: (row.prompt, row.at))
    count = min(count, len(ordered))
    return sorted(
        (ordered[int((n + 0.5) * len(ordered) / count)] for n in range(count)),
        key=lambda row: row.at,
    )


async def _alone(machine: Machine, name: str, rows: Sequence[Asked], before: Before) -> Alone:
    async with serving(machine, machine.device(machine.ample), [machine.sources[name]]) as service:
        before(f"{name} alone")
        speaker = Speaker(0)
        warm = [speaker.call(row) for row in rows[: max(1, len(rows) // 10)]]
        calls = [speaker.call(row) for row in rows]
        for call in [*warm, *calls]:
            call.at, call.model = 0.0, name
        driver = Driver(InProcessClient(service), name, machine.vocabularies)
        run = await driver.drive(_in_turn([*warm, *calls]), 600.0)
        facts = service.status(name).facts
        stats = await device_stats(service)
        assert facts is not None
        done = [one for one in run.calls[len(warm) :] if one.finished]
        if not done:
            raise ConfigError(f"{name} answered nothing: {run.calls[-1].error or 'no error'}")
        return Alone(
            float(np.percentile([one.first - one.at for one in done], 95)),
            float(np.percentile([between(one) for one in done], 95)),
            -(-facts.weight_bytes // machine.page_bytes) * machine.page_bytes,
            facts.kv_bytes_per_token,
            stats.scratch_pages * machine.page_bytes,
            len(done),
        )


def _in_turn(calls: Sequence[Call]) -> Iterator[Call]:
    """The first one; each of the others follows from the answer before."""
    for call, after in pairwise(calls):

        def then(_: Call, tokens: list[int], now: float, after: Call = after) -> list[Call]:
            after.at = now
            return [after]

        call.then = then
    return iter(calls[:1])


def budgets(alone: dict[str, Alone], rows: Sequence[Asked], most_running: int) -> dict[str, int]:
    """Bytes of each budget. The peak of keys and values: every model runs as many requests as it
    may, each as long as the 99th percentile of the trace."""
    tokens = float(np.percentile([row.prompt + row.output for row in rows], 99))
    weights = sum(one.weights for one in alone.values())
    peak = sum(tokens * most_running * one.token for one in alone.values())
    scratch = max(one.scratch for one in alone.values())
    return {
        "A": int(weights + KV_SHARE * peak + scratch),
        "B": int(WEIGHT_SHARE * weights + scratch),
        "weights": weights,
        "peak": int(peak),
        "ample": int(weights + peak + 4 * scratch),
    }
