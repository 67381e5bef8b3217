"""One timed run: a service with a worker of its own, many models, one mode, one trace.

HTTP is left out, everything else is as served. A model may not fit: that is an outcome, not an
error. Does not know why it is run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tenfold.bench.fair.drive import Driver
from tenfold.bench.models.fleet import Member
from tenfold.bench.models.modes import Mode
from tenfold.client.inprocess import InProcessClient
from tenfold.core.errors import ConfigError, Conflict, OutOfMemory
from tenfold.core.messages import DeviceStats, ModelStats
from tenfold.core.settings import DeviceSettings
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.workers import LocalWorker, Worker
from tenfold.fleet.workloads.attainment import Attained, by_model
from tenfold.fleet.workloads.base import Call
from tenfold.fleet.workloads.outcome import Run
from tenfold.fleet.workloads.trace import Asked, Speaker
from tenfold.scheduling.admission import AdmissionController, Limits

Before = Callable[[str], None]
"""Told what is about to be timed, right before: whoever must be quiet is made so here."""

GRACE = 30.0
"""Seconds behind the last arrival in which what was asked may still be answered."""

LATE = 1.0
"""Seconds that a request may leave after its time; later, and the run was held up: it says nothing
and is done again."""

MOST_TRIES = 5


@dataclass(slots=True, frozen=True)
class Target:
    """Wished seconds to the first token, and between tokens."""

    ttft: float
    tpot: float


@dataclass(slots=True)
class Machine:
    """What stays the same over all points. ``folder``: where packed weights are kept; ``ample``:
    bytes for a model that has a device to itself; ``backend``: of the pages."""

    fleet: Sequence[Member]
    sources: dict[str, ModelSource]
    folder: str = ""
    threads: int = 0
    max_running: int = 16
    page_bytes: int = 2 << 20
    ample: int = 1 << 30
    backend: Literal["anon", "memfd"] = "anon"
    make_worker: Callable[[DeviceSettings], Worker] = LocalWorker

    def device(self, memory: int, mode: Mode | None = None, **changes: Any) -> DeviceSettings:
        """What no model has stays with the device, as on a GPU: a virtual machine's host, asked
        anew, takes longer over a page than all else that waking does."""
        settings = DeviceSettings(
            memory_bytes=memory,
            threads=self.threads,
            page_bytes=self.page_bytes,
            max_running=self.max_running,
            cache_dir=self.folder,
            backend=self.backend,
        )
        if mode is not None:
            residency = mode.residency(low_bytes=memory // 4, high_bytes=memory)
            settings = replace(settings, residency=residency, deadlines=mode.deadlines())
        return replace(settings, **changes)

    @property
    def vocabularies(self) -> dict[str, int]:
        return {one.name: one.vocabulary for one in self.fleet if one.vocabulary}


@dataclass(slots=True)
class ModelPoint(Attained):
    """One model in one run, and what its worker counted of it."""

    wakes: int = 0
    sleeps: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class Point:
    """One run. ``fits``: whether the models could be served at all, ``why``: why not. ``late``: the
    most seconds that a request left after its time."""

    fits: bool = True
    why: str = ""
    seconds: float = 0.0
    asked: int = 0
    met: int = 0
    both: int = 0
    output_rate: float = 0.0
    late: float = 0.0
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
    memory. Raises ConfigError for a machine that is held up all the time."""

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

    for _ in range(MOST_TRIES):
        point = asyncio.run(run())
        if not point.fits or point.late <= LATE:
            return point
    raise ConfigError(
        f"{what}: requests left {point.late:.1f} s late, {MOST_TRIES} times in a row: something "
        "else holds this machine up; stop it and run again"
    )


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
    point = score(run, targets, {one.name: one for one in stats.models})
    asked = sorted(one.at for one in run.calls)
    late = [one.at for one in rows[len(asked) :]][:1]  # of those that never left, the first
    point.late = max(
        [at - row.at for at, row in zip(asked, rows, strict=False)]
        + [rows[-1].at + GRACE - at for at in late]
    )
    return point


def score(run: Run, targets: dict[str, Target], stats: dict[str, ModelStats]) -> Point:
    """What a run says of the targets."""
    point = Point(seconds=run.seconds)
    for name, calls in by_model(run.calls).items():
        mine = point.models[name] = ModelPoint()
        mine.count(calls, targets[name].ttft, targets[name].tpot)
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
