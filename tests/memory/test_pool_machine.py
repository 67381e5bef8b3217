"""Random lives of a pool against a plain model of it, with the kernel's count after every step.

Every step ends by reading every page of every range through ordinary tensors: mapped pages hold
what their owner wrote (zeros at first), unmapped ones never fault and cost nothing to read. In half
of the lives a thread prepares pages meanwhile.
"""

from __future__ import annotations

import pytest
import torch
from fake_cuda import FakeDriver
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tenfold.core.errors import OutOfMemory
from tenfold.memory.backends import open_backend
from tenfold.memory.base import PageBackend
from tenfold.memory.cuda import CudaBackend
from tenfold.memory.pool import PagePool, VirtualRange
from tenfold.memory.watermarks import Watermarks

OWNERS = ("ada", "bob", "cyd")
SYSTEM_PAGE = 4096


class PoolMachine(RuleBasedStateMachine):
    """``values[owner, name][page]`` is the byte its owner last wrote there; absent: not mapped."""

    backend_name = "anon"
    page_bytes = 64 << 10

    @initialize(capacity=st.integers(1, 20), reserve=st.integers(0, 6), thread=st.booleans())
    def start(self, capacity: int, reserve: int, thread: bool) -> None:
        self.pool = PagePool(self.open_backend(), capacity, reserve)
        self.watermarks = Watermarks(self.pool, reserve // 2, reserve) if thread else None
        self.capacity = capacity
        self.high_water = reserve
        self.limits: dict[str, int] = {}
        self.ranges: dict = {}
        self.views: dict = {}
        self.values: dict = {}
        self.kept: dict = {}
        self.stamp = 0

    def open_backend(self) -> PageBackend:
        return open_backend(self.backend_name, self.page_bytes)

    def mapped(self, owner: str | None = None) -> int:
        return sum(len(v) for key, v in self.values.items() if owner in (None, key[0]))

    def pick(self, data, wanted: bool = False) -> tuple:
        keys = sorted(key for key in self.ranges if self.values[key] or not wanted)
        return data.draw(st.sampled_from(keys))

    @rule(
        owner=st.sampled_from(OWNERS),
        name=st.sampled_from(["w", "kv"]),
        pages=st.integers(1, 9),
        keeps=st.booleans(),
    )
    def create(self, owner: str, name: str, pages: int, keeps: bool) -> None:
        if (owner, name) in self.ranges:
            return
        grows = name == "kv"
        keeps = keeps and not grows
        vrange = self.pool.create(owner, name, pages * self.page_bytes, grows=grows, keeps=keeps)
        self.ranges[owner, name] = vrange
        self.values[owner, name], self.kept[owner, name] = {}, {}
        self.views[owner, name] = self.view(vrange)

    def view(self, vrange: VirtualRange):
        """What ``paint``, ``look`` and ``late_look`` go by."""
        per_page = self.page_bytes // SYSTEM_PAGE
        whole = vrange.view((vrange.pages, per_page, SYSTEM_PAGE), torch.uint8)
        return whole[:, :, ::1024]

    def paint(self, key: tuple, page: int, value: int) -> None:
        self.views[key][page].fill_(value)
        self.values[key][page] = value

    def look(self, key: tuple) -> list[tuple[int, int]]:
        """The lowest and the highest byte of each page."""
        view = self.views[key]
        low, high = view.amin(dim=(1, 2)).tolist(), view.amax(dim=(1, 2)).tolist()
        return list(zip(low, high, strict=True))

    def late_look(self, view) -> None:
        """A reader that does not know yet that the range is gone sees zeros."""
        assert not view.any()

    @precondition(lambda self: self.ranges)
    @rule(data=st.data())
    def map(self, data) -> None:
        key = self.pick(data)
        free = [p for p in range(self.ranges[key].pages) if p not in self.values[key]]
        pages = data.draw(st.lists(st.sampled_from(free), unique=True)) if free else []
        room = self.capacity - self.mapped()
        room = min(room, self.limits.get(key[0], 99) - self.mapped(key[0]))
        fits = not pages or len(pages) <= room
        assert self.ranges[key].available() == max(0, min(room, len(free)))
        if not pages:
            return
        assert self.ranges[key].map(pages) is fits
        assert bool(self.ranges[key].refusal) is not fits
        if fits:
            self.values[key].update((page, 0) for page in pages)

    @precondition(lambda self: any(self.values.values()))
    @rule(data=st.data())
    def write(self, data) -> None:
        key = self.pick(data, wanted=True)
        for page in data.draw(st.sets(st.sampled_from(sorted(self.values[key])))):
            self.stamp = self.stamp % 255 + 1
            self.paint(key, page, self.stamp)

    @precondition(lambda self: any(self.values.values()))
    @rule(data=st.data())
    def unmap(self, data) -> None:
        key = self.pick(data, wanted=True)
        mapped = st.sampled_from(sorted(self.values[key]))
        pages = data.draw(st.lists(mapped, unique=True, min_size=1))
        self.ranges[key].unmap(pages)
        for page in pages:
            self.kept[key][page] = self.values[key].pop(page)

    @rule(owner=st.sampled_from(OWNERS), limit=st.none() | st.integers(0, 12))
    def limit(self, owner: str, limit: int | None) -> None:
        self.pool.set_limit(owner, limit)
        self.limits.pop(owner, None)
        if limit is not None:
            self.limits[owner] = limit

    @rule(capacity=st.integers(1, 24))
    def resize(self, capacity: int) -> None:
        try:
            self.pool.resize(capacity)
        except OutOfMemory:
            assert self.mapped() > capacity
        else:
            assert self.mapped() <= capacity
            self.capacity = capacity

    @rule(pages=st.integers(0, 8))
    def reserve(self, pages: int) -> None:
        self.pool.reserve(pages)
        self.high_water = pages

    @precondition(lambda self: self.ranges)
    @rule(data=st.data())
    def wake(self, data) -> None:
        """Map a whole range and fill it."""
        key = self.pick(data)
        lacking = self.ranges[key].pages - len(self.values[key])
        fits = not lacking or self.ranges[key].available() == lacking
        if key[1] == "w" and data.draw(st.booleans()):
            assert self.ranges[key].claim_all() is fits
            assert self.pool.check() == []
            claimed = set(self.ranges[key].claimed)
            self.ranges[key].populate()
            if fits:
                self.find_again(key, claimed)
        else:
            assert self.ranges[key].map_all() is fits
        if fits:
            self.stamp = self.stamp % 255 + 1
            for page in range(self.ranges[key].pages):
                self.paint(key, page, self.stamp)

    def find_again(self, key: tuple, claimed: set[int]) -> None:
        """Pages that were given back are as they were, if nobody had their memory meanwhile."""
        seen, keeps = self.look(key), self.ranges[key].keeps
        for page in set(range(self.ranges[key].pages)) - set(self.values[key]):
            value = self.kept[key][page] if keeps and page not in claimed else 0
            assert seen[page] == (value, value), (key, page)

    @precondition(lambda self: self.ranges)
    @rule(data=st.data())
    def forget_kept(self, data) -> None:
        key = self.pick(data)
        self.ranges[key].forget_kept()
        assert self.ranges[key].ready_pages == 0
        self.kept[key] = {}

    @rule(owner=st.sampled_from(OWNERS))
    def sleep(self, owner: str) -> None:
        for key in [key for key in self.ranges if key[0] == owner]:
            assert self.ranges[key].unmap_all() == len(self.values[key])
            self.kept[key] |= self.values[key]
            self.values[key] = {}
        assert self.pool.stats().mapped == self.mapped()

    @rule()
    def prepare(self) -> None:
        if self.watermarks is not None:
            self.watermarks.top_up()
            return
        before = self.pool.stats()
        prepared = self.pool.prepare()
        after = self.pool.stats()
        assert after.mapped == before.mapped
        # A page is added, or moves from a range that had too many.
        assert after.reserved - before.reserved in ({0, 1} if prepared else {-1, 0})
        assert not prepared or after.reserved <= self.high_water

    @rule(owner=st.sampled_from(OWNERS))
    def crash(self, owner: str) -> None:
        self.pool.drop_owner(owner)
        self.limits.pop(owner, None)
        for key in [key for key in self.ranges if key[0] == owner]:
            self.forget(key)

    @precondition(lambda self: self.ranges)
    @rule(data=st.data())
    def close(self, data) -> None:
        key = self.pick(data)
        self.ranges[key].close()
        self.forget(key)

    def forget(self, key: tuple) -> None:
        self.late_look(self.views.pop(key))
        del self.ranges[key], self.values[key], self.kept[key]

    @invariant()
    def every_page_reads_as_its_owner_left_it(self) -> None:
        for key in self.views:
            seen = self.look(key)
            for page, value in self.values[key].items():
                assert seen[page] == (value, value), (key, page)

    @invariant()
    def ledger_and_system_agree(self) -> None:
        assert self.pool.check() == []
        stats = self.pool.stats()
        assert stats.mapped == self.mapped()
        if self.watermarks is None or not self.pool.backend.hands_over:
            assert stats.reserved <= self.high_water  # else spare pages may wait for a moment
        assert stats.mapped + stats.reserved <= self.capacity == stats.capacity

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            if self.watermarks is not None:
                self.watermarks.close()
            self.pool.close()
            assert self.pool.backend.total_resident_bytes() == 0


class CudaMachine(PoolMachine):
    """The same lives on the strict fake of the CUDA driver, which counts every misuse."""

    def open_backend(self) -> PageBackend:
        self.driver = FakeDriver(grain=self.page_bytes, budget_pages=60)
        return CudaBackend(self.page_bytes, driver=self.driver)

    def view(self, vrange: VirtualRange):
        return vrange

    def paint(self, key: tuple, page: int, value: int) -> None:
        self.driver.active = 77  # whichever thread called the driver last
        address = self.ranges[key].space.address + page * self.page_bytes
        self.driver.write(address, bytes([value]) * self.page_bytes)
        self.values[key][page] = value

    def look(self, key: tuple) -> list[tuple[int, int]]:
        size, vrange = self.page_bytes, self.ranges[key]
        seen = self.driver.read(vrange.space.address, vrange.pages * size)
        pages = [seen[at : at + size] for at in range(0, len(seen), size)]
        return [(min(page), max(page)) for page in pages]

    def late_look(self, view) -> None:
        """On a GPU the addresses are gone."""

    @rule()
    def launch(self) -> None:
        self.driver.launch()

    @invariant()
    def the_driver_was_used_well(self) -> None:
        assert self.driver.misuse == []

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "driver"):
            assert self.driver.leaks() == [] and self.driver.misuse == []


def live(name: str, page_bytes: int, examples: int, steps: int) -> None:
    base = CudaMachine if name == "cuda" else PoolMachine
    machine = type("Machine", (base,), {"backend_name": name, "page_bytes": page_bytes})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("name", ["anon", "memfd"])
@pytest.mark.parametrize(("page_bytes", "examples"), [(64 << 10, 18), (2 << 20, 6)])
def test_random_lives(name: str, page_bytes: int, examples: int) -> None:
    live(name, page_bytes, examples, steps=25)


def test_random_lives_on_a_gpu_that_is_not_there() -> None:
    live("cuda", 256, examples=12, steps=25)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anon", "memfd"])
@pytest.mark.parametrize("page_bytes", [4 << 10, 64 << 10, 256 << 10, 2 << 20])
def test_many_random_lives(name: str, page_bytes: int) -> None:
    live(name, page_bytes, examples=20, steps=40)
