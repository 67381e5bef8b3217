"""Virtual ranges: the address space of one model's weights or of one KV group.

A range is what other rooms hold. It keeps no rules: every change goes through its pool, under the
pool's lock. Pages are counted from the range's own start.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from tenfold.memory.base import Reservation
    from tenfold.memory.pool import PagePool

FREE, MAPPED, RESERVED, COMING = 0, 1, 2, 3
"""States of a page: nothing behind it; handed out; populated but not handed out; being populated
at this moment, to become reserved."""


class Run(NamedTuple):
    """Adjacent pages [first, first + length)."""

    first: int
    length: int

    def pages(self) -> range:
        return range(self.first, self.first + self.length)


def runs(pages: Iterable[int]) -> Iterator[Run]:
    """The pages in order, adjacent ones together: one call to the backend each."""
    first = last = None
    for page in sorted(pages):
        if first is None or last is None:
            first = page
        elif page != last + 1:
            yield Run(first, last + 1 - first)
            first = page
        last = page
    if first is not None and last is not None:
        yield Run(first, last + 1 - first)


class VirtualRange:
    """Address space of ``pages`` pages, owned by one model; a ``kvcache.base.PageSource``.

    Made by ``PagePool.create``. Thread-safe. Reading an unmapped page through a view never crashes.
    ``refusal`` says why the last ``map`` returned False. ``grows``: pages are asked for one by one
    as time goes on, so some are kept ready. ``keeps``: what was written to a page is there again
    when all are claimed, unless another range took its memory meanwhile. ``mapped_pages`` are
    handed out, ``ready_pages`` reserved.
    """

    def __init__(
        self,
        pool: PagePool,
        owner: str,
        name: str,
        nbytes: int,
        space: Reservation,
        grows: bool = True,
        keeps: bool = False,
    ) -> None:
        self.owner = owner
        self.name = name
        self.nbytes = nbytes
        self.grows = grows
        self.keeps = keeps
        self.pages = space.pages
        self.page_bytes = space.page_bytes
        self.space = space
        self.state = bytearray(space.pages)
        self.mapped_pages = 0
        self.ready_pages = 0
        self.claimed: set[int] = set()
        """Pages handed out without memory behind them as yet: see ``claim_all``."""
        self.filling = threading.Lock()
        """Held while they are populated. Taken with the pool's lock held, or neither is."""
        self.closed = False
        self.refusal = ""
        self._pool = pool

    def map(self, pages: Sequence[int]) -> bool:
        """Back all of these pages, or none: False when the pool's budget, the owner's limit or the
        system forbids it. They read zero.

        Raises Conflict for a page that is out of range, already mapped or named twice."""
        return self._pool.map(self, pages)

    def unmap(self, pages: Sequence[int]) -> None:
        """Give these mapped pages back. Raises Conflict for a page that is not mapped."""
        self._pool.unmap(self, pages)

    def map_all(self) -> bool:
        """Back every page that is not mapped yet, or none."""
        return self._pool.map_all(self)

    def claim_all(self) -> bool:
        """As ``map_all``, but quick: nothing may be written before ``populate`` has come back. Of a
        range that keeps, pages that are not ``claimed`` behind this are as they were given back;
        the others read zero."""
        return self._pool.claim_all(self)

    def forget_kept(self) -> None:
        """Nothing that was given back is there again: what is reserved goes."""
        self._pool.forget_kept(self)

    def populate(self) -> None:
        """Memory behind every claimed page. For any thread; the pool goes on meanwhile, but closing
        the range or unmapping any of it waits.

        Raises OutOfMemory, with the claimed pages given back, when the system has none left."""
        self._pool.populate(self)

    def unmap_all(self) -> int:
        """Give every mapped page back; how many there were."""
        return self._pool.unmap_all(self)

    def available(self) -> int:
        """How many more pages could be mapped now, if nothing else asks."""
        return self._pool.available(self)

    def view(self, shape: Sequence[int], kind: dtype, offset_bytes: int = 0) -> Tensor:
        """An ordinary tensor over the range from that byte on; it owns nothing.

        It stays valid across map and unmap, and must not be used after ``close``. Writing where no
        page is mapped is a fault of the caller's. Raises Conflict where it does not fit."""
        return self._pool.view(self, tuple(shape), kind, offset_bytes)

    def resident_bytes(self) -> int:
        """Physical bytes behind the range, by the operating system's count."""
        return self._pool.resident_bytes(self)

    def close(self) -> None:
        """Give everything back, pages and addresses. A second call does nothing."""
        self._pool.close_range(self)
