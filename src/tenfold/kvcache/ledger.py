"""Which blocks of one KV group are free, and which pages must be mapped for those that are not.

Block b covers bytes [b, b + 1) x ``block_bytes``; blocks lie densely and may straddle pages. A page
is mapped exactly while a live block touches it. Does not know what a block holds, nor who holds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from tenfold.kvcache.base import PageSource
from tenfold.kvcache.hashing import IntArray

_COLD, _PARTLY, _READY, _LIVE = range(4)
"""A free block has none, some, or all of its pages mapped; a live one is held by somebody."""


class _Bucket:
    """Free blocks of one state, lowest first. A block whose state has changed is skipped.

    Blocks from ``frontier`` on are in the bucket without being listed, so a large cold range costs
    nothing. Each other block is listed at most once.
    """

    def __init__(self, kind: int, states: bytearray, frontier: int) -> None:
        self._kind = kind
        self._states = states
        self._frontier = frontier
        self._heap: list[int] = []
        self._listed = bytearray(len(states))

    def push(self, block: int) -> None:
        if block < self._frontier and not self._listed[block]:
            self._listed[block] = 1
            heappush(self._heap, block)

    def pop_many(self, most: int) -> list[int]:
        """The lowest listed blocks, at most so many."""
        found: list[int] = []
        while self._heap and len(found) < most:
            block = heappop(self._heap)
            self._listed[block] = 0
            if self._states[block] == self._kind:
                found.append(block)
        return found

    def pop(self) -> int | None:
        while self._heap:
            block = heappop(self._heap)
            self._listed[block] = 0
            if self._states[block] == self._kind:
                return block
        while self._frontier < len(self._states):
            block = self._frontier
            self._frontier += 1
            if self._states[block] == self._kind:
                return block
        return None


class PageLedger:
    """Hands out block numbers below ``blocks`` and maps pages under them through ``source``.

    One operation costs O(blocks asked + blocks that lie in pages newly mapped or given back).
    Not thread-safe. ``source.map`` may call ``give`` (an eviction) while it runs.
    """

    def __init__(self, block_bytes: int, page_bytes: int, blocks: int, source: PageSource) -> None:
        if min(block_bytes, page_bytes) <= 0 or blocks < 0:
            raise ValueError(
                f"a ledger of {blocks} blocks of {block_bytes} bytes in pages of {page_bytes}"
            )
        self.block_bytes = block_bytes
        self.page_bytes = page_bytes
        self.blocks = blocks
        self.source = source
        self.mapped_pages = 0
        self._page_refs = [0] * -(-blocks * block_bytes // page_bytes)
        self._states = bytearray(blocks)
        self._counts = [blocks, 0, 0, 0]
        self._buckets = [
            _Bucket(_COLD, self._states, 0),
            _Bucket(_PARTLY, self._states, blocks),
            _Bucket(_READY, self._states, blocks),
        ]

    @property
    def used(self) -> int:
        """Live blocks."""
        return self._counts[_LIVE]

    @property
    def free(self) -> int:
        """Blocks that are not live, whether or not memory could be found for them."""
        return self.blocks - self.used

    @property
    def ready(self) -> int:
        """Free blocks that lie wholly in mapped pages: taking them costs no memory."""
        return self._counts[_READY]

    @property
    def within_reach(self) -> int:
        """Free blocks that could be had with all the pages that ``source`` has, no others' freed:
        an estimate, high by those that lie partly in mapped pages."""
        fresh = self.source.available() * self.page_bytes // self.block_bytes
        counts = self._counts
        return min(counts[_READY] + fresh, self.blocks - counts[_LIVE])

    @property
    def partly(self) -> int:
        """Free blocks of which some pages are mapped and some not."""
        return self._counts[_PARTLY]

    def is_live(self, block: int) -> bool:
        return self._states[block] == _LIVE

    def take(self, n: int) -> list[int] | None:
        """``n`` free blocks, their pages mapped; None, with nothing changed, when that cannot be.

        Blocks wholly in mapped pages go first, then those partly in them, then the rest; the lowest
        first in each, so that pages fill up and the high ones fall empty.
        """
        if n > self.free:
            return None
        taken = self._take_ready(n)
        fresh: list[int] = []
        known = 0
        while len(taken) < n:
            if known < len(fresh):  # what else lies there goes before other blocks
                self._reclassify(fresh[known:])
                known = len(fresh)
                taken += self._take_ready(n - len(taken))
            else:
                taken.append(self._take_unmapped(fresh))
        if not fresh:
            return taken
        mapped, live = False, self.used
        try:
            mapped = self.source.map(fresh)
        finally:
            if not mapped:
                self._undo(taken, fresh, known if live == self.used else len(fresh))
        if not mapped:
            return None
        self._reclassify(fresh[known:])
        return taken

    def give(self, blocks: Iterable[int]) -> int:
        """Free these live blocks and return how many pages that unmapped.

        Raises ValueError for a block that is not live (those before it in ``blocks`` are freed)."""
        gone: list[int] = []
        try:
            for block in blocks:
                if not 0 <= block < self.blocks or self._states[block] != _LIVE:
                    raise ValueError(f"block {block} was given back but is not held by anybody")
                self._release(block, gone)
        finally:
            if gone:
                self._reclassify(gone)
                self.source.unmap(gone)
        return len(gone)

    def pages_of(self, block: int) -> range:
        """The pages that the block touches."""
        start = block * self.block_bytes
        return range(
            start // self.page_bytes, (start + self.block_bytes - 1) // self.page_bytes + 1
        )

    def blocks_of(self, page: int) -> range:
        """The blocks that touch the page."""
        start = page * self.page_bytes
        last = (start + self.page_bytes - 1) // self.block_bytes
        return range(start // self.block_bytes, min(last + 1, self.blocks))

    def live_in(self, page: int) -> int:
        """Live blocks that touch the page."""
        return self._page_refs[page]

    def filled_by(self, blocks: IntArray) -> dict[int, IntArray]:
        """The pages in which no other live block lies than these, which are live and all different;
        for each page, where in ``blocks`` those are that touch it."""
        which, pages = self._touches(blocks)
        order = np.argsort(pages, kind="stable")
        found, begins, counts = np.unique(pages[order], return_index=True, return_counts=True)
        whole = np.array([self._page_refs[page] for page in found.tolist()], dtype=int) == counts
        return {
            int(page): which[order[begin : begin + count]]
            for page, begin, count in zip(found[whole], begins[whole], counts[whole], strict=True)
        }

    def touched_by(self, blocks: IntArray) -> int:
        """How many pages these blocks touch between them; a block may be named twice."""
        return len(np.unique(self._touches(blocks)[1]))

    def _touches(self, blocks: IntArray) -> tuple[IntArray, NDArray[np.int64]]:
        """Where in ``blocks`` one touches a page, and that page, for each time one does."""
        starts = blocks.astype(np.int64) * self.block_bytes
        first = starts // self.page_bytes
        spans = (starts + self.block_bytes - 1) // self.page_bytes - first + 1
        which = np.repeat(np.arange(len(blocks), dtype=np.int32), spans)
        pages = np.arange(len(which)) - np.repeat(np.cumsum(spans) - spans, spans) + first[which]
        return which, pages

    def check_integrity(self) -> list[str]:
        """What contradicts itself, in words; empty when all is well. O(blocks)."""
        refs = [0] * len(self._page_refs)
        counts = [0, 0, 0, 0]
        for block, state in enumerate(self._states):
            counts[state] += 1
            if state == _LIVE:
                for page in self.pages_of(block):
                    refs[page] += 1
        problems = []
        if refs != self._page_refs:
            problems.append("page reference counts differ from the live blocks in the pages")
        if counts != self._counts:
            problems.append(f"block counts {self._counts} differ from a recount {counts}")
        if self.mapped_pages != sum(count > 0 for count in refs):
            problems.append(f"{self.mapped_pages} pages counted, {sum(map(bool, refs))} mapped")
        wrong = [b for b, s in enumerate(self._states) if s != _LIVE and s != self._classify(b)]
        if wrong:
            problems.append(f"free blocks in the wrong bucket: {wrong[:8]}")
        return problems

    def _take_ready(self, most: int) -> list[int]:
        """Make blocks live whose pages are mapped, at most so many."""
        if not self._counts[_READY]:
            return []
        taken = self._buckets[_READY].pop_many(most)
        self._counts[_READY] -= len(taken)
        self._counts[_LIVE] += len(taken)
        states, refs = self._states, self._page_refs
        size, length = self.page_bytes, self.block_bytes
        for block in taken:
            states[block] = _LIVE
            start = block * length
            for page in range(start // size, (start + length - 1) // size + 1):
                refs[page] += 1
        return taken

    def _take_unmapped(self, fresh: list[int]) -> int:
        """Make a block live whose pages are not all mapped. Those that nothing touched before join
        ``fresh``; the other blocks in them are to be reclassified."""
        for kind in (_PARTLY, _COLD):
            if self._counts[kind] and (block := self._buckets[kind].pop()) is not None:
                break
        else:
            raise AssertionError("free blocks are counted but none is in a bucket")
        states, refs = self._states, self._page_refs
        self._counts[states[block]] -= 1
        self._counts[_LIVE] += 1
        states[block] = _LIVE
        for page in self.pages_of(block):
            refs[page] += 1
            if refs[page] == 1:
                fresh.append(page)
                self.mapped_pages += 1
        return block

    def _release(self, block: int, gone: list[int]) -> None:
        """Free a live block. Pages that nothing touches any more join ``gone``; all blocks in them
        are to be reclassified."""
        refs = self._page_refs
        self._set(block, _READY)
        for page in self.pages_of(block):
            refs[page] -= 1
            if refs[page] == 0:
                gone.append(page)
                self.mapped_pages -= 1

    def _undo(self, taken: list[int], never_mapped: list[int], known: int) -> None:
        """Free blocks whose pages were not mapped. Of those pages, what else lies in the ones from
        ``known`` on has not been touched."""
        gone: list[int] = []
        for block in taken:
            self._release(block, gone)
        self._reclassify(set(gone).difference(never_mapped[known:]))
        for block in taken:
            self._set(block, self._classify(block))
        # While the source looked for memory it may have had other blocks of these pages given back.
        mapped = set(gone) - set(never_mapped)
        if mapped:
            self.source.unmap(sorted(mapped))

    def _reclassify(self, pages: Iterable[int]) -> None:
        """These pages were mapped or unmapped: file the free blocks in them anew."""
        states, size, length = self._states, self.page_bytes, self.block_bytes
        for page in pages:
            kind = _READY if self._page_refs[page] else _COLD
            start, stop = page * size, (page + 1) * size
            for block in range(-(-start // length), min(stop // length, self.blocks)):
                if states[block] != _LIVE:
                    self._set(block, kind)
            for block in {start // length, stop // length}:  # they lie in other pages, too
                if block < self.blocks and states[block] != _LIVE:
                    self._set(block, self._classify(block))

    def _classify(self, block: int) -> int:
        pages = self.pages_of(block)
        mapped = sum(self._page_refs[page] > 0 for page in pages)
        return _READY if mapped == len(pages) else _PARTLY if mapped else _COLD

    def _set(self, block: int, state: int) -> None:
        old = self._states[block]
        if old == state:
            return
        self._counts[old] -= 1
        self._counts[state] += 1
        self._states[block] = state
        if state != _LIVE:
            self._buckets[state].push(block)
