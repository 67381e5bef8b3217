"""This machine's step costs: a real model serves a short standard workload, and logs its steps.

The model is in a worker process of its own, as served; HTTP is left out. Traffic goes through the
sizes of steps that serving makes: from one sequence to many, prompts of all lengths, from the cache
and not. What a step costs is the time until the next one begins, where the engine stays busy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from tenfold.bench.fair.drive import Driver
from tenfold.bench.report import machine
from tenfold.client.inprocess import InProcessClient
from tenfold.core.messages import ModelOptions
from tenfold.core.settings import DeviceSettings
from tenfold.costs.calibrated import Calibrated, Step, fit_costs
from tenfold.engine.steplog import LoggedStep, read_steps
from tenfold.fleet.served import ModelSource
from tenfold.fleet.service import Service
from tenfold.fleet.workers import LocalWorker
from tenfold.fleet.workloads.plain import Plain
from tenfold.scheduling.admission import AdmissionController, Limits

STREAMS = (1, 2, 4, 8, 16)
"""Requests under way, one after another."""

Progress = Callable[[float], None]
"""Told how many seconds are behind it."""


@dataclass(slots=True)
class Standard:
    """The standard workload: for each number of streams so many seconds, half of them with short
    prompts and half with long ones; lengths in tokens are drawn widely around these means."""

    seconds: float = 10.0
    prefix: int = 256
    short: int = 40
    long: int = 256
    output: int = 16

    def halves(self, streams: int) -> list[Plain]:
        return [
            Plain(
                name=f"{prompt} of {streams}",
                clients=1,
                concurrent=streams,
                prefixes=6,
                prefix=self.prefix,
                prompt=prompt,
                output=self.output,
                spread=0.95,
            )
            for prompt in (self.short, self.long)
        ]


async def calibrate(
    path: Path,
    *,
    name: str = "",
    threads: int = 0,
    memory_bytes: int = 2 << 30,
    kv_bytes: int = 256 << 20,
    standard: Standard | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """About a minute. ``name``: of the model, for the file. Raises what loading raises, and
    ConfigError when too few steps were made."""
    standard = standard or Standard()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "steps.jsonl"
        settings = DeviceSettings(
            threads=threads, memory_bytes=memory_bytes, step_log=str(log), max_running=STREAMS[-1]
        )
        await _serve(path, settings, kv_bytes, standard, progress)
        steps = list(logged(log))
    found = fit_costs(steps, model=name or path.stem, machine=str(machine()["cpu"]))
    return replace(found, threads=threads)


async def _serve(
    path: Path,
    settings: DeviceSettings,
    kv_bytes: int,
    standard: Standard,
    progress: Progress | None,
) -> None:
    service = Service(
        [settings],
        [ModelSource("model", str(path), ModelOptions(kv_limit_bytes=kv_bytes))],
        admission=AdmissionController(Limits.unbounded()),
        make_worker=LocalWorker,
    )
    await service.start()
    try:
        for number, streams in enumerate(STREAMS):
            for plain in standard.halves(streams):
                calls = plain.calls(number, standard.seconds / 2)
                await Driver(InProcessClient(service), "model").drive(calls, standard.seconds / 2)
            if progress is not None:
                progress((number + 1) * standard.seconds)
    finally:
        await service.close()


def logged(log: Path) -> Iterator[Step]:
    """The steps of a log with what each cost, those with something to compute."""
    steps = list(read_steps(log))
    for step, after in pairwise(steps):
        if busy := _busy_until(step, after):
            yield Step(step.shape, busy)


def _busy_until(step: LoggedStep, after: LoggedStep) -> float:
    """Seconds until the next step began, if a sequence is in both: then nothing was waited for. 0:
    that cannot be told."""
    names = {id for id, _, _ in step.slices}
    if not any(id in names for id, _, _ in after.slices):
        return step.seconds + step.around
    return after.at - step.at
