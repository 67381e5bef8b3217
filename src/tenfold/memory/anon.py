"""Pages of private anonymous memory: the default on a CPU.

The whole reservation is readable and writable from the start; mapping a page populates it. What is
unmapped is moved, as it is, to a *shelf*: address space of this back end's own, from where ``map``
moves it to any page of any reservation. Moving takes the kernel some microseconds a page, because
only page tables change; giving memory back and populating other takes milliseconds in a virtual
machine whose host has to find it. A read of an unmapped page shows the kernel's zero page. A
*write* to one cannot be stopped here: it would make memory the pool does not know of, which
``PagePool.check`` reports.
"""

from __future__ import annotations

from collections.abc import Iterable

from tenfold.core.errors import OutOfMemory
from tenfold.memory.base import Reservation
from tenfold.memory.cpu import MEMORY, ZEROS, Arena, CpuBackend
from tenfold.memory.linux import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
    Kernel,
)
from tenfold.memory.ranges import runs

_NOWHERE, _OWN, _MOVED = 0, 1, 2
"""Where the memory of a page came from: it has none, the system, or the shelf."""

_SHELF = 64
"""Places on the first shelf; each later one has as many as all before."""

_MAPPINGS = 2
"""A page that was moved is a mapping of its own, between two others."""


class AnonArena(Arena):
    """``source[p]``: where the memory of page p came from."""

    def __init__(self, kernel: Kernel, pages: int, page_bytes: int) -> None:
        super().__init__(kernel, pages, page_bytes)
        self.source = bytearray(pages)


class AnonBackend(CpuBackend[AnonArena]):
    """The ``anon`` backend. See ``PageBackend`` for the contract."""

    def __init__(self, page_bytes: int = 2 << 20, kernel: Kernel | None = None) -> None:
        super().__init__(page_bytes, kernel)
        self._spare: dict[int, None] = {}
        """Addresses on the shelf with memory, oldest first."""
        self._empty: list[int] = []
        """Those without."""
        self._places = 0
        self.hands_over = self._can_move()

    @property
    def spare_pages(self) -> int:
        return len(self._spare)

    def reserve(self, pages: int) -> Reservation:
        return self._reserve(pages)

    def attach(self, space: Reservation, first: int, count: int) -> None:
        arena = self.span(space, first, count)
        slots = list(self._spare)[:count]
        moved = 0
        for page, slot in enumerate(slots, first):
            if not self._move(slot, arena.at(page)):
                break
            moved += 1
        self._free(slots, lost=len(slots) - moved)  # what could not be moved, the system has back
        arena.source[first : first + count] = bytes([_MOVED] * moved + [_OWN] * (count - moved))
        arena.due[first : first + count] = bytes([ZEROS] * moved + [MEMORY] * (count - moved))

    def unmap(self, space: Reservation, first: int, count: int) -> None:
        arena = self.span(space, first, count)
        pages = range(first, first + count)
        for page in pages:
            kept = arena.due[page] != MEMORY and self._shelve(arena, page)
            if not kept and arena.source[page] == _MOVED:
                self.guard.admit(-_MAPPINGS)
        self._renew(map(arena.at, pages))
        arena.source[first : first + count] = arena.due[first : first + count] = bytes(count)

    def trim(self, keep: int) -> None:
        excess = len(self._spare) - max(keep, 0)
        if excess > 0:
            self._free(list(self._spare)[:excess], lost=excess)

    def release(self, space: Reservation) -> None:
        arena = self.arena(space)
        for run in runs(page for page, source in enumerate(arena.source) if source != _NOWHERE):
            self.unmap(arena, run.first, run.length)
        # A view that outlives its range may read; a write would bring uncounted memory back.
        self._show(arena.address, arena.length, PROT_READ)
        self.forget(arena)

    def close(self) -> None:
        self.trim(0)
        self.hands_over = False  # what is released from now on is the system's
        for arena in list(self._arenas.values()):
            self.release(arena)

    def _reserve(self, pages: int) -> AnonArena:
        arena = self.make_arena(AnonArena, pages, PROT_READ | PROT_WRITE)
        self.advise(arena.address, arena.length)
        return arena

    # --- moving ---------------------------------------------------------------------------------
    def _can_move(self) -> bool:
        """Linux since 5.7; before, nothing is handed over."""
        arena = self._reserve(2)
        can = self._move(arena.at(0), arena.at(1))
        self.release(arena)
        return can

    def _move(self, source: int, target: int) -> bool:
        """The memory of one page to another address. False: the kernel does not."""
        flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
        try:
            self.kernel.mremap(source, self.page_bytes, flags, target)
        except OSError:
            return False
        return True

    def _shelve(self, arena: AnonArena, page: int) -> bool:
        """Make the memory of a page spare. False: it stays there, as there is no way for it."""
        if not self.hands_over:
            return False
        more = 0 if arena.source[page] == _MOVED else _MAPPINGS
        try:
            self.guard.admit(more)
            slot = self._place()
        except OutOfMemory:
            return False
        if not self._move(arena.at(page), slot):
            self._empty.append(slot)
            self.guard.admit(-more)
            return False
        self._spare[slot] = None
        return True

    def _free(self, slots: list[int], lost: int) -> None:
        """These places are empty from now on. ``lost``: of how many the memory is nowhere else."""
        for slot in slots:
            del self._spare[slot]
        self._renew(slots)
        self._empty += reversed(slots)
        self.guard.admit(-_MAPPINGS * lost)

    def _place(self) -> int:
        """An empty place on the shelf."""
        if not self._empty:
            shelf = self._reserve(max(_SHELF, self._places))
            self._places += shelf.pages
            self._empty = [shelf.at(page) for page in reversed(range(shelf.pages))]
        return self._empty.pop()

    def _renew(self, addresses: Iterable[int]) -> None:
        """Address space as it was at first at these pages; what memory is left there is freed."""
        for run in runs(address // self.page_bytes for address in addresses):
            address, length = run.first * self.page_bytes, run.length * self.page_bytes
            self._show(address, length, PROT_READ | PROT_WRITE)
            self.advise(address, length)

    def _show(self, address: int, length: int, prot: int) -> None:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
        try:
            self.kernel.mmap(address, length, prot, flags)
        except OSError:  # one mapping too many
            self.kernel.madvise(address, length, MADV_DONTNEED)
            self.kernel.mprotect(address, length, prot)
