"""Attainment over load: which loads are run, where a curve crosses a level, and what follows for
the comparison of one mode with the others.

Loads are requests a second over the whole run, all models together. Knows nothing of how a point is
measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tenfold.bench.estimate import Estimate
from tenfold.fleet.workloads.trace import Asked, replicate

Curve = Mapping[float, float]
"""Attainment by load."""


def sustained(curve: Curve, level: float) -> float:
    """The highest load up to which attainment is at least ``level``, between two loads by linear
    interpolation. 0 where even the lowest load is below it; the highest load measured, where no
    load is."""
    loads = sorted(curve)
    last = 0.0
    for before, load in zip([0.0, *loads], loads, strict=False):
        if curve[load] < level:
            if not last:
                return 0.0
            drop = curve[before] - curve[load]
            return before + (load - before) * (curve[before] - level) / drop
        last = load
    return last


@dataclass(slots=True)
class Rival:
    """One mode's curves, one a seed."""

    name: str
    curves: list[Curve]

    def sustains(self, level: float) -> Estimate:
        return Estimate.of([sustained(curve, level) for curve in self.curves])

    @property
    def mean(self) -> Curve:
        """Over seeds, at the loads that were run with all of them."""
        loads = set.intersection(*(set(curve) for curve in self.curves)) if self.curves else set()
        return {
            load: sum(curve[load] for curve in self.curves) / len(self.curves)
            for load in sorted(loads)
        }

    def falls_below(self, level: float) -> bool:
        """Whether every curve does somewhere; if not, it sustains more than was run."""
        return all(min(curve.values()) < level for curve in self.curves)

    def at(self, load: float) -> Estimate | None:
        """Its attainment at a load that was run with every seed; None where it was not."""
        values = [curve[load] for curve in self.curves if load in curve]
        return Estimate.of(values) if len(values) == len(self.curves) and values else None


def best(rivals: Sequence[Rival], level: float) -> Rival | None:
    """The one that sustains most, on average over seeds; None of nobody."""
    return max(rivals, key=lambda one: one.sustains(level).mean, default=None)


def trace_of_load(
    base: Sequence[Asked], load: float, seconds: float, requests: int, seed: int
) -> list[Asked]:
    """The beginning of a base trace, replicated (or thinned) to ``load`` requests a second: for
    ``seconds``, and for as long as it takes that there are ``requests``."""
    seconds = max(seconds, requests / load)
    part = [row for row in base if row.at < seconds] or [replace(base[0], at=0.0)]
    return replicate(part, load * seconds / len(part), seed)
