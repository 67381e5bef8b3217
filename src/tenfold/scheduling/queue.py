"""A sorted queue of waiting requests, and the part of a policy that is the same for all of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from tenfold.scheduling.base import Waiting

Key = tuple[int, int, int, int, str]
"""A request's place: smaller goes first. It ends in the request's id."""


class SortedQueue:
    """Requests by priority, the preempted first in each, then by a policy's ``key``.

    Ties go to the earlier arrival. Adding, removing and moving one costs a binary search and a
    shift of a list of pointers.
    """

    def __init__(self, key: Callable[[Waiting], int]) -> None:
        self._key = key
        self._keys: list[Key] = []
        self._by_id: dict[str, tuple[Waiting, Key]] = {}

    def add(self, w: Waiting) -> None:
        """Raises ValueError when a request with this id is queued already."""
        if w.id in self._by_id:
            raise ValueError(f"request {w.id!r} is queued already")
        key = (w.priority, 0 if w.preempted else 1, self._key(w), w.order, w.id)
        self._by_id[w.id] = (w, key)
        insort(self._keys, key)

    def discard(self, id: str) -> Waiting | None:
        """Take the request out, if it is there."""
        w, key = self._by_id.pop(id, (None, None))
        if w is not None and key is not None:
            del self._keys[bisect_left(self._keys, key)]
        return w

    def move(self, w: Waiting) -> None:
        """Put a request where its key now belongs."""
        if self.discard(w.id) is not None:
            self.add(w)

    def get(self, id: str) -> Waiting | None:
        return self._by_id[id][0] if id in self._by_id else None

    def walk(self) -> Iterator[Waiting]:
        """All requests in order; any may be taken out meanwhile."""
        key = self.after(None)
        while key is not None:
            yield self._by_id[key[-1]][0]
            key = self.after(key)

    def after(self, key: Key | None) -> Key | None:
        """The first place behind this one (None: of all), whether or not that is there."""
        at = 0 if key is None else bisect_right(self._keys, key)
        return self._keys[at] if at < len(self._keys) else None

    def first(self) -> Key:
        """The first place. IndexError when nothing is queued."""
        return self._keys[0]

    def key_of(self, w: Waiting) -> Key:
        """Where a request is queued. KeyError when it is not."""
        return self._by_id[w.id][1]

    def __contains__(self, id: object) -> bool:
        return id in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)


class QueuePolicy:
    """A policy without accounts: a sorted queue whose order ``rank`` decides."""

    blocking = True

    def __init__(self) -> None:
        self.queue = SortedQueue(self.rank)

    def rank(self, w: Waiting) -> int:
        """Smaller goes first within a priority class. Equal: by arrival."""
        return 0

    def add(self, w: Waiting) -> None:
        self.queue.add(w)

    def remove(self, w: Waiting) -> None:
        self.queue.discard(w.id)

    def candidates(self, now: float) -> Iterator[Waiting]:
        return self.queue.walk()

    def admitted(self, w: Waiting, extend_tokens: int) -> None:
        self.remove(w)
        w.preempted = False

    def prefilled(self, client: str, tokens: int) -> None:
        """Nothing is charged."""

    def decoded(self, counts: Mapping[str, int]) -> None:
        """Nothing is charged."""

    def finished(self, client: str, unused: int = 0) -> None:
        """Nothing was charged."""

    def shared(self, tokens: Mapping[str, float]) -> None:
        """Nothing is charged."""

    def may_run(self, client: str) -> bool:
        return True

    def first(self, most: int) -> list[Waiting]:
        return list(islice(self.queue.walk(), most))

    def reason(self, w: Waiting) -> str:
        return f"arrived as number {w.order}"

    def preempted(self, w: Waiting, unused: int = 0) -> None:
        w.preempted = True
        self.add(w)

    def __len__(self) -> int:
        return len(self.queue)
