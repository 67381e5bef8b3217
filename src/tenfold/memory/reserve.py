"""Pages with memory behind them that are handed out to nobody: given back, or prepared ahead.

A part of the pool, under its lock. A page waits where it was; whoever maps it there has it without
the system's help. Where the backend hands memory over, taking a page away from here is nearly as
cheap for any other range. Knows which ranges grow, and from that how many pages each should find
ready; nothing of capacities and limits.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from tenfold.core.errors import OutOfMemory
from tenfold.memory.base import PageBackend
from tenfold.memory.ranges import COMING, FREE, RESERVED, VirtualRange, runs

Place = tuple[VirtualRange, int]
"""A page of a range."""

_GROWTH = 256
"""Pages handed out last: the ranges that got them are those that grow."""


@dataclass(slots=True, eq=False)
class Coming:
    """A page that some thread populates at this moment, without the pool's lock."""

    vrange: VirtualRange
    page: int
    done: threading.Event = field(default_factory=threading.Event)
    failed: bool = True

    def populate(self, backend: PageBackend) -> None:
        """Some milliseconds. Whatever happens, nobody waits for it for ever."""
        try:
            backend.populate(self.vrange.space, self.page, 1)
            self.failed = False
        except OutOfMemory:
            return
        finally:
            self.done.set()


class Reserve:
    """The reserved pages of a pool. ``high``: how many are kept at most; ``low``: with fewer than
    that for the ranges that grow, ``wanting`` says that it is time to prepare some."""

    def __init__(self, backend: PageBackend, high: int) -> None:
        self.backend = backend
        self.low, self.high = 0, max(0, high)
        self._pages: dict[Place, bool] = {}  # oldest first; whether somebody may have written there
        self._coming: list[Coming] = []
        self._latest: deque[VirtualRange] = deque(maxlen=_GROWTH)
        self._growth: Counter[VirtualRange] = Counter()

    def __len__(self) -> int:
        """Reserved pages, those on their way included; spare ones of the backend are not."""
        return len(self._pages) + len(self._coming)

    def places(self) -> list[Place]:
        """All that are there, oldest first."""
        return list(self._pages)

    def keep(self, vrange: VirtualRange, pages: Iterable[int]) -> None:
        """These pages, handed out until now, stay populated."""
        for page in pages:
            self._add(vrange, page, written=True)

    def take(self, vrange: VirtualRange, pages: Sequence[int]) -> None:
        """Hand these reserved pages out; their states are the caller's to set."""
        for page in pages:
            del self._pages[vrange, page]
        vrange.ready_pages -= len(pages)

    def clear(self, vrange: VirtualRange, pages: Sequence[int]) -> None:
        """Zeros over those of these reserved pages that somebody had."""
        written = [page for page in pages if self._pages[vrange, page]]
        for first, count in runs(written):
            self.backend.zero(vrange.space, first, count)
        for page in written:
            self._pages[vrange, page] = False

    def give_back(self, victims: Sequence[Place]) -> None:
        """Unmap these reserved pages, adjacent ones together.

        Those whose going would split one mapping too many stay reserved."""
        by_range: dict[VirtualRange, list[int]] = {}
        for held, page in victims:
            by_range.setdefault(held, []).append(page)
        for held, pages in by_range.items():
            for run in runs(pages):
                try:
                    self.backend.unmap(held.space, run.first, run.length)
                except OutOfMemory:
                    continue
                self.take(held, run.pages())
                for page in run.pages():
                    held.state[page] = FREE

    def forget(self, vrange: VirtualRange) -> None:
        """The range closes: none of its pages is here any more."""
        self.finish(vrange)
        self.take(vrange, [page for held, page in self._pages if held is vrange])
        self._growth.pop(vrange, None)
        self._latest = deque((one for one in self._latest if one is not vrange), _GROWTH)

    def settle(self, useful: Collection[VirtualRange]) -> None:
        """Keep no more pages in place than the high mark allows: ranges that are not ``useful``
        lose theirs first, then the oldest go."""
        if (excess := len(self) - self.high) > 0:
            order = sorted(self._pages, key=lambda place: place[0] in useful)
            self.give_back(order[:excess])

    def trim(self) -> None:
        """Give the system the spare pages that are over the high mark."""
        self.backend.trim(max(0, self.high - len(self)))

    # --- pages prepared ahead -----------------------------------------------------------------
    def begin(self, vrange: VirtualRange, page: int) -> Coming | None:
        """Attach a page, which the caller populates without the lock before it calls ``end``."""
        try:
            self.backend.attach(vrange.space, page, 1)
        except OutOfMemory:
            return None
        vrange.state[page] = COMING
        coming = Coming(vrange, page)
        self._coming.append(coming)
        return coming

    def end(self, coming: Coming) -> None:
        """Write a page down as reserved once it is populated; wait for that. The first to call does
        it: the thread that populates, or one that cannot go on without the page."""
        coming.done.wait()
        if coming not in self._coming:
            return
        self._coming.remove(coming)
        if coming.failed:
            coming.vrange.state[coming.page] = FREE
            self.backend.unmap(coming.vrange.space, coming.page, 1)
        else:
            self._add(coming.vrange, coming.page, written=False)

    def finish(
        self, vrange: VirtualRange | None = None, pages: Sequence[int] | None = None
    ) -> None:
        """Wait for what is being populated: everything, a range's, or these pages of a range."""
        for coming in list(self._coming):
            if vrange in (None, coming.vrange) and (pages is None or coming.page in pages):
                self.end(coming)

    # --- who should find pages ready ----------------------------------------------------------
    def grew(self, vrange: VirtualRange, pages: int) -> None:
        """The range got so many pages, one of them being asked for soon again."""
        for _ in range(min(pages, _GROWTH)):
            if len(self._latest) == _GROWTH:
                self._growth[self._latest[0]] -= 1
            self._latest.append(vrange)
            self._growth[vrange] += 1

    def wanting(self, vrange: VirtualRange, ranges: int) -> bool:
        """Whether fewer pages are ready for a range than its part of the low mark, where there are
        so many ranges that could grow."""
        share = (1 + self._growth[vrange]) / (ranges + len(self._latest))
        return vrange.ready_pages < self.low * share

    def shares(self, useful: Collection[VirtualRange]) -> dict[VirtualRange, int]:
        """How many pages each of these ranges should find ready: in proportion to how it grew of
        late, together the high mark at most."""
        whole = sum(1 + self._growth[one] for one in useful)
        return {one: self.high * (1 + self._growth[one]) // whole for one in useful}

    def _add(self, vrange: VirtualRange, page: int, *, written: bool) -> None:
        vrange.state[page] = RESERVED
        vrange.ready_pages += 1
        self._pages[vrange, page] = written
