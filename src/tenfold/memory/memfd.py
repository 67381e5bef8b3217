"""Pages of a memory file: one ``memfd`` for the backend, shareable with other processes.

A page of memory is a *frame*: page f of the file. Each reservation has a home stretch of the file
as long as itself, and takes page p's own frame there where it can: neighbours in a reservation are
then neighbours in the file, and their mappings merge. What is unmapped leaves its frame behind as
spare, and a spare frame may come up at any address of any reservation: that is how memory moves
between models without the system's clearing it twice. The file is sparse, so a frame nobody has
costs nothing. Unmapped addresses show private zero memory, never a hole of the file (reading a hole
through a mapping would fill it), and they are read-only: here a stray write is a fault at the very
instruction.
"""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tenfold.core.errors import Conflict, OutOfMemory
from tenfold.memory.base import Census, Reservation
from tenfold.memory.cpu import MEMORY, ZEROS, Arena, CpuBackend
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
from tenfold.memory.ranges import Run, runs


class FileArena(Arena):
    """An arena and what is mapped in it.

    ``home`` is the first frame of its own stretch. ``frames[p]`` is the frame behind page p, -1
    where there is none."""

    def __init__(self, kernel: Kernel, pages: int, page_bytes: int) -> None:
        super().__init__(kernel, pages, page_bytes)
        self.home = 0
        self.frames = array("q", [-1]) * pages

    def mappings(self, low: int, high: int) -> int:
        """Edges between two mappings at the starts of pages low + 1 .. high - 1."""
        seen = self.frames[low:high]
        return sum(a + (a >= 0) != b for a, b in pairwise(seen))


