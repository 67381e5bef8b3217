"""Pages of a memory file: one ``memfd`` for the backend, shareable with other processes.

Each reservation owns a stretch of the file as long as itself; page p of the reservation is page
``frames + p`` of the file. The file is sparse, so a stretch costs nothing until it is mapped, and
neighbouring pages are neighbours in the file too: their mappings merge. Unmapped addresses show
private zero memory, never a hole of the file (reading a hole through a mapping would fill it), and
they are read-only: here a stray write is a fault at the very instruction.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from itertools import pairwise

from tenfold.core.errors import OutOfMemory
from tenfold.memory.base import Census, Reservation
from tenfold.memory.cpu import Arena, CpuBackend
from tenfold.memory.linux import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    Kernel,
)


class FileArena(Arena):
    """An arena with its stretch of the file: ``frames`` is its first page there."""

    def __init__(self, kernel: Kernel, pages: int, page_bytes: int) -> None:
        super().__init__(kernel, pages, page_bytes)
        self.frames = 0
        self.backed = bytearray(pages)

    def splits(self, first: int, count: int) -> int:
        """By how much the number of mappings grows when these pages change state together."""
        state = self.backed[first]
        last = first + count
        edges = []
        if first > 0:
            edges.append(self.backed[first - 1] == state)
        if last < self.pages:
            edges.append(self.backed[last] == state)
        return sum(1 if same else -1 for same in edges)


class MemfdBackend(CpuBackend[FileArena]):
    """The ``memfd`` backend. See ``PageBackend`` for the contract."""

    def __init__(self, page_bytes: int = 2 << 20, kernel: Kernel | None = None) -> None:
        super().__init__(page_bytes, kernel)
        self._fd = os.memfd_create("tenfold-pages", os.MFD_CLOEXEC)
        self._closed = weakref.finalize(self, os.close, self._fd)
        self._frames = 0

    def reserve(self, pages: int) -> Reservation:
        arena = self.make_arena(FileArena, pages, PROT_READ)
        # Stretches are never used twice: the file's 2**63 bytes of offsets outlast any process.
        arena.frames = self._frames
        try:
            os.ftruncate(self._fd, (arena.frames + pages) * self.page_bytes)
        except OSError as exc:
            self.forget(arena)
            raise OutOfMemory(f"the memory file cannot grow by {pages} pages: {exc}") from exc
        self._frames += pages
        return arena

    def map(self, space: Reservation, first: int, count: int) -> None:
        arena = self.span(space, first, count)
        address, length = arena.at(first), count * self.page_bytes
        offset = (arena.frames + first) * self.page_bytes
        more = arena.splits(first, count)
        self.guard.admit(more)
        prot, flags = PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED
        try:
            self.kernel.mmap(address, length, prot, flags, self._fd, offset)
            self.advise(address, length)
            self.populate(address, length)
        except OSError as exc:
            self._show_zeros(address, length)
            self.kernel.punch(self._fd, offset, length)
            self.guard.admit(-more)
            raise OutOfMemory(f"the system has no memory for {length} bytes: {exc}") from exc
        arena.backed[first : first + count] = b"\x01" * count

    def unmap(self, space: Reservation, first: int, count: int) -> None:
        arena = self.span(space, first, count)
        self.guard.admit(arena.splits(first, count))
        self._drop(arena, first, count)

    def release(self, space: Reservation) -> None:
        arena = self.arena(space)
        self.guard.admit(-sum(a != b for a, b in pairwise(arena.backed)))
        self._drop(arena, 0, arena.pages)
        self.forget(arena)

    def census(self, spaces: Sequence[Reservation]) -> Census:
        """In all: the blocks of the file, mapped or not. Per reservation: smaps."""
        by_space = super().census(spaces).spaces if spaces else []
        total = os.fstat(self._fd).st_blocks * 512 if self._closed.alive else 0
        return Census(total, by_space)

    def close(self) -> None:
        for arena in list(self._arenas.values()):
            self.release(arena)
        self._closed()

    def _drop(self, arena: FileArena, first: int, count: int) -> None:
        length = count * self.page_bytes
        self._show_zeros(arena.at(first), length)
        self.kernel.punch(self._fd, (arena.frames + first) * self.page_bytes, length)
        arena.backed[first : first + count] = bytes(count)

    def _show_zeros(self, address: int, length: int) -> None:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
        self.kernel.mmap(address, length, PROT_READ, flags)
