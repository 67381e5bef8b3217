"""A simulation from its settings to its result."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from heapq import merge
from typing import Any

from tenfold.core.errors import ConfigError
from tenfold.core.settings import Share
from tenfold.core.sizes import parse_bytes
from tenfold.costs.presets import DeviceCosts, device_costs
from tenfold.fleet.simulator.cluster import Cluster, Progress
from tenfold.fleet.simulator.drift import Drift, Limits, worst_drift
from tenfold.fleet.simulator.settings import Simulation
from tenfold.fleet.simulator.worker import SimulatedWorker
from tenfold.fleet.workloads.base import Call
from tenfold.fleet.workloads.outcome import Outcome, Run, RunSummary
from tenfold.fleet.workloads.summary import summarise
from tenfold.scheduling import admission
from tenfold.scheduling.routing.base import RoutingPolicy
from tenfold.scheduling.routing.registry import routing_policies

MOST_WORKERS = 16
"""Drift is measured at so many, the busiest ones."""

MEMORY_SHARE = 0.9
"""Of a preset's memory, where none is given."""


@dataclass(slots=True)
class Result:
    """``about``: where step times come from. ``drift``: of each worker and of all together."""

    about: str
    run: Run
    summary: RunSummary
    drift: list[Drift]
    steps: int
    preemptions: int

    def to_json(self) -> dict[str, Any]:
        drift = [asdict(one) | {"share": one.share} for one in self.drift]
        return {
            "simulated": True,
            "costs": self.about,
            "summary": asdict(self.summary),
            "drift": drift,
            "steps": self.steps,
            "preemptions": self.preemptions,
        }


def simulate(
    simulation: Simulation,
    *,
    router: RoutingPolicy | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run it. ``router``: in place of the one that the settings name. Raises ConfigError."""
    said, run = simulation.cluster, simulation.run
    if said.workers < 1 or not 0 <= run.warm_up < run.seconds:
        raise ConfigError(
            f"{said.workers} workers and a warm-up of {run.warm_up:g} of {run.seconds:g} seconds: "
            "there must be a worker, and time left behind the warm-up"
        )
    costs = device_costs(said.device, said.model)
    memory = _memory(simulation, costs)
    workers = [
        SimulatedWorker(f"worker-{n}", said, simulation.schedule, costs.steps, memory)
        for n in range(said.workers)
    ]
    router = router or routing_policies.get(simulation.routing.policy)(simulation.routing)
    with _few_collections():
        outcome = _run(simulation, workers, router, progress)
    return Result(
        costs.about,
        outcome,
        summarise(outcome, run.warm_up),
        _drift(simulation, workers, outcome),
        sum(worker.instance.totals.steps for worker in workers),
        sum(worker.instance.batcher.preemptions for worker in workers),
    )


def _run(
    simulation: Simulation,
    workers: list[SimulatedWorker],
    router: RoutingPolicy,
    progress: Progress | None,
) -> Run:
    said, run = simulation.cluster, simulation.run
    shares = [Share(name, weight) for name, weight in simulation.weights.items()]
    cluster = Cluster(
        workers,
        router,
        block_tokens=said.block_tokens,
        shares=shares,
        limits=None
        if simulation.queue is None
        else admission.Limits.from_settings(simulation.queue),
        router_seconds=said.router_ms / 1e3,
        progress=progress,
    )
    return cluster.run(calls(simulation), run.seconds, drain=run.drain)


@contextmanager
def _few_collections() -> Iterator[None]:
    """Millions of small objects come and go here, next to none of them in cycles: looking for those
    as often as Python does takes a fifth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def calls(simulation: Simulation) -> Iterator[Call]:
    """What all workloads ask by themselves, by time. Each draws from a seed of its own."""
    run = simulation.run
    streams = [
        workload.calls(1000 * run.seed + number, run.seconds)
        for number, workload in enumerate(simulation.workloads)
    ]
    return merge(*streams, key=lambda call: call.at)


def _memory(simulation: Simulation, costs: DeviceCosts) -> int:
    """Bytes of a worker."""
    said = simulation.cluster
    if said.memory:
        return parse_bytes(said.memory)
    if not costs.memory_bytes:
        raise ConfigError(f"how much memory {said.device} has is not known: set cluster.memory")
    return int(MEMORY_SHARE * costs.memory_bytes)


def _drift(simulation: Simulation, workers: list[SimulatedWorker], run: Run) -> list[Drift]:
    """Of the busiest workers, and of all of them together."""
    tokens = workers[0].device.kv_bytes // simulation.cluster.kv_token_bytes
    most = simulation.cluster.max_running

    def measure(where: str, mine: list[Outcome], count: int) -> Drift:
        limits = Limits(simulation.schedule, most, tokens, count)
        return worst_drift(where, mine, limits, simulation.weights, run.seconds)

    of: defaultdict[str, list[Outcome]] = defaultdict(list)
    for one in run.calls:
        of[one.worker].append(one)
    busiest = sorted(workers, key=lambda worker: -len(of[worker.name]))[:MOST_WORKERS]
    found = [measure(worker.name, of[worker.name], 1) for worker in busiest]
    return found if len(workers) == 1 else [*found, measure("all", run.calls, len(workers))]
