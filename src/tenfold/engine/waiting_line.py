"""What can be said of a model's waiting requests: why one was chosen, who is next, who hurries.

Changes no order: that is the policy's. Does not know memory, tokens or steps.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush, nsmallest
from itertools import count
from math import inf

from tenfold.core.messages import ModelSchedule, QueuePlace
from tenfold.kvcache.waiting import MatchIndex
from tenfold.scheduling.base import Policy, Waiting

CHOSEN = 20
"""Admissions that can still be explained."""

URGENT = 8
"""Deadlines that are looked at for one that could be met."""


class WaitingLine:
    """A look at one policy's queue."""

    def __init__(self, policy: Policy, matches: MatchIndex) -> None:
        self._policy = policy
        self._matches = matches
        self.explains = True
        """Whether anybody may ask why a request was chosen."""
        self._chosen: deque[QueuePlace] = deque(maxlen=CHOSEN)
        self._deadlines: list[tuple[float, int, Waiting]] = []
        self._serial = count()
        self._here: dict[str, int] = {}

    def joined(self, w: Waiting) -> None:
        """A request waits (again)."""
        if w.deadline is not None:
            self._here[w.id] = next(self._serial)
            heappush(self._deadlines, (w.deadline, self._here[w.id], w))

    def left(self, w: Waiting) -> None:
        """A request waits no more."""
        self._here.pop(w.id, None)

    def chose(self, w: Waiting, now: float) -> None:
        """The request is about to be admitted."""
        if self.explains:
            self._chosen.appendleft(self._place(w, now))
        self.left(w)

    def expire(self, now: float) -> None:
        """Forget deadlines that have passed."""
        while self._deadlines and self._deadlines[0][0] < now:
            heappop(self._deadlines)

    def urgency(self) -> float:
        """The earliest deadline among requests whose clients may run; infinity if there is none."""
        if len(self._deadlines) > 2 * len(self._here) + URGENT:
            self._deadlines = [row for row in self._deadlines if self._waits(row)]
            heapify(self._deadlines)
        while self._deadlines and not self._waits(self._deadlines[0]):
            heappop(self._deadlines)
        for row in nsmallest(URGENT, self._deadlines):
            if self._waits(row) and self._policy.may_run(row[-1].client):
                return row[0]
        return inf

    def _waits(self, row: tuple[float, int, Waiting]) -> bool:
        return self._here.get(row[-1].id) == row[1]

    def report(self, model: str, now: float, most: int) -> ModelSchedule:
        """The latest admissions, and the first ``most`` of the queue."""
        return ModelSchedule(
            model,
            type(self._policy).__name__.lower(),
            list(self._chosen),
            [self._place(w, now) for w in self._policy.first(most)],
            len(self._policy),
        )

    def _place(self, w: Waiting, now: float) -> QueuePlace:
        matched = self._matches.matched(w.id) if w.id in self._matches else w.matched
        why = self._policy.reason(w)
        return QueuePlace(w.id, w.client, w.prompt_tokens, matched, now - w.arrival, why)
