"""Numbers out of a run: rates, percentiles, service over time and Jain's index.

Service that flows is spread evenly between a call's first and last token; a prompt counts when its
first token comes. Does not know how calls were answered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tenfold.fleet.workloads.outcome import (
    INPUT_WEIGHT,
    OUTPUT_WEIGHT,
    ClientSummary,
    Outcome,
    ProgramOutcome,
    Run,
    RunSummary,
    Series,
    Spread,
)
from tenfold.scheduling.fair_shares import jain

Floats = NDArray[np.float64]

BINS = 120
"""Pieces that a run's time is cut into."""

TOUCHING = 1e-9
"""Seconds between an answer and the next call that are no pause."""


def series(run: Run, warm_up: float = 0.0, bins: int = BINS) -> Series:
    """Service over the time from ``warm_up`` on, in so many equal bins."""
    edges = np.linspace(warm_up, run.seconds, bins + 1)
    of: defaultdict[str, list[Outcome]] = defaultdict(list)
    for one in run.calls:
        of[one.client].append(one)
    service, computed = {}, {}
    for name, calls in sorted(of.items()):
        given, cached = _given(calls, edges)
        service[name] = np.diff(given)
        computed[name] = service[name] - INPUT_WEIGHT * np.diff(cached)
    busy = {name: _busy(calls, edges, run.seconds) for name, calls in sorted(of.items())}
    return Series(edges[1:].tolist(), service, computed, busy)


class _Before:
    """Sums of what comes at some times up to each edge."""

    def __init__(self, times: Floats, edges: Floats) -> None:
        self.times = times
        self.edges = edges
        self._order = times.argsort(kind="stable")
        self._places = times[self._order].searchsorted(edges, side="right")

    def sum(self, values: Floats) -> Floats:
        total = np.zeros(len(values) + 1)
        values[self._order].cumsum(out=total[1:])
        return total[self._places]

    def ramp(self, slopes: Floats) -> Floats:
        """What lines that rise from their times on come to at each edge, together."""
        return self.sum(slopes) * self.edges - self.sum(slopes * self.times)


def _given(calls: Sequence[Outcome], edges: Floats) -> tuple[Floats, Floats]:
    """Service given until each of ``edges``, and prompt tokens that came from a cache."""
    seen = [one for one in calls if one.first >= 0]
    columns = [
        (one.first, one.last, one.output_tokens, one.prompt_tokens, one.cached_tokens)
        for one in seen
    ]
    first, last, output, prompt, cached = np.array(columns, dtype=float).reshape(-1, 5).T.copy()
    output *= OUTPUT_WEIGHT
    flows = last > first
    slope = np.divide(output, last - first, out=np.zeros_like(output), where=flows)
    at_once = INPUT_WEIGHT * prompt + np.where(flows, 0.0, output)
    begun = _Before(first, edges)
    if flows.all():
        flowing, ended = begun, _Before(last, edges)
    else:
        flowing, ended = _Before(first[flows], edges), _Before(last[flows], edges)
        slope = slope[flows]
    service = begun.sum(at_once) + flowing.ramp(slope) - ended.ramp(slope)
    return service, begun.sum(cached)


def _busy(calls: Sequence[Outcome], edges: Floats, end: float) -> NDArray[np.bool_]:
    """In which bins a call was asked and not answered all the time."""
    spans = sorted((one.at, one.last if one.finished else end) for one in calls if not one.error)
    covered: list[tuple[float, float]] = []
    for start, stop in spans:
        if covered and start <= covered[-1][1] + TOUCHING:
            covered[-1] = (covered[-1][0], max(covered[-1][1], stop))
        else:
            covered.append((start, stop))
    found = np.zeros(len(edges) - 1, dtype=bool)
    for start, stop in covered:
        low = np.searchsorted(edges, start - TOUCHING, side="left")
        high = np.searchsorted(edges, stop + TOUCHING, side="right") - 1
        found[low:high] = True
    return found


def summarise(run: Run, warm_up: float = 0.0) -> RunSummary:
    """The numbers of a run from ``warm_up`` on. Latencies are of calls asked since then."""
    line = series(run, warm_up)
    contended = line.contended
    bin_seconds = (run.seconds - warm_up) / len(line.ends)
    parts: defaultdict[str, tuple[list[Outcome], list[ProgramOutcome]]]
    parts = defaultdict(lambda: ([], []))
    for call in run.calls:
        parts[call.client][0].append(call)
    for program in run.programs:
        parts[program.client][1].append(program)
    clients = {}
    for name, (calls, programs) in sorted(parts.items()):
        mine = clients[name] = ClientSummary()
        _count(mine, [one for one in calls if one.at >= warm_up], programs, warm_up)
        mine.service = float(np.sum(line.service[name]))
        mine.contended_service = float(np.sum(line.service[name][contended]))
        mine.computed = float(np.sum(line.computed[name]))
        mine.contended_computed = float(np.sum(line.computed[name][contended]))
    total = RunSummary(seconds=run.seconds - warm_up, clients=clients)
    _count(total, [one for one in run.calls if one.at >= warm_up], run.programs, warm_up)
    seconds = max(total.seconds, 1e-9)
    total.hit_rate = total.cached_tokens / max(1, total.prompt_tokens)
    total.service_rate = sum(one.service for one in clients.values()) / seconds
    total.computed_rate = sum(one.computed for one in clients.values()) / seconds
    ended = [one for one in run.calls if one.finished and one.last >= warm_up]
    total.request_rate = len(ended) / seconds
    total.output_rate = sum(one.output_tokens for one in ended) / seconds
    total.contended_seconds = float(np.sum(contended)) * bin_seconds
    total.jain = _evenness(
        one.contended_service if total.contended_seconds else one.service
        for one in clients.values()
    )
    total.computed_jain = _evenness(
        one.contended_computed if total.contended_seconds else one.computed
        for one in clients.values()
    )
    return total


def _evenness(given: Iterable[float]) -> float:
    """Jain's index; 1 where there is nothing to be uneven."""
    found = jain(given)
    return 1.0 if found is None else found


def _count(
    into: RunSummary | ClientSummary,
    calls: Sequence[Outcome],
    programs: Sequence[ProgramOutcome],
    warm_up: float,
) -> None:
    begun = [one for one in calls if one.first >= 0]
    done = [one for one in calls if one.finished]
    into.requests, into.finished = len(calls), len(done)
    into.failed = sum(bool(one.error) for one in calls)
    into.prompt_tokens = sum(one.prompt_tokens for one in begun)
    into.cached_tokens = sum(one.cached_tokens for one in begun)
    into.output_tokens = sum(one.output_tokens for one in calls)
    into.ttft = Spread.of([one.first - one.at for one in begun])
    into.latency = Spread.of([one.last - one.at for one in done])
    into.program_latency = Spread.of(
        [one.ended - one.began for one in programs if one.began >= warm_up]
    )
    if isinstance(into, ClientSummary):
        into.programs = into.program_latency.count
