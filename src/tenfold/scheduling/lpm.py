"""Longest prefix match: the request with the most cached tokens first.

Two refinements of SGLang's policy are kept: of several waiting requests that share a long uncached
prefix only one is offered a pass, so that it computes the prefix once for all; ties go by arrival.
One is not: there is no fall back to arrival order in long queues, as matches are kept current by
the tree's changes instead of being searched for in every pass. Plain LPM has no age term: a steady
stream of hits starves a miss for ever. That is the published policy; ``dlpm`` is the cure.
"""

from __future__ import annotations

from collections.abc import Iterator

from tenfold.scheduling.base import Matches, Uncharged, Waiting
from tenfold.scheduling.ordered import OrderedQueue

SIBLING_TOKENS = 32
_FRONT, _NEW = 0.0, 1.0


class Lpm(Uncharged):
    """Longest cached prefix first, within each priority class. Preempted requests go first."""

    blocking = False

    def __init__(self, matches: Matches, sibling_tokens: int = SIBLING_TOKENS) -> None:
        self._matches = matches
        self._sibling_tokens = sibling_tokens
        self._queue = OrderedQueue()
        self._front: set[str] = set()

    def add(self, waiting: Waiting) -> None:
        self._place(waiting)

    def preempted(self, waiting: Waiting) -> None:
        self._front.add(waiting.id)
        self._place(waiting)

    def remove(self, waiting: Waiting) -> None:
        self._front.discard(waiting.id)
        self._queue.take(waiting.id)

    def _place(self, waiting: Waiting) -> None:
        again = _FRONT if waiting.id in self._front else _NEW
        matched = self._matches.matched(waiting.id)
        self._queue.put(waiting, (waiting.priority, again, -matched))

    def candidates(self, now: float) -> Iterator[Waiting]:
        for id in self._matches.take_changed():
            waiting = self._queue.get(id)
            if waiting is not None:
                self._place(waiting)
        computing: set[int] = set()
        for waiting in self._queue:
            prefix = self._uncached(waiting)
            if prefix is not None:
                if prefix in computing:
                    continue
                computing.add(prefix)
            yield waiting

    def _uncached(self, waiting: Waiting) -> int | None:
        """Names the uncached prefix of ``sibling_tokens`` that the request would compute first; two
        requests of the same name would compute the same tokens. None when it is shorter."""
        if not waiting.hashes:
            return None
        block = max(1, waiting.prompt_tokens // len(waiting.hashes))
        start = self._matches.matched(waiting.id) // block
        last = start + -(-self._sibling_tokens // block) - 1
        return waiting.hashes[last] if last < len(waiting.hashes) else None

    def __len__(self) -> int:
        return len(self._queue)
