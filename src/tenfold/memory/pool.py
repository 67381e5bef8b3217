"""One device's physical pages as one budget, drawn on by many owners' virtual ranges.

Enforces: never more pages than the capacity, never more for an owner than its limit, never one page
for two owners, and every page handed over reads zero. Who deserves how much, and what to take back
when it runs out, is decided elsewhere (``scheduling``, ``fleet``).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import Tensor, dtype

from tenfold.core.errors import ConfigError, Conflict, OutOfMemory
from tenfold.memory.base import PageBackend
from tenfold.memory.ranges import FREE, MAPPED, RESERVED, Run, VirtualRange, runs

__all__ = ["OwnerStats", "PagePool", "PoolStats", "VirtualRange"]


@dataclass(slots=True)
class OwnerStats:
    """Pages of one owner: mapped now, addressable by its ranges, and its limit (None: no limit)."""

    mapped: int = 0
    virtual: int = 0
    limit: int | None = None


@dataclass(slots=True)
class PoolStats:
    """Pages of a pool at one moment. mapped + reserved is what the device's memory holds."""

    page_bytes: int
    capacity: int
    mapped: int
    reserved: int
    virtual: int
    owners: dict[str, OwnerStats] = field(default_factory=dict)


class PagePool:
    """The page budget of one device. Every method is thread-safe (one lock) and may be called from
    any thread; none calls back.

    ``capacity_pages`` bounds mapped + reserved pages. *Reserved* pages are populated but not handed
    out: pages just unmapped or prepared ahead, kept where they are (up to ``reserve``) because
    taking them is cheaper than asking the system, and a backend's spare pages. They yield to any
    ``map``.
    """

    def __init__(self, backend: PageBackend, capacity_pages: int, reserve_pages: int = 0) -> None:
        if capacity_pages < 1:
            raise ConfigError(f"a pool of {capacity_pages} pages; it needs at least one")
        self.backend = backend
        self.page_bytes = backend.page_bytes
        self._lock = threading.RLock()
        self._capacity = capacity_pages
        self._high_water = reserve_pages
        self._mapped = 0
        self._ranges: dict[tuple[str, str], VirtualRange] = {}
        self._limits: dict[str, int] = {}
        self._reserved: dict[tuple[VirtualRange, int], None] = {}  # oldest first

    def create(self, owner: str, name: str, nbytes: int) -> VirtualRange:
        """Address space of ``nbytes``, rounded up to pages; nothing is mapped.

        Raises Conflict when this owner has a range of that name, OutOfMemory when the system has no
        address space left."""
        if nbytes < 1:
            raise ConfigError(f"range {owner}/{name} of {nbytes} bytes; it needs at least one")
        with self._lock:
            if (owner, name) in self._ranges:
                raise Conflict(f"{owner!r} already has a range {name!r}")
            space = self.backend.reserve(-(-nbytes // self.page_bytes))
            made = VirtualRange(self, owner, name, nbytes, space)
            self._ranges[owner, name] = made
            return made

    def set_limit(self, owner: str, pages: int | None) -> None:
        """At most ``pages`` mapped for this owner from now on; None lifts it.

        An owner above its new limit keeps what it has, and gets no page until it is below."""
        if pages is not None and pages < 0:
            raise ConfigError(f"a limit of {pages} pages for {owner!r}")
        with self._lock:
            if pages is None:
                self._limits.pop(owner, None)
            else:
                self._limits[owner] = pages

    def reserve(self, pages: int) -> None:
        """Keep up to ``pages`` given-back pages populated from now on; more than that go now."""
        with self._lock:
            self._high_water = max(pages, 0)
            self._settle()

    def prepare(self, ranges: Sequence[VirtualRange]) -> bool:
        """Populate one page that is likely to be asked for soon, and keep it reserved: the lowest
        empty one of the range that has the fewest such. For idle moments: some milliseconds.

        False when the reserve is full, or nothing is left to prepare."""
        with self._lock:
            spare = self._held() - self._mapped
            if spare >= self._high_water or self._held() >= self._capacity:
                return False
            for one in sorted(ranges, key=lambda one: one.state.count(RESERVED)):
                page = -1 if self._over_budget(one, 1) else one.state.find(FREE)
                if page >= 0:
                    return self._prepare(one, page)
            return False

    def resize(self, capacity_pages: int) -> None:
        """Change the budget. Raises OutOfMemory, the budget as before, when more is in use."""
        with self._lock:
            if capacity_pages < 1:
                raise ConfigError(f"a pool of {capacity_pages} pages; it needs at least one")
            excess = max(0, self._mapped + len(self._reserved) - capacity_pages)
            if self._mapped <= capacity_pages:
                self._give_back(list(self._reserved)[:excess])
                self.backend.trim(max(0, capacity_pages - self._mapped - len(self._reserved)))
            if self._held() > capacity_pages:
                raise OutOfMemory(
                    f"cannot shrink the pool to {capacity_pages} pages: {self._held()} are in use"
                )
            self._capacity = capacity_pages

    def drop_owner(self, owner: str) -> None:
        """Close every range of an owner that crashed or was unloaded, and forget its limit."""
        with self._lock:
            for found in [r for r in self._ranges.values() if r.owner == owner]:
                self.close_range(found)
            self._limits.pop(owner, None)

    def stats(self) -> PoolStats:
        """A consistent picture of the ledger."""
        with self._lock:
            owners = {owner: OwnerStats(limit=limit) for owner, limit in self._limits.items()}
            for found in self._ranges.values():
                mine = owners.setdefault(found.owner, OwnerStats())
                mine.mapped += found.mapped_pages
                mine.virtual += found.pages
            return PoolStats(
                page_bytes=self.page_bytes,
                capacity=self._capacity,
                mapped=self._mapped,
                reserved=self._held() - self._mapped,
                virtual=sum(found.pages for found in self._ranges.values()),
                owners=owners,
            )

    def held(self) -> AbstractContextManager[object]:
        """Inside, no other thread maps, unmaps or frees pages: they wait."""
        return self._lock

    def total_resident_bytes(self) -> int:
        """Physical bytes the pool holds, by the operating system's count (some milliseconds)."""
        with self._lock:
            return self.backend.total_resident_bytes()

    def check(self) -> list[str]:
        """Compare the ledger with itself and with the operating system; the differences, in words.

        mapped + reserved = what the system counts, and the same for every range of every owner."""
        with self._lock:
            found = list(self._ranges.values())
            census = self.backend.census([one.space for one in found])
            wrong = []
            if self._mapped != sum(one.mapped_pages for one in found):
                wrong.append(f"{self._mapped} pages counted as mapped, but not by the ranges")
            if self._held() > self._capacity:
                wrong.append(f"{self._held()} pages held, over the capacity of {self._capacity}")
            if (held := self._held() * self.page_bytes) != census.total:
                wrong.append(f"ledger holds {held} bytes, the system counts {census.total}")
            for one, resident in zip(found, census.spaces, strict=True):
                wrong += self._check_range(one, resident)
            return wrong

    def close(self) -> None:
        """Close every range and the backend."""
        with self._lock:
            for found in list(self._ranges.values()):
                self.close_range(found)
            self.backend.close()

    # What follows is called by VirtualRange.

    def map(self, vrange: VirtualRange, pages: Sequence[int]) -> bool:
        """See ``VirtualRange.map``."""
        with self._lock:
            self._expect(vrange, pages, mapped=False)
            if not pages:
                return True  # even for an owner above its limit
            again = [page for page in pages if vrange.state[page] == RESERVED]
            fresh = [page for page in pages if vrange.state[page] == FREE]
            vrange.refusal = self._over_budget(vrange, len(pages))
            if vrange.refusal or not self._make_room(vrange, len(fresh), set(again)):
                return False
            for first, count in runs(again):
                self.backend.zero(vrange.space, first, count)
            if not self._map_runs(vrange, list(runs(fresh))):
                return False
            for page in again:
                del self._reserved[vrange, page]
            self._mark(vrange, pages, MAPPED)
            return True

    def map_all(self, vrange: VirtualRange) -> bool:
        """See ``VirtualRange.map_all``."""
        with self._lock:
            return self.map(vrange, [page for page, s in enumerate(vrange.state) if s != MAPPED])

    def unmap(self, vrange: VirtualRange, pages: Sequence[int]) -> None:
        """See ``VirtualRange.unmap``."""
        with self._lock:
            self._expect(vrange, pages, mapped=True)
            self._mark(vrange, pages, RESERVED)
            self._reserved.update(((vrange, page), None) for page in pages)
            self._settle()

    def close_range(self, vrange: VirtualRange) -> None:
        """See ``VirtualRange.close``."""
        with self._lock:
            if vrange.closed:
                return
            vrange.closed = True
            del self._ranges[vrange.owner, vrange.name]
            for page, state in enumerate(vrange.state):
                if state == RESERVED:
                    del self._reserved[vrange, page]
            self._mapped -= vrange.mapped_pages
            vrange.mapped_pages = 0
            vrange.state = bytearray(vrange.pages)
            self.backend.release(vrange.space)
            self._settle()

    def available(self, vrange: VirtualRange) -> int:
        """See ``VirtualRange.available``."""
        with self._lock:
            if vrange.closed:
                return 0
            room = min(self._capacity - self._mapped, vrange.pages - vrange.mapped_pages)
            limit = self._limits.get(vrange.owner)
            if limit is not None:
                room = min(room, limit - self._owner_mapped(vrange.owner))
            return max(0, room)

    def view(
        self, vrange: VirtualRange, shape: tuple[int, ...], kind: dtype, offset_bytes: int
    ) -> Tensor:
        """See ``VirtualRange.view``."""
        with self._lock:
            self._expect(vrange, (), mapped=False)
            return self.backend.tensor(vrange.space, offset_bytes, shape, kind)

    def resident_bytes(self, vrange: VirtualRange) -> int:
        """See ``VirtualRange.resident_bytes``."""
        with self._lock:
            return 0 if vrange.closed else self.backend.resident_bytes(vrange.space)

    def _held(self) -> int:
        """Pages the device's memory holds for this pool: mapped, reserved in place, and spare."""
        return self._mapped + len(self._reserved) + self.backend.spare_pages

    def _owner_mapped(self, owner: str) -> int:
        return sum(one.mapped_pages for one in self._ranges.values() if one.owner == owner)

    def _prepare(self, vrange: VirtualRange, page: int) -> bool:
        try:
            self.backend.map(vrange.space, page, 1)
        except OutOfMemory:
            return False
        vrange.state[page] = RESERVED
        self._reserved[vrange, page] = None
        return True

    def _over_budget(self, vrange: VirtualRange, pages: int) -> str:
        """Why ``pages`` more must not be mapped, or nothing. Reserved pages yield, so count not."""
        limit, mapped = self._limits.get(vrange.owner), self._owner_mapped(vrange.owner)
        if limit is not None and mapped + pages > limit:
            return (
                f"{vrange.owner!r} has {mapped} pages of its limit of {limit}; {pages} more asked"
            )
        if self._mapped + pages > self._capacity:
            free = self._capacity - self._mapped
            return f"the pool has {free} of {self._capacity} pages left; {pages} asked"
        return ""

    def _make_room(self, vrange: VirtualRange, fresh: int, wanted: set[int]) -> bool:
        """Give reserved pages back, but none of ``wanted``, until ``fresh`` new ones fit."""
        keep = {(vrange, page) for page in wanted}
        while (held := self._held() + max(0, fresh - self.backend.spare_pages)) > self._capacity:
            victims = [one for one in self._reserved if one not in keep]
            if not victims:
                vrange.refusal = "reserved pages cannot be given back: too many memory mappings"
                return False
            victims = victims[: held - self._capacity]
            self._give_back(victims)
            keep.update(victims)  # those that could not go are not tried again
        return True

    def _settle(self) -> None:
        """Give back what is reserved above the high-water mark, oldest first."""
        excess = max(0, len(self._reserved) - self._high_water)
        self._give_back(list(self._reserved)[:excess])
        self.backend.trim(max(0, self._high_water - len(self._reserved)))

    def _give_back(self, victims: Sequence[tuple[VirtualRange, int]]) -> None:
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
                for page in run.pages():
                    del self._reserved[held, page]
                    held.state[page] = FREE

    def _map_runs(self, vrange: VirtualRange, wanted: list[Run]) -> bool:
        """Map every run or none."""
        for index, (first, count) in enumerate(wanted):
            try:
                self.backend.map(vrange.space, first, count)
            except OutOfMemory as exc:
                done = [(vrange, page) for run in wanted[:index] for page in run.pages()]
                self._reserved.update((one, None) for one in done)
                for _, page in done:
                    vrange.state[page] = RESERVED
                self._give_back(done)
                self._settle()
                vrange.refusal = exc.message
                return False
        return True

    def _mark(self, vrange: VirtualRange, pages: Sequence[int], state: int) -> None:
        """Set the pages' state to MAPPED, or from MAPPED to another, and keep the counts."""
        for page in pages:
            vrange.state[page] = state
        change = len(pages) if state == MAPPED else -len(pages)
        vrange.mapped_pages += change
        self._mapped += change

    def _expect(self, vrange: VirtualRange, pages: Sequence[int], *, mapped: bool) -> None:
        if vrange.closed:
            raise Conflict(f"range {vrange.owner}/{vrange.name} is closed")
        if len(set(pages)) != len(pages):
            raise Conflict(f"a page is named twice among {list(pages)}")
        for page in pages:
            if not 0 <= page < vrange.pages:
                raise Conflict(f"page {page} is outside {vrange.name}, which has {vrange.pages}")
            if (vrange.state[page] == MAPPED) is not mapped:
                raise Conflict(
                    f"page {page} of {vrange.owner}/{vrange.name} is "
                    f"{'not' if mapped else 'already'} mapped"
                )

    def _check_range(self, one: VirtualRange, resident: int) -> list[str]:
        mapped, reserved = one.state.count(MAPPED), one.state.count(RESERVED)
        label, wrong = f"{one.owner}/{one.name}", []
        if mapped != one.mapped_pages:
            wrong.append(f"{label}: {one.mapped_pages} pages counted, {mapped} marked as mapped")
        if reserved != sum(1 for held, _ in self._reserved if held is one):
            wrong.append(f"{label}: {reserved} pages marked as reserved, but not listed")
        if (held := (mapped + reserved) * self.page_bytes) != resident:
            wrong.append(f"{label}: ledger holds {held} bytes, {resident} are resident")
        return wrong
