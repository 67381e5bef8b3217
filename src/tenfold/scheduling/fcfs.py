"""First come, first served, within each priority class."""

from __future__ import annotations

from collections.abc import Iterator

from tenfold.scheduling.base import Matches, Uncharged, Waiting
from tenfold.scheduling.ordered import OrderedQueue

_FRONT, _NEW = 0.0, 1.0


class Fcfs(Uncharged):
    """Strict arrival order: a request that does not fit holds up those behind it, so that a large
    one is never overtaken for ever. Preempted requests go first, oldest first."""

    blocking = True

    def __init__(self, matches: Matches) -> None:
        self._queue = OrderedQueue()

    def add(self, waiting: Waiting) -> None:
        self._queue.put(waiting, (waiting.priority, _NEW))

    def preempted(self, waiting: Waiting) -> None:
        self._queue.put(waiting, (waiting.priority, _FRONT))

    def remove(self, waiting: Waiting) -> None:
        self._queue.take(waiting.id)

    def candidates(self, now: float) -> Iterator[Waiting]:
        return iter(self._queue)

    def __len__(self) -> int:
        return len(self._queue)
