"""Pages of private anonymous memory: the default on a CPU.

The whole reservation is readable and writable from the start. Mapping a page populates it;
unmapping drops it with MADV_DONTNEED. Either way the number of mappings stays the same. A read of
an unmapped page shows the kernel's zero page. A *write* to one cannot be stopped here: it would
make memory the pool does not know of, which ``PagePool.check`` reports.
"""

from __future__ import annotations

from tenfold.memory.base import Reservation
from tenfold.memory.cpu import Arena, CpuBackend
from tenfold.memory.linux import MADV_DONTNEED, PROT_READ, PROT_WRITE


class AnonBackend(CpuBackend[Arena]):
    """The ``anon`` backend. See ``PageBackend`` for the contract."""

    def reserve(self, pages: int) -> Reservation:
        arena = self.make_arena(Arena, pages, PROT_READ | PROT_WRITE)
        self.advise(arena.address, arena.length)
        return arena

    def attach(self, space: Reservation, first: int, count: int) -> None:
        self.span(space, first, count)

    def unmap(self, space: Reservation, first: int, count: int) -> None:
        arena = self.span(space, first, count)
        self.kernel.madvise(arena.at(first), count * self.page_bytes, MADV_DONTNEED)

    def release(self, space: Reservation) -> None:
        arena = self.arena(space)
        self.kernel.madvise(arena.address, arena.length, MADV_DONTNEED)
        # A view that outlives its range may read; a write would bring uncounted memory back.
        self.kernel.mprotect(arena.address, arena.length, PROT_READ)
        self.forget(arena)

    def close(self) -> None:
        for arena in list(self._arenas.values()):
            self.release(arena)
