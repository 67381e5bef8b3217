"""The thread that prepares pages: when it works, when it rests, and how it ends."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import pytest
import torch

from tenfold.memory.backends import open_backend
from tenfold.memory.pool import PagePool
from tenfold.memory.watermarks import Watermarks

SMALL = 64 << 10


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "watermarks"]


def test_below_the_low_mark_it_prepares_up_to_the_high_one(make_pool):
    pool = make_pool(64)
    marks = Watermarks(pool, low=2, high=6)
    one = pool.create("a", "kv", 40 * SMALL)
    assert one.map([0])
    wait_until(lambda: pool.stats().reserved == 6)
    woken = []
    pool.on_want = lambda: woken.append(1)
    assert one.map([1, 2, 3]) and not woken  # 3 are left, more than the low mark
    assert one.map([4, 5]) and woken
    marks.top_up()
    wait_until(lambda: pool.stats().reserved == 6)
    assert pool.check() == []
    marks.close()
    marks.close()


def test_it_stops_after_the_page_it_is_at(make_pool):
    pool = make_pool(64)
    one = pool.create("a", "kv", 40 * SMALL)
    marks = Watermarks(pool, low=8, high=8)
    real, begun, go = pool.backend.populate, threading.Event(), threading.Event()

    def slowly(space, first, count):
        if threading.current_thread().name == "watermarks":
            begun.set()
            assert go.wait(20)
        real(space, first, count)

    pool.backend.populate = slowly
    assert one.map([0])
    assert begun.wait(20)
    closer = threading.Thread(target=marks.close)
    closer.start()
    wait_until(marks._closed.is_set)
    go.set()
    closer.join(20)
    assert not closer.is_alive() and pool.stats().reserved == 1 and pool.check() == []


def test_spare_pages_over_the_high_mark_wait_for_somebody_and_then_go(make_pool):
    pool = make_pool(64)
    marks = Watermarks(pool, low=0, high=4)
    one, two = pool.create("a", "kv", 40 * SMALL), pool.create("b", "kv", 40 * SMALL)
    assert one.map(range(32))
    one.unmap(range(32))
    assert two.map(range(30))
    two.unmap(range(30))
    wait_until(lambda: pool.stats().reserved <= 4)
    assert pool.check() == []
    one.map(range(32))
    one.unmap(range(32))
    marks.close()
    assert pool.stats().reserved <= 4 and pool.on_want is None and pool.check() == []


def test_a_pool_that_is_nobodys_takes_its_thread_along(name):
    before = len(threads())
    pool = PagePool(open_backend(name, SMALL), 4)
    marks = Watermarks(pool, 1, 2)
    assert len(threads()) == before + 1
    thread = marks._thread
    del pool, marks
    gc.collect()
    thread.join(20)
    assert len(threads()) == before


def test_a_pool_that_closes_first_leaves_nothing_to_prepare(name):
    pool = PagePool(open_backend(name, SMALL), 40)
    marks = Watermarks(pool, 4, 8)
    assert pool.create("a", "kv", 20 * SMALL).map([0])
    pool.close()
    marks.top_up()
    marks.close()
    assert pool.backend.total_resident_bytes() == 0


def test_a_failure_is_logged_and_ends_it(make_pool, caplog):
    pool = make_pool(40)
    marks = Watermarks(pool, 4, 8)

    def broken(space, first, count):
        raise RuntimeError("no such device")

    one = pool.create("a", "kv", 20 * SMALL)
    real = pool.backend.attach
    assert one.map([0])
    wait_until(lambda: pool.stats().reserved == 8)
    pool.backend.attach = broken
    one.map([1, 2, 3, 4, 5, 6])
    marks.top_up()
    marks._thread.join(20)
    assert "from now on none will be" in caplog.text
    pool.backend.attach = real
    assert one.map([12]) and pool.check() == []


@pytest.mark.parametrize("low", [0, 3])
def test_sixteen_threads_map_while_it_prepares(make_pool, low):
    pool = make_pool(48)
    marks = Watermarks(pool, low, 6)
    clashes: list[str] = []

    def work(owner: str) -> None:
        vrange = pool.create(owner, "kv", 6 * SMALL)
        for turn in range(30):
            page = turn % 6
            if vrange.map([page]):
                view = vrange.view((6, SMALL), torch.uint8)
                if view[page].any():
                    clashes.append(owner)
                view[page] = 7
                vrange.unmap([page])
        vrange.close()

    workers = [threading.Thread(target=work, args=(f"o{n}",)) for n in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not clashes and pool.check() == [] and pool.stats().mapped == 0
    marks.close()
