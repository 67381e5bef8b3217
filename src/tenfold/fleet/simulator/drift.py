"""How uneven the service of clients became, measured from the log alone and set beside the bounds.

Two clients are compared while both have requests waiting: whatever interval one takes of that time,
how much more one of them was served than the other, per unit of weight. Service is what the policy
bills, when it bills it: a prompt, without what was cached (with VTC as published, all of it), when
it is admitted, however many steps its chunks take; output as it comes. The papers bound this for
DLPM by 2 (U + Q), U = w_e L_input + w_q M (arXiv 2501.14312, Theorem 4.1), for VTC by
2 max(w_e L_input, w_q M), on one worker; over K workers D2LPM's is K times DLPM's. M is what memory
holds; for DLPM it is the output that a client can have in flight: what memory was promised for, or
as many longest answers as may run (U').

Output between a call's first and last token is taken as even, so a gap is exact to about a step's
tokens. Does not know what the scheduler thought of all this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tenfold.core.settings import ScheduleSettings
from tenfold.fleet.workloads.outcome import Outcome

AT_ONCE = 1e-6
"""Seconds over which an amount that comes at one moment is spread."""

MOST_CLIENTS = 24
"""Pairs are taken among so many: those that were served most."""

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Drift:
    """The worst pair. ``gap`` and ``bound`` are service per weight; ``bound`` 0: there is none for
    this policy. ``where``: a worker, or "all"."""

    where: str
    clients: tuple[str, str] = ("", "")
    gap: float = 0.0
    bound: float = 0.0

    @property
    def share(self) -> float:
        """Of the bound; 0 where there is none."""
        return self.gap / self.bound if self.bound else 0.0


@dataclass(slots=True, frozen=True)
class Limits:
    """What bounds are made of. ``memory_tokens``: what a worker holds, of whose requests
    ``max_running`` run at a time. A client of weight f counts as U / f. ``transit``: seconds that a
    request may be on its way before a scheduler can know of it."""

    schedule: ScheduleSettings
    max_running: int
    memory_tokens: int
    workers: int = 1
    transit: float = 0.0

    def bound(self, calls: Sequence[Outcome], least_weight: float) -> float:
        """For two clients of this weight, or more. The longest answer seen is taken as the longest
        that was asked for."""
        said = self.schedule
        prompt = said.extend_weight * max((one.prompt_tokens for one in calls), default=0)
        if said.policy == "vtc":
            memory = said.output_weight * self.memory_tokens
            return 2.0 * self.workers * max(prompt, memory) / least_weight
        flight = self.max_running * max((one.output_tokens for one in calls), default=0)
        if said.admission == "reserve":
            flight = min(flight, self.memory_tokens)
        output = said.output_weight * flight
        if said.policy == "dlpm":
            return 2.0 * self.workers * ((prompt + output) / least_weight + said.quantum)
        return 0.0


def worst_drift(
    where: str, calls: Sequence[Outcome], limits: Limits, weights: Mapping[str, float], end: float
) -> Drift:
    """The widest gap between any two clients of these calls that both have requests waiting."""
    of: defaultdict[str, list[Outcome]] = defaultdict(list)
    for one in calls:
        if not one.error:
            of[one.client].append(one)
    workers = {one.worker for one in calls if not one.error}
    ranked = sorted(of, key=lambda name: -sum(one.output_tokens for one in of[name]))
    ledgers = {
        name: _Ledger(of[name], workers, limits, weights.get(name, 1.0), end)
        for name in ranked[:MOST_CLIENTS]
    }
    least = min((weights.get(name, 1.0) for name in of), default=1.0)
    worst = Drift(where, bound=limits.bound(calls, least))
    for f, g in combinations(ledgers, 2):
        gap = _gap(ledgers[f], ledgers[g])
        if gap > worst.gap:
            worst.gap, worst.clients = gap, (f, g)
    return worst


class _Ledger:
    """One client: when it had requests waiting, and its service as a broken line."""

    def __init__(
        self,
        calls: Sequence[Outcome],
        workers: Collection[str],
        limits: Limits,
        weight: float,
        end: float,
    ) -> None:
        said = limits.schedule
        self.waiting = _waiting(calls, workers, limits.transit, end)
        whole = said.policy == "vtc" and said.vtc_charge == "input"
        spans: list[tuple[float, float, float]] = []
        for one in calls:
            if one.started < 0:
                continue
            billed = one.prompt_tokens - (0 if whole else one.cached_tokens)
            spans.append((one.started, one.started, said.extend_weight * billed))
            if one.first >= 0:
                spans.append((one.first, one.last, said.output_weight * one.output_tokens))
        starts, stops, amounts = np.array(spans).reshape(-1, 3).T
        stops = np.maximum(stops, starts + AT_ONCE)
        self.times = np.unique(np.concatenate((starts, stops)))
        self.service = _given(starts, stops, amounts / weight, self.times)

    def at(self, times: Floats) -> Floats:
        if not len(self.times):
            return np.zeros_like(times)
        return np.interp(times, self.times, self.service)


def _waiting(
    calls: Sequence[Outcome], workers: Collection[str], transit: float, end: float
) -> list[tuple[float, float]]:
    """When a client had requests waiting at every worker: what the bounds take for granted."""
    at: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in calls:
        began = one.started if one.started >= 0 else end
        at[one.worker].append((min(one.at + transit, began), began))
    found = [(0.0, end)]
    for worker in workers:
        found = _overlaps(found, _union(at[worker]))
    return found


def _union(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans that only touch stay apart: what was asked as the last waiting request began was not
    there yet when the scheduler looked, which found nothing of this client waiting."""
    found: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return found


def _given(starts: Floats, stops: Floats, amounts: Floats, times: Floats) -> Floats:
    """Service until each of ``times``: every amount spread evenly from its start to its stop."""
    if not len(times):
        return times
    slope = amounts / (stops - starts)
    change = np.zeros(len(times))
    np.add.at(change, np.searchsorted(times, starts), slope)
    np.add.at(change, np.searchsorted(times, stops), -slope)
    return np.concatenate(([0.0], np.cumsum(np.cumsum(change)[:-1] * np.diff(times))))


def _gap(f: _Ledger, g: _Ledger) -> float:
    """Over the times in which both wait: the range of the difference of their services."""
    worst = 0.0
    for low, high in _overlaps(f.waiting, g.waiting):
        inside = np.concatenate((f.times, g.times))
        inside = inside[(inside > low) & (inside < high)]
        times = np.sort(np.concatenate(([low], inside, [high])))
        ahead = f.at(times) - g.at(times)
        worst = max(worst, float(ahead.max() - ahead.min()))
    return worst


def _overlaps(
    a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low < high:
            found.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return found
