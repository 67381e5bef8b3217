"""A queue kept sorted by a key that may change: what policies are made of."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from tenfold.scheduling.base import Waiting

Key = tuple[float, ...]


class OrderedQueue:
    """Waiting requests by key; ties go to the earlier arrival. Changing one key costs O(log n) plus
    a move of a list's tail."""

    def __init__(self) -> None:
        self._rows: list[tuple[Key, int, str]] = []
        self._keys: dict[str, Key] = {}
        self._waiting: dict[str, Waiting] = {}

    def put(self, waiting: Waiting, key: Key) -> None:
        """Add, or move to a new key."""
        self.take(waiting.id)
        self._keys[waiting.id] = key
        self._waiting[waiting.id] = waiting
        insort(self._rows, (key, waiting.order, waiting.id))

    def take(self, id: str) -> Waiting | None:
        """Remove; None when it is not here."""
        waiting = self._waiting.pop(id, None)
        if waiting is not None:
            row = (self._keys.pop(id), waiting.order, id)
            del self._rows[bisect_left(self._rows, row)]
        return waiting

    def get(self, id: str) -> Waiting | None:
        return self._waiting.get(id)

    def __iter__(self) -> Iterator[Waiting]:
        """In order; a snapshot, so rows may come and go meanwhile. Gone ones are left out."""
        for _, _, id in list(self._rows):
            waiting = self._waiting.get(id)
            if waiting is not None:
                yield waiting

    def __len__(self) -> int:
        return len(self._rows)
