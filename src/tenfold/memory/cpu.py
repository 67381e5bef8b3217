"""What the CPU back ends share: aligned address space, tensors over it, and the kernel's count.

An arena lies between guard pages, so its mappings never merge with anything else's and smaps can
tell what it holds. Knows nothing of budgets and owners, nor of how a page becomes physical.
"""

from __future__ import annotations

import ctypes
import errno
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor, dtype

from tenfold.core.errors import ConfigError, Conflict, OutOfMemory
from tenfold.memory.base import Census, Reservation
from tenfold.memory.linux import (
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_POPULATE_WRITE,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_NONE,
    Kernel,
)
from tenfold.memory.ranges import runs
from tenfold.memory.residency import MappingGuard, resident
from tenfold.memory.views import elements

NOTHING, ZEROS, MEMORY = 0, 1, 2
"""What an attached page lacks: nothing, zeros over another's bytes, or any memory at all."""

_PIECE, _MANY, _POPULATORS = 4 << 20, 4, 2
"""So many pieces of memory, or more, are populated by several threads: what takes the time is
clearing them and, on a virtual machine, their being found by its host."""

_ARENA_MAPPINGS = 3
"""Mappings of one empty arena: guard, arena, guard."""


class Arena(Reservation):
    """One reservation, guard pages on both sides. Its address space lives as long as it does.
    ``due[p]``: what ``populate`` has still to do at page p.

    Tensors over the arena hold it, so a view that outlives ``release`` still points at legal
    addresses; what it reads there is zeros.
    """

    def __init__(self, kernel: Kernel, pages: int, page_bytes: int) -> None:
        guard = kernel.system_page
        whole = pages * page_bytes + page_bytes + 2 * guard
        start = kernel.mmap(0, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
        aligned = -(-(start + guard) // page_bytes) * page_bytes
        super().__init__(address=aligned, pages=pages, page_bytes=page_bytes)
        self.due = bytearray(pages)
        self.whole = (start, start + whole)
        """With the guard pages."""
        # At exit the process ends as a whole; threads may still be reading until then.
        weakref.finalize(self, kernel.munmap, start, whole).atexit = False

    @property
    def length(self) -> int:
        return self.pages * self.page_bytes

    def at(self, page: int) -> int:
        """Address of a page."""
        return self.address + page * self.page_bytes


A = TypeVar("A", bound=Arena)


class CpuBackend(ABC, Generic[A]):
    """Base of ``anon`` and ``memfd``: everything but how pages are mapped and given back.

    ``page_bytes`` is a multiple of the system's page; below 2 MiB it suits tiny arenas only.
    Raises ConfigError for a bad page size, and anywhere but on Linux.
    """

    hands_over: bool
    untouched: tuple[int, ...] = (MEMORY,)
    """What must be due at a page for it to have no memory behind its addresses."""

    def __init__(self, page_bytes: int = 2 << 20, kernel: Kernel | None = None) -> None:
        self.kernel = kernel or Kernel()
        system = self.kernel.system_page
        if page_bytes < system or page_bytes % system:
            raise ConfigError(
                f"page_bytes is {page_bytes}; it must be a multiple of the system page, {system}"
            )
        self.page_bytes = page_bytes
        self.guard = MappingGuard(self.kernel)
        huge = self.kernel.huge_page_bytes()
        # A huge page must not reach past the page it backs, or memory would grow by itself.
        whole_huge_pages = huge > 0 and page_bytes % huge == 0
        self._advice = MADV_HUGEPAGE if whole_huge_pages else MADV_NOHUGEPAGE
        self._can_populate = True
        self._arenas: dict[int, A] = {}

    @property
    @abstractmethod
    def spare_pages(self) -> int: ...

    @abstractmethod
    def trim(self, keep: int) -> None: ...

    @abstractmethod
    def attach(self, space: Reservation, first: int, count: int) -> None: ...

    @abstractmethod
    def unmap(self, space: Reservation, first: int, count: int) -> None: ...

    def map(self, space: Reservation, first: int, count: int) -> None:
        self.attach(space, first, count)
        try:
            self.populate(space, first, count)
        except OutOfMemory:
            self.unmap(space, first, count)
            raise

    def populate(self, space: Reservation, first: int, count: int) -> None:
        arena = self.span(space, first, count)
        pages = range(first, first + count)
        for run in runs(page for page in pages if arena.due[page] in self.untouched):
            self._touch_all(arena.at(run.first), run.length * self.page_bytes)
        for run in runs(page for page in pages if arena.due[page] == ZEROS):
            self.zero(arena, run.first, run.length)
        arena.due[first : first + count] = bytes(count)

    def _touch_all(self, address: int, length: int) -> None:
        piece = max(_PIECE, self.page_bytes)
        pieces = [(address + at, min(piece, length - at)) for at in range(0, length, piece)]
        try:
            if len(pieces) < _MANY:
                self.touch(address, length)
                return
            with ThreadPoolExecutor(_POPULATORS) as threads:
                for _ in threads.map(lambda one: self.touch(*one), pieces):
                    pass
        except OSError as exc:
            raise OutOfMemory(f"the system has no memory for {length} bytes: {exc}") from exc

    def tensor(
        self, space: Reservation, offset: int, shape: tuple[int, ...], kind: dtype
    ) -> Tensor:
        arena = self.arena(space)
        count = elements(arena.length, offset, shape, kind)
        if count == 0:
            return torch.empty(shape, dtype=kind)
        buffer = (ctypes.c_char * arena.length).from_address(arena.address)
        buffer.arena = arena  # type: ignore[attr-defined]  # the tensor holds the arena through it
        return torch.frombuffer(buffer, dtype=kind, count=count, offset=offset).view(shape)

    def zero(self, space: Reservation, first: int, count: int) -> None:
        arena = self.span(space, first, count)
        self.kernel.zero(arena.at(first), count * self.page_bytes)

    def resident_bytes(self, space: Reservation) -> int:
        return self.census([space]).spaces[0]

    def total_resident_bytes(self) -> int:
        return self.census([]).total

    def census(self, spaces: Sequence[Reservation]) -> Census:
        """One reading of smaps: every arena's resident and swapped bytes."""
        for space in spaces:
            self.arena(space)
        arenas = list(self._arenas.values())
        held = resident(self.kernel, [(a.address, a.address + a.length) for a in arenas])
        by_address = {a.address: size for a, size in zip(arenas, held, strict=True)}
        return Census(sum(held), [by_address[space.address] for space in spaces])

    def arena(self, space: Reservation) -> A:
        """The arena of a reservation of ours. Raises Conflict for any other."""
        arena = self._arenas.get(space.address)
        if arena is not space:
            raise Conflict("this reservation was released, or belongs to another backend")
        return arena

    def span(self, space: Reservation, first: int, count: int) -> A:
        """The same, once pages [first, first + count) are known to lie inside it."""
        arena = self.arena(space)
        if first < 0 or count < 1 or first + count > arena.pages:
            raise Conflict(f"{count} pages from page {first} do not lie within {arena.pages}")
        return arena

    def make_arena(self, kind: type[A], pages: int, prot: int) -> A:
        """Address space for ``pages`` pages with that protection, nothing behind it."""
        if pages < 1:
            raise Conflict(f"a reservation of {pages} pages")
        self.guard.admit(_ARENA_MAPPINGS)
        try:
            arena = kind(self.kernel, pages, self.page_bytes)
            self.kernel.mprotect(arena.address, arena.length, prot)
        except OSError as exc:
            self.guard.admit(-_ARENA_MAPPINGS)
            raise OutOfMemory(
                f"no address space for {pages} pages of {self.page_bytes} bytes ({exc}); see "
                "ulimit -v and vm.overcommit_memory"
            ) from exc
        self._arenas[arena.address] = arena
        self.guard.spans.add(arena.whole)
        return arena

    def forget(self, arena: A) -> None:
        """Strike an arena off; its address space goes with its last view."""
        del self._arenas[arena.address]
        self.guard.spans.discard(arena.whole)
        self.guard.admit(-_ARENA_MAPPINGS)

    def advise(self, address: int, length: int) -> None:
        """Ask for huge pages where they fit, against them elsewhere. Only advice: may fail."""
        try:
            self.kernel.madvise(address, length, self._advice)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # a kernel built without huge pages
                raise

    def touch(self, address: int, length: int) -> None:
        """Put memory behind zeroed, writable addresses now. Raises OSError when there is none."""
        if self._can_populate:
            try:
                self.kernel.madvise(address, length, MADV_POPULATE_WRITE)
                return
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
                self._can_populate = False  # Linux before 5.14
        self.kernel.zero(address, length)
