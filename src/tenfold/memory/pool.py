"""One device's physical pages as one budget, drawn on by many owners' virtual ranges.

Enforces: never more pages than the capacity, never more for an owner than its limit, never one page
for two owners, and every page handed over reads zero. Who deserves how much, and what to take back
when it runs out, is decided elsewhere (``scheduling``, ``fleet``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from time import perf_counter

from torch import Tensor, dtype

from tenfold.core.errors import ConfigError, Conflict, OutOfMemory
from tenfold.memory.audit import Books, differences
from tenfold.memory.base import PageBackend, Reservation
from tenfold.memory.ranges import FREE, MAPPED, RESERVED, Run, VirtualRange, runs
from tenfold.memory.reserve import Coming, Place, Reserve
from tenfold.memory.stats import MoveTimes, OwnerStats, PoolStats
from tenfold.memory.timing import PageTimes

__all__ = ["MoveTimes", "OwnerStats", "PagePool", "PoolStats", "VirtualRange"]


class PagePool:
    """The page budget of one device. Every method is thread-safe (one lock) and may be called from
    any thread; none calls back but for ``on_want``.

    ``capacity_pages`` bounds mapped + reserved pages. *Reserved* pages are populated but not handed
    out: pages just unmapped or prepared ahead, kept where they are (up to ``reserve``) because
    taking them is cheaper than asking the system, and a backend's spare pages. They yield to any
    ``map``.

    ``on_want`` is called, under the lock, when there is work for a thread in the background: a
    range that grows finds few pages ready, or there are more spare ones than the high mark allows.
    Where nobody listens, the latter go at once.
    """

    def __init__(self, backend: PageBackend, capacity_pages: int, reserve_pages: int = 0) -> None:
        if capacity_pages < 1:
            raise ConfigError(f"a pool of {capacity_pages} pages; it needs at least one")
        self.backend = backend
        self.page_bytes = backend.page_bytes
        self._lock = threading.RLock()
        self._capacity = capacity_pages
        self._reserve = Reserve(backend, reserve_pages)
        self._mapped = 0
        self._ranges: dict[tuple[str, str], VirtualRange] = {}
        self._limits: dict[str, int] = {}
        self._map_times, self._unmap_times = PageTimes(), PageTimes()
        self.on_want: Callable[[], None] | None = None

    def create(
        self, owner: str, name: str, nbytes: int, *, grows: bool = True, keeps: bool = False
    ) -> VirtualRange:
        """Address space of ``nbytes``, rounded up to pages; nothing is mapped.

        ``grows``: its pages come and go one by one, so it keeps some that were given back and finds
        some prepared. ``keeps``: pages that it gave back hold what they held until memory is
        wanted, and then go last. Raises Conflict when this owner has a range of that name,
        OutOfMemory when the system has no address space left."""
        if nbytes < 1:
            raise ConfigError(f"range {owner}/{name} of {nbytes} bytes; it needs at least one")
        with self._lock:
            if (owner, name) in self._ranges:
                raise Conflict(f"{owner!r} already has a range {name!r}")
            space = self.backend.reserve(-(-nbytes // self.page_bytes))
            made = VirtualRange(self, owner, name, nbytes, space, grows, keeps)
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

    def reserve(self, pages: int, low: int = 0) -> None:
        """Keep up to ``pages`` given-back pages populated from now on; more than that go now.
        With fewer than ``low`` ready for the ranges that grow, ``on_want`` is called."""
        with self._lock:
            self._reserve.high = max(pages, 0)
            self._reserve.low = min(low, self._reserve.high)
            self._settle()

    def excess(self) -> int:
        """Reserved pages over the high mark."""
        with self._lock:
            return max(0, self._held() - self._mapped - self._reserve.high)

    def settle(self) -> None:
        """Give those over the high mark back to the system, now."""
        with self._lock:
            self._reserve.settle(self._growing())
            self._reserve.trim()

    def prepare(self) -> bool:
        """Populate one page that a growing range is likely to ask for soon: the lowest empty one of
        the range that lacks most of its share. It stays reserved. Takes some milliseconds, and the
        pool is not locked meanwhile; who maps that very page waits for it.

        Ranges of an owner that has nothing mapped (it sleeps) get none. False when every range has
        its share, or there is no room."""
        with self._lock:
            coming = self._begin_prepare()
        if coming is None:
            return False
        try:
            coming.populate(self.backend)
        finally:
            with self._lock:
                self._reserve.end(coming)
        return not coming.failed

    def resize(self, capacity_pages: int) -> None:
        """Change the budget. Raises OutOfMemory, the budget as before, when more is in use."""
        with self._lock:
            if capacity_pages < 1:
                raise ConfigError(f"a pool of {capacity_pages} pages; it needs at least one")
            self._reserve.finish()
            excess = max(0, self._mapped + len(self._reserve) - capacity_pages)
            if self._mapped <= capacity_pages:
                self._reserve.give_back(self._reserve.places()[:excess])
                self.backend.trim(max(0, capacity_pages - self._mapped - len(self._reserve)))
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

    def times(self) -> MoveTimes:
        """How long the latest moves took, by page, waiting for the lock included."""
        with self._lock:
            return MoveTimes(self._map_times.spread(), self._unmap_times.spread())

    def held(self) -> AbstractContextManager[object]:
        """Inside, no other thread maps, unmaps or frees pages: they wait."""
        return self._lock

    def total_resident_bytes(self) -> int:
        """Physical bytes the pool holds, by the operating system's count (some milliseconds)."""
        with self._lock:
            return self.backend.total_resident_bytes()

    def check(self) -> list[str]:
        """Compare the ledger with itself and with the operating system; the differences, in words.

        mapped + reserved = what the system counts, and the same for every range of every owner; but
        pages claimed and not populated yet may be missing."""
        with self._lock:
            found = list(self._ranges.values())
            self._reserve.finish()
            census = self.backend.census([one.space for one in found])
            books = Books(self.page_bytes, self._mapped, self._held(), self._capacity)
            return differences(books, found, self._reserve, census)

    def close(self) -> None:
        """Close every range and the backend."""
        with self._lock:
            for found in list(self._ranges.values()):
                self.close_range(found)
            self.backend.close()

    # What follows is called by VirtualRange.

    def map(self, vrange: VirtualRange, pages: Sequence[int]) -> bool:
        """See ``VirtualRange.map``."""
        began = perf_counter()
        with self._lock:
            self._expect(vrange, pages, mapped=False)
            if not pages:
                return True  # even for an owner above its limit
            self._reserve.finish(vrange, pages)
            again = [page for page in pages if vrange.state[page] == RESERVED]
            fresh = [page for page in pages if vrange.state[page] == FREE]
            vrange.refusal = self._over_budget(vrange, len(pages))
            if vrange.refusal or not self._make_room(vrange, len(fresh), set(again)):
                return False
            self._reserve.clear(vrange, again)
            if not self._map_runs(vrange, list(runs(fresh)), self.backend.map):
                return False
            self._reserve.take(vrange, again)
            self._hand_out(vrange, pages)
            self._map_times.add(len(pages), perf_counter() - began)
            return True

    def map_all(self, vrange: VirtualRange) -> bool:
        """See ``VirtualRange.map_all``."""
        with self._lock:
            return self.map(vrange, [page for page, s in enumerate(vrange.state) if s != MAPPED])

    def claim_all(self, vrange: VirtualRange) -> bool:
        """See ``VirtualRange.claim_all``."""
        with self._lock:
            self._expect(vrange, (), mapped=False)
            self._reserve.finish(vrange)
            pages = [page for page, state in enumerate(vrange.state) if state != MAPPED]
            again = [page for page in pages if vrange.state[page] == RESERVED]
            fresh = [page for page in pages if vrange.state[page] == FREE]
            vrange.refusal = self._over_budget(vrange, len(pages)) if pages else ""
            if vrange.refusal or not self._make_room(vrange, len(fresh), set(again)):
                return False
            if not vrange.keeps:
                self._reserve.clear(vrange, again)
            if not self._map_runs(vrange, list(runs(fresh)), self.backend.attach):
                return False
            self._reserve.take(vrange, again)
            self._hand_out(vrange, pages)
            vrange.claimed.update(fresh)
            return True

    def populate(self, vrange: VirtualRange) -> None:
        """See ``VirtualRange.populate``."""
        with self._lock:
            self._expect(vrange, (), mapped=False)
            claimed = sorted(vrange.claimed)
            vrange.filling.acquire()
        try:
            for first, count in runs(claimed):
                self.backend.populate(vrange.space, first, count)
        except OutOfMemory:
            vrange.filling.release()
            self.unmap(vrange, claimed)
            raise
        except BaseException:
            vrange.filling.release()
            raise
        vrange.filling.release()
        with self._lock:
            vrange.claimed.difference_update(claimed)

    def unmap(self, vrange: VirtualRange, pages: Sequence[int]) -> None:
        """See ``VirtualRange.unmap``."""
        began = perf_counter()
        with self._lock, vrange.filling:
            self._expect(vrange, pages, mapped=True)
            vrange.mapped_pages -= len(pages)
            self._mapped -= len(pages)
            self._reserve.keep(vrange, pages)
            stay = vrange.grows or vrange.keeps
            gone = vrange.claimed.intersection(pages) if stay else pages
            vrange.claimed.difference_update(pages)
            self._reserve.give_back([(vrange, page) for page in gone])
            self._settle()
            self._unmap_times.add(len(pages), perf_counter() - began)

    def unmap_all(self, vrange: VirtualRange) -> int:
        """See ``VirtualRange.unmap_all``."""
        with self._lock:
            pages = [page for page, state in enumerate(vrange.state) if state == MAPPED]
            self.unmap(vrange, pages)
            return len(pages)

    def forget_kept(self, vrange: VirtualRange) -> None:
        """See ``VirtualRange.forget_kept``."""
        with self._lock:
            self._reserve.give_back(
                [place for place in self._reserve.places() if place[0] is vrange]
            )
            self._settle()

    def close_range(self, vrange: VirtualRange) -> None:
        """See ``VirtualRange.close``."""
        with self._lock, vrange.filling:
            if vrange.closed:
                return
            vrange.closed = True
            vrange.claimed.clear()
            self._reserve.forget(vrange)
            del self._ranges[vrange.owner, vrange.name]
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
        return self._mapped + len(self._reserve) + self.backend.spare_pages

    def _owner_mapped(self, owner: str) -> int:
        return sum(one.mapped_pages for one in self._ranges.values() if one.owner == owner)

    def _growing(self) -> set[VirtualRange]:
        """Ranges for which pages are kept ready: those that grow, of owners that are awake."""
        awake = {one.owner for one in self._ranges.values() if one.mapped_pages}
        return {one for one in self._ranges.values() if one.grows and one.owner in awake}

    def _begin_prepare(self) -> Coming | None:
        shares = self._reserve.shares(self._growing())
        for one in sorted(shares, key=lambda one: one.ready_pages - shares[one]):
            if one.ready_pages >= shares[one]:
                return None
            page = one.state.find(FREE)
            if page >= 0 and self.available(one) > one.ready_pages:
                return self._reserve.begin(one, page) if self._room_for_one(shares) else None
        return None

    def _room_for_one(self, shares: dict[VirtualRange, int]) -> bool:
        """Room for one more reserved page, if need be from a range that has more than its share."""
        reserve = self._reserve
        if self.backend.spare_pages:
            return True  # it is that one
        if len(reserve) < reserve.high and self._held() < self._capacity:
            return True
        for held, page in reserve.places():
            if held.keeps and self.backend.hands_over:
                continue  # that page is quick to have when it is wanted
            if held.ready_pages > shares.get(held, 0):
                reserve.give_back([(held, page)])
                return held.state[page] == FREE
        return False

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
        """Take reserved pages away, but none of ``wanted``, until ``fresh`` new ones fit. Where the
        backend hands memory over, they go before the system is asked for any, unless they hold what
        may be wanted again."""
        keep = {(vrange, page) for page in wanted}
        if self.backend.hands_over and (lacking := fresh - self.backend.spare_pages) > 0:
            empty = [place for place in self._victims(keep) if not place[0].keeps]
            self._reserve.give_back(empty[:lacking])
        while (held := self._held() + max(0, fresh - self.backend.spare_pages)) > self._capacity:
            self._reserve.finish()
            victims = self._victims(keep)
            if not victims:
                vrange.refusal = "reserved pages cannot be given back: too many memory mappings"
                return False
            victims = victims[: held - self._capacity]
            self._reserve.give_back(victims)
            keep.update(victims)  # those that could not go are not tried again
        return True

    def _victims(self, keep: set[Place]) -> list[Place]:
        """Reserved pages in the order in which they are taken, the oldest first: of ranges that do
        not grow now, of those that do, and at last those that hold what may be wanted again."""
        growing = self._growing()
        places = [place for place in self._reserve.places() if place not in keep]
        return sorted(places, key=lambda place: (place[0].keeps, place[0] in growing))

    def _settle(self) -> None:
        """Keep no more in place than the high mark allows. Spare pages over it go too, but later
        where there is a thread for it: giving them to the system is slow, and another range may
        want them before."""
        over = len(self._reserve) > self._reserve.high
        self._reserve.settle(self._growing() if over else ())
        if self.on_want is None:
            self._reserve.trim()
        elif len(self._reserve) + self.backend.spare_pages > self._reserve.high:
            self.on_want()

    def _map_runs(
        self,
        vrange: VirtualRange,
        wanted: list[Run],
        call: Callable[[Reservation, int, int], None],
    ) -> bool:
        """Map, or attach, every run or none."""
        for index, (first, count) in enumerate(wanted):
            try:
                call(vrange.space, first, count)
            except OutOfMemory as exc:
                done = [page for run in wanted[:index] for page in run.pages()]
                self._reserve.keep(vrange, done)
                self._reserve.give_back([(vrange, page) for page in done])
                self._settle()
                vrange.refusal = exc.message
                return False
        return True

    def _hand_out(self, vrange: VirtualRange, pages: Sequence[int]) -> None:
        for page in pages:
            vrange.state[page] = MAPPED
        vrange.mapped_pages += len(pages)
        self._mapped += len(pages)
        if vrange.grows:
            self._reserve.grew(vrange, len(pages))
            if self.on_want and self._reserve.wanting(vrange, len(self._ranges)):
                self.on_want()

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