class MemfdBackend(CpuBackend[FileArena]):
    """The ``memfd`` backend. See ``PageBackend`` for the contract."""

    hands_over = True
    untouched = (ZEROS, MEMORY)  # its frame has memory, but these addresses have not seen it

    def __init__(self, page_bytes: int = 2 << 20, kernel: Kernel | None = None) -> None:
        super().__init__(page_bytes, kernel)
        self._fd = os.memfd_create("tenfold-pages", os.MFD_CLOEXEC)
        self._closed = weakref.finalize(self, os.close, self._fd)
        self._length = 0
        self._taken: set[int] = set()
        """Frames that memory is behind, or soon will be: mapped and spare ones."""
        self._spare: dict[int, None] = {}  # oldest first

    @property
    def spare_pages(self) -> int:
        return len(self._spare)

    def reserve(self, pages: int) -> Reservation:
        arena = self.make_arena(FileArena, pages, PROT_READ)
        try:
            arena.home = self._stretch(pages)
        except OSError as exc:
            self.forget(arena)
            raise OutOfMemory(f"the memory file cannot grow by {pages} pages: {exc}") from exc
        return arena

    def attach(self, space: Reservation, first: int, count: int) -> None:
        arena = self.span(space, first, count)
        if any(frame >= 0 for frame in arena.frames[first : first + count]):
            raise Conflict(f"of pages {first} to {first + count - 1} some are mapped already")
        spare, frames = self._choose(arena, first, count)
        try:
            self._place(arena, first, frames)
        except OSError as exc:
            raise OutOfMemory(f"no mapping for {count} pages: {exc}") from exc
        for page, frame in enumerate(frames, first):
            arena.due[page] = ZEROS if frame in spare else MEMORY
            self._spare.pop(frame, None)
        self._taken.update(frames)

    def unmap(self, space: Reservation, first: int, count: int) -> None:
        arena = self.span(space, first, count)
        frames = arena.frames[first : first + count]
        if min(frames) < 0:
            raise Conflict(f"of pages {first} to {first + count - 1} some are not mapped")
        self._hide(arena, first, count)

    def trim(self, keep: int) -> None:
        excess = len(self._spare) - max(keep, 0)
        if excess > 0:
            gone = list(self._spare)[:excess]
            for frame in gone:
                del self._spare[frame]
            self._punch(gone)

    def release(self, space: Reservation) -> None:
        arena = self.arena(space)
        self._hide(arena, 0, arena.pages)
        self.forget(arena)

    def census(self, spaces: Sequence[Reservation]) -> Census:
        """In all: the blocks of the file, mapped or not. Per reservation: smaps."""
        by_space = super().census(spaces).spaces if spaces else []
        total = os.fstat(self._fd).st_blocks * 512 if self._closed.alive else 0
        return Census(total, by_space)

    def close(self) -> None:
        for arena in list(self._arenas.values()):
            self.release(arena)
        self.trim(0)
        self._closed()

    def _stretch(self, pages: int) -> int:
        """The first of so many new frames. No frame's number is used by two stretches: the file's
        2**63 bytes of offsets outlast any process."""
        first = self._length
        os.ftruncate(self._fd, (first + pages) * self.page_bytes)
        self._length += pages
        return first

    def _choose(self, arena: FileArena, first: int, count: int) -> tuple[set[int], list[int]]:
        """Frames for these pages: spare ones first, each page its own where that is spare or free.
        Which of them are spare, and all of them."""
        at_home = arena.home
        frames = [-1] * count
        spare = {at_home + first + at for at in range(count)} & self._spare.keys()
        others = (frame for frame in self._spare if frame not in spare)
        for at in range(count):
            home = at_home + first + at
            if home in spare:
                frames[at] = home
            elif (found := next(others, None)) is not None:
                frames[at] = found
            elif home not in self._taken:
                frames[at] = home
        spare.update(frame for frame in frames if frame in self._spare)
        lacking = [at for at, frame in enumerate(frames) if frame < 0]
        if lacking:  # their own frames have been handed over to another reservation
            try:
                fresh = self._stretch(len(lacking))
            except OSError as exc:
                raise OutOfMemory(f"the memory file cannot grow: {exc}") from exc
            for at, frame in zip(lacking, range(fresh, fresh + len(lacking)), strict=True):
                frames[at] = frame
        return spare, frames

    def _place(self, arena: FileArena, first: int, frames: Sequence[int]) -> None:
        """Show these frames at consecutive pages, one call for frames that follow each other."""
        last = first + len(frames)
        self._count(arena, first, frames)
        try:
            for at, run in _stretches(frames):
                address, length = arena.at(first + at), run.length * self.page_bytes
                prot, flags = PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED
                self.kernel.mmap(
                    address, length, prot, flags, self._fd, run.first * self.page_bytes
                )
                self.advise(address, length)
        except OSError:
            self._show_zeros(arena.at(first), (last - first) * self.page_bytes)
            self._count(arena, first, [-1] * len(frames))
            raise

    def _hide(self, arena: FileArena, first: int, count: int) -> None:
        """Show zeros at these pages; their frames become spare. Raises OutOfMemory, nothing
        changed, where that is one mapping too many."""
        frames, due = arena.frames[first : first + count], arena.due[first : first + count]
        self._count(arena, first, [-1] * count)
        self._show_zeros(arena.at(first), count * self.page_bytes)
        arena.due[first : first + count] = bytes(count)
        held = [(f, lacks == MEMORY) for f, lacks in zip(frames, due, strict=True) if f >= 0]
        self._spare.update((frame, None) for frame, empty in held if not empty)
        self._punch([frame for frame, empty in held if empty])  # populating them came to nothing

    def _punch(self, frames: Sequence[int]) -> None:
        """Give the frames' memory back to the system, adjacent ones together."""
        self._taken.difference_update(frames)
        for run in runs(frames):
            self.kernel.punch(self._fd, run.first * self.page_bytes, run.length * self.page_bytes)

    def _count(self, arena: FileArena, first: int, frames: Sequence[int]) -> None:
        """Write down what is shown from page ``first`` on, and count the mappings that makes.

        Raises OutOfMemory, nothing changed, where they are too many."""
        last = first + len(frames)
        low, high = max(0, first - 1), min(arena.pages, last + 1)
        before = arena.frames[first:last]
        had = arena.mappings(low, high)
        arena.frames[first:last] = array("q", frames)
        try:
            self.guard.admit(arena.mappings(low, high) - had)
        except OutOfMemory:
            arena.frames[first:last] = before
            raise

    def _show_zeros(self, address: int, length: int) -> None:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
        self.kernel.mmap(address, length, PROT_READ, flags)


def _stretches(frames: Sequence[int]) -> Iterator[tuple[int, Run]]:
    """Frames in the order given, those that follow each other together, and where each begins."""
    at = 0
    for index in range(1, len(frames) + 1):
        if index == len(frames) or frames[index] != frames[index - 1] + 1:
            yield at, Run(frames[at], index - at)
            at = index
