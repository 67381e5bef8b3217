"""A queue for each client, and the order of their heads. Knows nothing of whose turn it is."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator

from tenfold.scheduling.base import Waiting
from tenfold.scheduling.queue import Key, SortedQueue

Head = tuple[Key, str]
"""A request's place and its client."""


class ClientQueues:
    """Requests by client, each client's sorted by a policy's ``key`` (see ``SortedQueue``).

    The clients' first requests, ``heads``, are kept sorted among each other, so that a pass over
    ten thousand clients touches those it comes to. A change costs a binary search and a shift of
    pointers."""

    def __init__(self, key: Callable[[Waiting], int]) -> None:
        self._key = key
        self._queues: dict[str, SortedQueue] = {}
        self._clients: dict[str, str] = {}
        self.heads: list[Head] = []

    def add(self, w: Waiting) -> None:
        """Raises ValueError when a request with this id is queued already."""
        if w.id in self._clients:
            raise ValueError(f"request {w.id!r} is queued already")
        queue = self._queues.get(w.client)
        old = None
        if queue is None:
            queue = self._queues[w.client] = SortedQueue(self._key)
        else:
            old = queue.first()
        queue.add(w)
        self._clients[w.id] = w.client
        self._reseat(w.client, old)

    def discard(self, id: str) -> bool:
        """Take a request out; False when it is not there."""
        client = self._clients.pop(id, None)
        if client is None:
            return False
        queue = self._queues[client]
        old = queue.first()
        queue.discard(id)
        if not len(queue):
            del self._queues[client]
        self._reseat(client, old)
        return True

    def move(self, w: Waiting) -> None:
        """Put a request where its key now belongs."""
        old = self._queues[w.client].first()
        self._queues[w.client].move(w)
        self._reseat(w.client, old)

    def _reseat(self, client: str, old: Key | None) -> None:
        queue = self._queues.get(client)
        new = None if queue is None else queue.first()
        if new != old:
            if old is not None:
                del self.heads[bisect_left(self.heads, (old, client))]
            if new is not None:
                insort(self.heads, (new, client))

    def get(self, id: str) -> Waiting | None:
        client = self._clients.get(id)
        return None if client is None else self._queues[client].get(id)

    def place_after(self, head: Head | None) -> int:
        """The index in ``heads`` of what comes behind this one (None: of the first), whether or
        not that is there."""
        return 0 if head is None else bisect_right(self.heads, head)

    def after(self, client: str, key: Key | None) -> Key | None:
        """The client's first request behind this place, if it has one."""
        queue = self._queues.get(client)
        return None if queue is None else queue.after(key)

    def walk(self) -> Iterator[tuple[str, SortedQueue]]:
        """Clients that have something queued, with their queues."""
        return iter(self._queues.items())

    def all(self) -> Iterator[Waiting]:
        """Every request, in no order."""
        for queue in self._queues.values():
            yield from queue.walk()

    def __contains__(self, id: object) -> bool:
        return id in self._clients

    def __len__(self) -> int:
        return len(self._clients)
