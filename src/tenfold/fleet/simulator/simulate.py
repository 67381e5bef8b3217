"""A simulation from its settings to its result."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from heapq import merge
from typing import Any

from tenfold.core.errors import ConfigError
from tenfold.core.messages import ModelOptions, ModelStats
from tenfold.core.settings import Share
from tenfold.core.sizes import parse_bytes
from tenfold.costs.presets import DISK_BANDWIDTH, DeviceCosts, device_costs
from tenfold.fleet.simulator.cluster import Cluster, Progress
from tenfold.fleet.simulator.drift import Drift, Limits, worst_drift
from tenfold.fleet.simulator.homes import Homes, targets
from tenfold.fleet.simulator.settings import Simulation
from tenfold.fleet.simulator.worker import MODEL, HeldModel, SimulatedWorker
from tenfold.fleet.workloads.attainment import Attained, by_model
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
class SimulatedModelResult(Attained):
    """One of several models. ``wakes`` and ``sleeps``: of all its workers; ``homes``: those that
    held it last."""

    wakes: int = 0
    sleeps: int = 0
    homes: tuple[str, ...] = ()


@dataclass(slots=True)
class Result:
    """``about``: where step times come from. ``drift``: of each worker and of all together; of one
    model only. ``models``: of several. ``moves``: from one worker to another."""

    about: str
    run: Run
    summary: RunSummary
    drift: list[Drift]
    steps: int
    preemptions: int
    models: dict[str, SimulatedModelResult] = field(default_factory=dict)
    moves: int = 0

    @property
    def attainment(self) -> float:
        """Of all that was asked of several models, the share inside its target for the first
        token."""
        asked = sum(one.asked for one in self.models.values())
        return sum(one.met for one in self.models.values()) / asked if asked else 0.0

    def to_json(self) -> dict[str, Any]:
        drift = [asdict(one) | {"share": one.share} for one in self.drift]
        return {
            "simulated": True,
            "costs": self.about,
            "summary": asdict(self.summary),
            "drift": drift,
            "steps": self.steps,
            "preemptions": self.preemptions,
        } | self._models_to_json()

    def _models_to_json(self) -> dict[str, Any]:
        if not self.models:
            return {}
        models = {name: asdict(one) for name, one in self.models.items()}
        return {"models": models, "attainment": self.attainment, "moves": self.moves}


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
    held = held_models(simulation)
    costs = device_costs(said.device, said.model)
    memory = _memory(simulation, costs)
    workers = [
        SimulatedWorker(
            f"worker-{n}", simulation, memory, [] if simulation.models else held.values()
        )
        for n in range(said.workers)
    ]
    router = router or routing_policies.get(simulation.routing.policy)(simulation.routing)
    with _few_collections():
        cluster = _cluster(simulation, workers, held, router, progress)
        outcome = cluster.run(calls(simulation), run.seconds, drain=run.drain)
        summary = summarise(outcome, run.warm_up)
        drift = [] if simulation.models else _drift(simulation, workers, outcome)
    homes = cluster.homes
    instances = [one for worker in workers for one in worker.instances.values()]
    return Result(
        costs.about,
        outcome,
        summary,
        drift,
        sum(one.totals.steps for one in instances),
        sum(one.batcher.preemptions for one in instances),
        {} if homes is None else _by_model(simulation, workers, homes, outcome),
        0 if homes is None else homes.moves,
    )


def held_models(simulation: Simulation) -> dict[str, HeldModel]:
    """Every model, or its part, as a worker holds it. Raises ConfigError for a device or a size
    that is none."""
    said = simulation.cluster
    if not simulation.models:
        costs = device_costs(said.device, said.model)
        hidden = said.kv_heads * said.head_dim
        return {MODEL: HeldModel(MODEL, said.model, said.context, hidden, costs.steps)}
    found = {}
    for model in simulation.models:
        costs = device_costs(said.device, model.part)
        host = model.part.weight_bytes / (said.link or costs.link)
        disk = model.part.weight_bytes / (said.disk or DISK_BANDWIDTH)
        options = ModelOptions(
            kv_limit_bytes=parse_bytes(model.kv_limit) // model.parts if model.kv_limit else None,
            ttft_target=targets(model, simulation)[0] or None,
            tpot_target=targets(model, simulation)[1] or None,
            pinned=model.pin,
            ttl=model.ttl,
            floor_bytes=parse_bytes(model.floor) // model.parts if model.floor else 0,
            evict_cost=model.evict_cost,
            asleep=model.asleep,
        )
        hidden = model.kv_heads * model.head_dim
        for name in model.names():
            # A copy for each: what steps cost may be learnt.
            steps = device_costs(said.device, model.part).steps
            found[name] = HeldModel(
                name, model.part, model.context, hidden, steps, host, max(host, disk), options
            )
    return found


def _by_model(
    simulation: Simulation, workers: list[SimulatedWorker], homes: Homes, run: Run
) -> dict[str, SimulatedModelResult]:
    calls = by_model([one for one in run.calls if one.at >= simulation.run.warm_up])
    found = {}
    for name, model in simulation.by_name.items():
        one = found[name] = SimulatedModelResult(homes=homes.of(name))
        one.count(calls.get(name, []), *targets(model, simulation))
        for worker in workers:
            if name in worker.instances:
                told = worker.engine.residents.tell(name, ModelStats(name, ""))
                one.wakes, one.sleeps = one.wakes + told.wakes, one.sleeps + told.sleeps
    return found


def _cluster(
    simulation: Simulation,
    workers: list[SimulatedWorker],
    held: dict[str, HeldModel],
    router: RoutingPolicy,
    progress: Progress | None,
) -> Cluster:
    said = simulation.cluster
    shares = [Share(name, weight) for name, weight in simulation.weights.items()]
    homes = None
    if simulation.models:
        homes = Homes(simulation, {worker.name: worker for worker in workers}, held)
        homes.settle()
    return Cluster(
        workers,
        router,
        block_tokens=said.block_tokens,
        shares=shares,
        limits=None
        if simulation.queue is None
        else admission.Limits.from_settings(simulation.queue),
        router_seconds=said.router_ms / 1e3,
        progress=progress,
        homes=homes,
    )


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
