"""What became of calls, as their clients saw it, and what that says about fairness.

The same numbers whether a simulated cluster answered or a real one. Times are seconds since the
run began. Does not know who answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
"""Service as clients see it: every prompt token, cached or not, and twice every output token."""


@dataclass(slots=True, eq=False)
class Outcome:
    """One call. ``started``: its prefill began; ``first``: its first token; ``last``: its latest
    one, with which it ended if ``finished``. Negative: that never came."""

    id: str
    client: str
    program: str
    at: float
    prompt_tokens: int
    worker: str = ""
    started: float = -1.0
    first: float = -1.0
    last: float = -1.0
    cached_tokens: int = 0
    output_tokens: int = 0
    finished: bool = False
    error: str = ""
    model: str = ""


@dataclass(slots=True)
class ProgramOutcome:
    """A program that was answered to its last call."""

    name: str
    client: str
    began: float
    ended: float


@dataclass(slots=True)
class Run:
    """All that a run showed. ``seconds``: when it was stopped, calls under way or not."""

    seconds: float
    calls: list[Outcome] = field(default_factory=list)
    programs: list[ProgramOutcome] = field(default_factory=list)


def _percentile(ranked: Sequence[float], share: float) -> float:
    """Of ascending values, between two by linear interpolation."""
    place = share * (len(ranked) - 1)
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)


@dataclass(slots=True)
class Spread:
    """Percentiles of one measure, in its own unit."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    worst: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values:
            return cls()
        ranked = sorted(values)
        p50, p90, p99 = (_percentile(ranked, share) for share in (0.5, 0.9, 0.99))
        return cls(len(ranked), sum(ranked) / len(ranked), p50, p90, p99, ranked[-1])


@dataclass(slots=True)
class ClientSummary:
    """One client's run. ``service``: as it sees it; ``computed``: what was computed for it, cached
    prefixes left out. ``contended_service`` and ``contended_computed``: the same while every client
    had something to do."""

    requests: int = 0
    finished: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    service: float = 0.0
    computed: float = 0.0
    contended_service: float = 0.0
    contended_computed: float = 0.0
    programs: int = 0
    ttft: Spread = field(default_factory=Spread)
    latency: Spread = field(default_factory=Spread)
    program_latency: Spread = field(default_factory=Spread)


@dataclass(slots=True)
class RunSummary:
    """A whole run between warm-up and end.

    ``service_rate`` is client-view service a second. ``jain`` is that of the clients' service over
    the contended period: the time in which every client had a request asked and not answered;
    ``computed_jain``: of what was computed for them in it. ``contended_seconds``: how long that
    was; with 0, both are over the whole run."""

    seconds: float = 0.0
    requests: int = 0
    finished: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    hit_rate: float = 0.0
    request_rate: float = 0.0
    output_rate: float = 0.0
    service_rate: float = 0.0
    computed_rate: float = 0.0
    jain: float = 1.0
    computed_jain: float = 1.0
    contended_seconds: float = 0.0
    ttft: Spread = field(default_factory=Spread)
    latency: Spread = field(default_factory=Spread)
    program_latency: Spread = field(default_factory=Spread)
    clients: dict[str, ClientSummary] = field(default_factory=dict)


@dataclass(slots=True)
class Series:
    """Client-view service over time: ``service[client][i]`` is what came in bin i, which ends at
    ``ends[i]``; ``computed`` leaves out what was cached. ``busy[client][i]``: all through it
    something was asked and not answered."""

    ends: list[float]
    service: dict[str, NDArray[np.float64]]
    computed: dict[str, NDArray[np.float64]]
    busy: dict[str, NDArray[np.bool_]]

    @property
    def contended(self) -> NDArray[np.bool_]:
        """Bins in which every client was busy."""
        if not self.busy:
            return np.zeros(len(self.ends), dtype=bool)
        everybody: NDArray[np.bool_] = np.logical_and.reduce(list(self.busy.values()))
        return everybody
