"""One timed run: a service with a worker of its own, many models, one mode, one trace.

HTTP is left out, everything else is as served. A model may not fit: that is an outcome, not an
error. Does not know why it is run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tenfold.bench.fair.drive import Driver
from tenfold.bench.models.fleet import Member
from tenfold.bench.models.modes import Mode
from tenfold.client.inprocess import InProcessClient
from tenfold.core.errors import Conflict, OutOfMemory
from tenfold.core.messages import DeviceStats, ModelStats
from tenfold.core.settings import DeviceSettings
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.workers import LocalWorker, Worker
from tenfold.fleet.workloads.base import Call
from tenfold.fleet.workloads.outcome import Outcome, Run, Spread
from tenfold.fleet.workloads.trace import Asked, Speaker
from tenfold.scheduling.admission import AdmissionController, Limits

Before = Callable[[str], None]
"""Told what is about to be timed, right before: whoever must be quiet is made so here."""

GRACE = 30.0
"""Seconds behind the last arrival in which what was asked may still be answered."""


@dataclass(slots=True, frozen=True)
class Target:
    """Wished seconds to the first token, and between tokens."""

    ttft: float
    tpot: float


@dataclass(slots=True)
class Machine:
    """What stays the same over all points. ``folder``: where packed weights are kept."""

    fleet: Sequence[Member]
    sources: dict[str, ModelSource]
    folder: str = ""
    threads: int = 0
    max_running: int = 16
    page_bytes: int = 2 << 20
    make_worker: Callable[[DeviceSettings], Worker] = LocalWorker

    def device(self, memory: int, mode: Mode | None = None, **changes: Any) -> DeviceSettings:
        settings = DeviceSettings(
            memory_bytes=memory,
            threads=self.threads,
            page_bytes=self.page_bytes,
            max_running=self.max_running,
            cache_dir=self.folder,
        )
        if mode is not None:
            settings = replace(settings, residency=mode.residency(), deadlines=mode.deadlines())
        return replace(settings, **changes)

    @property
    def vocabularies(self) -> dict[str, int]:
        return {one.name: one.vocabulary for one in self.fleet if one.vocabulary}


@dataclass(slots=True)
class ModelPoint:
    """One model in one run. ``met``: requests whose first token came within the target; ``both``:
    and whose later tokens did. What was not answered, or was refused, is missed."""

    asked: int = 0
    met: int = 0
    both: int = 0
    failed: int = 0
    unanswered: int = 0
    ttft: Spread = field(default_factory=Spread)
    tpot: Spread = field(default_factory=Spread)
    wakes: int = 0
    sleeps: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class Point:
    """One run. ``fits``: whether the models could be served at all, ``why``: why not."""

    fits: bool = True
    why: str = ""
    seconds: float = 0.0
    asked: int = 0
    met: int = 0
    both: int = 0
    output_rate: float = 0.0
    models: dict[str, ModelPoint] = field(default_factory=dict)

    @property
    def attainment(self) -> float:
        """Of all that was asked, the share inside its target for the first token."""
        return self.met / self.asked if self.asked else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"attainment": self.attainment}


@asynccontextmanager
async def serving(
    machine: Machine, device: DeviceSettings, models: Iterable[ModelSource]
) -> AsyncIterator[Service]:
    """A service that is up. Raises what it raises where it cannot start."""
    service = Service(
        [device],
        models,
        admission=AdmissionController(Limits.unbounded()),
        make_worker=machine.make_worker,
    )
    try:
        await service.start()
        yield service
    finally:
        await service.close()


async def device_stats(service: Service) -> DeviceStats:
    """Of the only worker; asked again where a long step kept it from answering."""
    [supervisor] = service.supervisors.values()
    while (found := await supervisor.stats()) is None:
        await asyncio.sleep(0.1)
    return found


def run_point(
    machine: Machine,
    device: DeviceSettings,
    targets: dict[str, Target],
    rows: Sequence[Asked],
    *,
    seed: int = 0,
    asleep: bool = False,
    before: Before,
    what: str,
) -> Point:
    """Serve all models and ask what the trace says. ``asleep``: they start without their weights in
    memory."""

    async def run() -> Point:
        models = [
            _with_targets(machine.sources[one.name], targets[one.name], asleep)
            for one in machine.fleet
        ]
        try:
            async with serving(machine, device, models) as service:
                before(what)
                return await _timed(service, machine, targets, rows, seed)
        except (OutOfMemory, Conflict) as error:
            return Point(fits=False, why=error.message)

    return asyncio.run(run())


def _with_targets(source: ModelSource, target: Target, asleep: bool) -> ModelSource:
    options = replace(
        source.options, ttft_target=target.ttft, tpot_target=target.tpot, asleep=asleep
    )
    return replace(source, options=options)


async def _timed(
    service: Service,
    machine: Machine,
    targets: dict[str, Target],
    rows: Sequence[Asked],
    seed: int,
) -> Point:
    speaker = Speaker(seed)
    calls: list[Call] = [speaker.call(row) for row in rows]  # made up before the clock runs
    driver = Driver(InProcessClient(service), "", machine.vocabularies)
    run = await driver.drive(iter(calls), rows[-1].at + GRACE)
    stats = await device_stats(service)
    return score(run, targets, {one.name: one for one in stats.models})


def score(run: Run, targets: dict[str, Target], stats: dict[str, ModelStats]) -> Point:
    """What a run says of the targets."""
    of: dict[str, list[Outcome]] = {}
    for one in run.calls:
        of.setdefault(one.model, []).append(one)
    point = Point(seconds=run.seconds)
    for name, calls in sorted(of.items()):
        mine = point.models[name] = _model_point(calls, targets[name])
        if name in stats:
            told = stats[name]
            mine.wakes, mine.sleeps = told.wakes, told.sleeps
            mine.preemptions = told.preemptions
        point.asked += mine.asked
        point.met += mine.met
        point.both += mine.both
    tokens = sum(one.output_tokens for one in run.calls)
    point.output_rate = tokens / run.seconds if run.seconds else 0.0
    return point


def _model_point(calls: Sequence[Outcome], target: Target) -> ModelPoint:
    begun = [one for one in calls if one.first >= 0]
    met = [one for one in begun if one.first - one.at <= target.ttft and not one.error]
    return ModelPoint(
        asked=len(calls),
        met=len(met),
        both=sum(one.finished and between(one) <= target.tpot for one in met),
        failed=sum(bool(one.error) for one in calls),
        unanswered=sum(not one.error and one.first < 0 for one in calls),
        ttft=Spread.of([one.first - one.at for one in begun]),
        tpot=Spread.of([between(one) for one in calls if one.finished]),
    )


def between(one: Outcome) -> float:
    """Seconds between its tokens, on average; 0 for an answer of one."""
    return (one.last - one.first) / (one.output_tokens - 1) if one.output_tokens > 1 else 0.0
