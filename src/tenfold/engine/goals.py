"""Targets of one model's requests: what they are, and how many were kept.

TTFT is measured from arrival to the first token as the worker made it, TPOT is (end - first token)
/ (n - 1) for n tokens. Does not know why a request was early or late.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from tenfold.core.messages import ModelOptions, ModelStats, RequestFailed, StepDone, TokenOutput
from tenfold.core.settings import DeadlineSettings
from tenfold.core.types import EngineRequest


@dataclass(slots=True)
class Goal:
    """One request's targets, None for none, and how it is doing."""

    arrival: float
    ttft: float | None
    tpot: float | None
    first: float | None = None
    last: float = 0.0
    tokens: int = 0

    def ttft_kept(self, now: float) -> bool | None:
        """None: there is no target, or it is still open."""
        if self.ttft is None or (self.first is None and now <= self.arrival + self.ttft):
            return None
        return self.first is not None and self.first - self.arrival <= self.ttft

    def tpot_kept(self) -> bool | None:
        """Of a request that is over. None: there is no target, or no second token."""
        if self.tpot is None or self.first is None or self.tokens < 2:
            return None
        return (self.last - self.first) / (self.tokens - 1) <= self.tpot


class Goals:
    """The targets of a model's live requests, and the counts of those that are over.

    ``ttft`` and ``tpot``: for requests that say nothing, in seconds; 0 is none. ``unanswered``:
    requests with a TTFT target whose first token has not come.
    """

    def __init__(self, ttft: float = 0.0, tpot: float = 0.0) -> None:
        self.ttft = ttft or None
        self.tpot = tpot or None
        self.unanswered = 0
        self.deferred = 0
        """Requests that are late, by the latest schedule."""
        self._live: dict[str, Goal] = {}
        self._counts = dict.fromkeys(_COUNTS, 0)

    @classmethod
    def of(cls, device: DeadlineSettings, model: ModelOptions) -> Goals:
        """A model's own targets, and the device's where it has none."""
        ttft = device.ttft if model.ttft_target is None else model.ttft_target
        tpot = device.tpot if model.tpot_target is None else model.tpot_target
        return cls(ttft, tpot)

    def ttft_of(self, request: EngineRequest) -> float | None:
        return (self.ttft if request.ttft_target is None else request.ttft_target) or None

    def tpot_of(self, request: EngineRequest) -> float | None:
        return (self.tpot if request.itl_target is None else request.itl_target) or None

    def step_wish(self, request: EngineRequest, most: float) -> float | None:
        """What the request wants of the time of steps: its own wish, or its model's target where
        that is stricter than ``most``, the device's."""
        if request.itl_target is not None or self.tpot is None:
            return request.itl_target
        return min(self.tpot, most)

    def get(self, request_id: str) -> Goal | None:
        """The targets of a live request; None where it has none."""
        return self._live.get(request_id)

    def open_targets(self) -> set[float]:
        """TTFT targets of live requests."""
        return {goal.ttft for goal in self._live.values() if goal.ttft is not None}

    def token_due(self, request_id: str) -> float:
        """When the next token of an answer is due for its TPOT target to be kept so far: one that
        was fast may pause. Minus infinity where there is no such target."""
        goal = self._live.get(request_id)
        if goal is None or goal.tpot is None or goal.first is None:
            return -inf
        return goal.first + goal.tokens * goal.tpot

    def next_due(self, now: float) -> float:
        """When the next first token is due that is not late yet; infinity for none."""
        found = (arrival + ttft for arrival, ttft in self._unanswered())
        return min((due for due in found if due >= now), default=inf)

    def overdue_at(self, max_wait: float) -> float:
        """When the first request without a first token has waited ``max_wait`` times its target;
        infinity for none."""
        found = (arrival + max_wait * ttft for arrival, ttft in self._unanswered())
        return min(found, default=inf)

    def _unanswered(self) -> Iterator[tuple[float, float]]:
        """Arrival and TTFT target of the requests whose first token has not come."""
        if not self.unanswered:
            return
        for goal in self._live.values():
            if goal.ttft is not None and goal.first is None:
                yield goal.arrival, goal.ttft

    def watch(self, request: EngineRequest) -> None:
        """The request is queued. The first token of one that is continued has come already."""
        ttft = None if request.continued else self.ttft_of(request)
        tpot = self.tpot_of(request)
        if ttft is not None or tpot is not None:
            self._live[request.id] = Goal(request.arrival, ttft, tpot)
            self.unanswered += ttft is not None

    def heard(self, done: StepDone) -> None:
        """What a step brought."""
        if self._live:
            for output in done.outputs:
                self._saw(output, done.at)

    def _saw(self, output: TokenOutput, at: float) -> None:
        goal = self._live.get(output.request_id)
        if goal is None:
            return
        if output.token_ids:
            if goal.first is None:
                goal.first = at
                self.unanswered -= goal.ttft is not None
            goal.tokens += len(output.token_ids)
            goal.last = at
        if output.finish:
            self._over(output.request_id, at, ended=True)

    def failed(self, failure: RequestFailed) -> None:
        """The request ended without its answer: what it had not kept by now it has missed."""
        goal = self._live.get(failure.request_id)
        if goal is not None:
            self._count("ttft", goal.ttft_kept(inf))
            if goal.tpot is not None and goal.first is not None:
                self._count("tpot", False)
            self._forget(failure.request_id)

    def gone(self, request_id: str, now: float) -> None:
        """Nobody waits for the request any more. Its TTFT target counts if it is decided."""
        if request_id in self._live:
            self._over(request_id, now, ended=False)

    def _over(self, request_id: str, now: float, *, ended: bool) -> None:
        goal = self._live[request_id]
        first = goal.ttft_kept(inf if ended else now)
        self._count("ttft", first)
        if ended:
            rest = goal.tpot_kept()
            self._count("tpot", rest)
            self._counts["both_met"] += first is not False and rest is not False
        self._forget(request_id)

    def _count(self, what: str, kept: bool | None) -> None:
        if kept is not None:
            self._counts[f"{what}_{'met' if kept else 'missed'}"] += 1

    def _forget(self, request_id: str) -> None:
        goal = self._live.pop(request_id)
        self.unanswered -= goal.ttft is not None and goal.first is None

    def fill(self, stats: ModelStats) -> None:
        """Write the counts down."""
        stats.deferred = self.deferred
        for name, value in self._counts.items():
            setattr(stats, name, value)


_COUNTS = ("ttft_met", "ttft_missed", "tpot_met", "tpot_missed", "both_met")
