"""The simulated part: 58 models of the sizes that the Prism paper serves, and how many devices each
way of sharing memory needs for them.

Sizes and parts are as published (arXiv 2505.04021, section 7.1: 43 models of 1 to 3 billion
parameters, 8 of 4 to 8, 3 of 9 to 30, 4 of 31 to 70 in four or eight parts); which models stand for
a size is our choice, as are the rate and the trace. A target is five times the 95th percentile that
the paper gives for a model alone, 0.04 s for the smallest to 0.13 s for the largest, by the
logarithm of the size between them. Everything here is simulated, on rooflines of an H100.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from tenfold.bench.models.modes import ELASTIC
from tenfold.core.errors import ConfigError
from tenfold.core.settings import (
    DeadlineSettings,
    MemoryMode,
    PlacementSettings,
    ResidencySettings,
    RoutingSettings,
    ScheduleSettings,
)
from tenfold.costs.shapes import shape
from tenfold.fleet.simulator.settings import (
    ClusterSettings,
    ModelSettings,
    RunSettings,
    Simulation,
)
from tenfold.fleet.simulator.simulate import Result, simulate
from tenfold.fleet.workloads.bursty import Bursty

ALONE = (0.04, 0.13)
"""Seconds to the first token of the smallest and the largest model alone, as published."""

SCALE = 5.0

NEAR = 0.99

COUNTS = (8, 9, 10, 11, 12, 13, 14, 16, 18, 20, 24, 28, 32, 40, 48, 64)
"""Numbers of devices that are tried; eight parts need eight."""

SECONDS, WARM_UP, RATE, BURST = 180.0, 30.0, 100.0, 60.0

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.0)
"""Parts by which pressure must fall for a move; 0: learnt."""

THRESHOLD_DEVICES = 9


@dataclass(slots=True, frozen=True)
class SimulatedMode:
    name: str
    memory: MemoryMode
    placement: PlacementSettings
    deadlines: DeadlineSettings


def _modes() -> list[SimulatedMode]:
    static = PlacementSettings(policy="static")
    return [
        SimulatedMode(
            ELASTIC, "elastic", PlacementSettings(policy="balanced"), DeadlineSettings(order="mh")
        ),
        SimulatedMode("quota", "quota", static, DeadlineSettings(order="fifo")),
        SimulatedMode("swap", "swap", static, DeadlineSettings(order="edf")),
    ]


def fleet_58() -> list[ModelSettings]:
    """The models: name, how many, of what shape, in how many parts."""
    table = (
        ("llama-1b", 15, "llama3.2-1b", 1),
        ("qwen-1.5b", 14, "qwen2.5-1.5b", 1),
        ("llama-3b", 14, "llama3.2-3b", 1),
        ("qwen-7b", 4, "qwen2.5-7b", 1),
        ("llama-8b", 4, "llama3.1-8b", 1),
        ("qwen-14b", 2, "qwen2.5-14b", 1),
        ("gemma-27b", 1, "gemma2-27b", 1),
        ("qwen-32b", 2, "qwen2.5-32b", 4),
        ("llama-70b-tp4", 1, "llama3.1-70b", 4),
        ("llama-70b-tp8", 1, "llama3.1-70b", 8),
    )
    return [
        ModelSettings(
            **shape(kind)._asdict(), name=name, count=count, shape=kind, parts=parts,
            ttft=target(shape(kind).parameters),
        )
        for name, count, kind, parts in table
    ]  # fmt: skip


def target(parameters: float) -> float:
    """Seconds to the first token for a model of this size."""
    small, large = log(1.2e9), log(70e9)
    place = min(1.0, max(0.0, (log(parameters) - small) / (large - small)))
    return float(SCALE * ALONE[0] * (ALONE[1] / ALONE[0]) ** place)


def simulation(
    mode: SimulatedMode,
    devices: int,
    seed: int,
    *,
    models: Sequence[ModelSettings] | None = None,
    rate: float = RATE,
    seconds: float = SECONDS,
) -> Simulation:
    """Of so many devices. ``models``: the 58 where none are given."""
    chosen = list(models or fleet_58())
    names = tuple(name for model in chosen for name in model.names())
    return Simulation(
        ClusterSettings(workers=devices, device="h100", max_running=128),
        ScheduleSettings(),
        RoutingSettings(policy="least-loaded"),
        RunSettings(seconds=seconds, warm_up=seconds * WARM_UP / SECONDS, seed=seed),
        [Bursty(named=names, rate=rate, burst=BURST)],
        models=chosen,
        residency=ResidencySettings(mode=mode.memory),
        deadlines=mode.deadlines,
        placement=mode.placement,
    )


def measure_devices(
    seeds: int, known: Collection[str], say: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For every mode and seed how many devices are needed; ``known`` ones are left out."""
    for seed in range(seeds):
        for mode in _modes():
            key = f"{mode.name}|{seed}"
            if key not in known:

                def attains(devices: int, mode: SimulatedMode = mode, seed: int = seed) -> float:
                    found = run(simulation(mode, devices, seed))
                    share = 0.0 if found is None else found.attainment
                    moves = 0 if found is None else found.moves
                    fits = "" if found is not None else ", does not fit"
                    say(f"simulated: {mode.name}, {devices} devices, seed {seed}: {share:.2%}, "
                        f"{moves} moves{fits}")  # fmt: skip
                    return share

                yield key, search(attains, COUNTS)


def run(made: Simulation) -> Result | None:
    """None where the models do not fit."""
    try:
        return simulate(made)
    except ConfigError:
        return None


def search(attains: Callable[[int], float], counts: Sequence[int]) -> dict[str, Any]:
    """The fewest devices with which ``NEAR`` is reached, by halving: more devices are taken to be
    no worse. ``needed`` is None where even the most do not do; ``attainment``: of all that were
    tried."""
    found: dict[int, float] = {}
    low, high = 0, len(counts)
    while low < high:
        middle = (low + high) // 2
        found[counts[middle]] = attains(counts[middle])
        if found[counts[middle]] >= NEAR:
            high = middle
        else:
            low = middle + 1
    needed = counts[low] if low < len(counts) else None
    return {"needed": needed, "attainment": {str(n): found[n] for n in sorted(found)}}


def measure_thresholds(
    seeds: int, known: Collection[str], say: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ours on one number of devices, with the threshold of placement swept."""
    ours = _modes()[0]
    for threshold in THRESHOLDS:
        for seed in range(seeds):
            key = f"{threshold:g}|{THRESHOLD_DEVICES}|{seed}"
            if key in known:
                continue
            made = simulation(ours, THRESHOLD_DEVICES, seed)
            made.placement = PlacementSettings(policy="balanced", threshold=threshold)
            found = simulate(made)
            say(f"tau {threshold:g}, seed {seed}: {found.attainment:.2%}, {found.moves} moves")
            yield key, {"attainment": found.attainment, "moves": found.moves}
