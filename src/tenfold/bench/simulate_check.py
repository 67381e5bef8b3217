"""Is the simulator right? The same workload on this machine and in simulation, policy by policy.

A small model serves a few clients under each policy, in a worker process, HTTP left out. Then the
simulator runs the same calls over the same memory, with step costs that were fitted to this machine
beforehand, and a scheduler that has to learn them as the real one does. Both runs are described by
the same code. What is asked of the simulator: that it ranks the policies as the machine does, where
the machine tells them apart, and that median latencies are within 15 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from math import inf
from pathlib import Path
from typing import Any

from tenfold.bench.fair.cells import Cell, Rival
from tenfold.bench.fair.real import run_real
from tenfold.core.settings import RoutingSettings
from tenfold.fleet.simulator.settings import ClusterSettings, RunSettings, Simulation
from tenfold.fleet.simulator.simulate import simulate
from tenfold.fleet.workloads.outcome import Run, Spread
from tenfold.fleet.workloads.plain import Plain
from tenfold.fleet.workloads.summary import summarise

WARM_UP = 0.15
"""Share of each run that does not count."""

APART = 0.05
"""Two policies are told apart by a measure that differs by so much, relative to the larger."""

LATENCY_WITHIN = 0.15

RIVALS = tuple(Rival(name, name) for name in ("fcfs", "lpm", "vtc", "dlpm"))


def cell() -> Cell:
    """Four clients in closed loops, the first with three times as much under way. Each has three
    prefixes of its own; memory does not hold all of them, so order decides what is cached."""
    workload = Plain(
        clients=4, concurrent=8, scenario="requests", factor=3.0, prefixes=3, prefix=320,
        prompt=40, output=16, spread=0.5,
    )  # fmt: skip
    return Cell("plain", "4 clients", (workload,), "plain-0", kv_bytes=96 << 20, max_running=12)


@dataclass(slots=True)
class Measures:
    """One run. ``good_p50``: median latency of calls of the clients that behave; one that was not
    answered counts with what it had waited by the end."""

    service_rate: float = 0.0
    jain: float = 0.0
    hit_rate: float = 0.0
    latency_p50: float = 0.0
    good_p50: float = 0.0
    finished: int = 0

    @classmethod
    def of(cls, run: Run, bad: str) -> Measures:
        warm_up = WARM_UP * run.seconds
        total = summarise(run, warm_up)
        good = [
            (one.last if one.finished else run.seconds) - one.at
            for one in run.calls
            if one.client != bad and (one.at >= warm_up or not one.finished)
        ]
        return cls(
            total.service_rate,
            total.jain,
            total.hit_rate,
            total.latency.p50,
            Spread.of(good).p50,
            total.finished,
        )


RANKED = ("service_rate", "jain", "hit_rate", "good_p50")


@dataclass(slots=True)
class Check:
    """``swapped``: measure and two policies that the simulator ranks otherwise."""

    real: dict[str, Measures] = field(default_factory=dict)
    simulated: dict[str, Measures] = field(default_factory=dict)
    latency_error: dict[str, float] = field(default_factory=dict)
    swapped: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        within = all(abs(error) <= LATENCY_WITHIN for error in self.latency_error.values())
        return within and not self.swapped

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


async def check(
    path: Path,
    costs: Path,
    *,
    seconds: float = 40.0,
    threads: int = 0,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Check:
    """``costs``: what ``doctor --calibrate`` wrote on this machine."""
    found, on = Check(), replace(cell(), seconds=seconds)
    for rival in RIVALS:
        if progress is not None:
            progress(rival.name)
        real = await run_real(path, on, rival, seed, threads)
        found.real[rival.name] = Measures.of(real, on.bad)
        simulated = simulate(simulation(on, rival, costs, seconds, seed)).run
        found.simulated[rival.name] = Measures.of(simulated, on.bad)
    return compare(found)


def simulation(on: Cell, rival: Rival, costs: Path, seconds: float, seed: int) -> Simulation:
    """The cell as the simulator takes it: SmolLM2-135M with keys and values in float16."""
    cluster = ClusterSettings(
        device=str(costs),
        memory=str(on.kv_bytes),
        parameters=1.0,  # weights have memory of their own on the real machine
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        context=8192,
        max_running=on.max_running,
        learn=True,
    )
    return Simulation(
        cluster,
        rival.schedule(),
        RoutingSettings(policy="round-robin"),
        RunSettings(seconds=seconds, seed=seed),
        list(on.workloads),
    )


def compare(found: Check) -> Check:
    """Fill in the errors and who is ranked otherwise."""
    for name, measured in found.real.items():
        simulated = found.simulated[name].latency_p50
        found.latency_error[name] = (
            simulated / measured.latency_p50 - 1 if measured.latency_p50 else inf
        )
    for measure in RANKED:
        real, model = _column(found.real, measure), _column(found.simulated, measure)
        for a, b in combinations(found.real, 2):
            apart = abs(real[a] - real[b]) > APART * max(real[a], real[b])
            if apart and (real[a] < real[b]) != (model[a] < model[b]):
                found.swapped.append((measure, a, b))
    return found


def _column(side: Mapping[str, Measures], measure: str) -> dict[str, float]:
    return {name: getattr(one, measure) for name, one in side.items()}
