"""Memory promised to running requests for their longest end, so that none has to give way.

DLPM's and VTC's bounds (arXiv 2501.14312, Theorem 4.1) take the output in flight of a client to be
at most M tokens. That is true where a request is admitted only if memory holds its prompt and its
longest answer beside those of everybody who runs. Prefixes that requests share are counted once for
each, so less runs than could. Bytes; knows nothing of pages, blocks or what is mapped.
"""

from __future__ import annotations

from collections.abc import Callable


class Reservations:
    """The promises of one device. ``capacity``: bytes there are for all keys and values."""

    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        self._promised: dict[str, int] = {}
        self.total = 0

    @property
    def capacity(self) -> int:
        return self._capacity()

    def promise(self, id: str, nbytes: int) -> bool:
        """Promise so much to a request, unless too much is promised already. A device that owes
        nobody anything promises whatever it is asked for. Raises ValueError for an id that has a
        promise."""
        if id in self._promised:
            raise ValueError(f"request {id!r} was promised memory already")
        if self._promised and self.total + nbytes > self._capacity():
            return False
        self._promised[id] = nbytes
        self.total += nbytes
        return True

    def release(self, id: str) -> None:
        """The request runs no more. Unknown ids are ignored."""
        self.total -= self._promised.pop(id, 0)
