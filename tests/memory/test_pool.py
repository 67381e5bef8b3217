"""What the pool promises, a promise a test. Each pool is checked against the system at the end."""

from __future__ import annotations

import threading

import pytest
import torch

from tenfold.core.errors import ConfigError, Conflict, OutOfMemory
from tenfold.core.messages import Spread
from tenfold.kvcache.base import PageSource
from tenfold.memory.backends import open_backend
from tenfold.memory.linux import Kernel
from tenfold.memory.pool import PagePool
from tenfold.memory.ranges import COMING, MAPPED, Run, runs
from tenfold.memory.timing import PageTimes

SMALL = 64 << 10  # as make_pool's pages


def bytes_of(vrange):
    return vrange.view((vrange.pages * SMALL,), torch.uint8)


def test_runs_puts_neighbours_together():
    assert list(runs([7, 3, 4, 9, 5])) == [Run(3, 3), Run(7, 1), Run(9, 1)]
    assert list(runs([])) == []
    assert list(Run(3, 2).pages()) == [3, 4]


def test_a_range_is_a_page_source(make_pool):
    source: PageSource = make_pool(8).create("m", "kv", 6 * SMALL)
    assert source.available() == 6
    assert source.map([0, 5])
    source.unmap([5])
    assert source.available() == 5


def test_the_capacity_holds_all_or_nothing(make_pool):
    pool = make_pool(4)
    one, two = pool.create("a", "w", 8 * SMALL), pool.create("b", "w", 8 * SMALL)
    assert one.map([0, 1, 2])
    assert not two.map([0, 1])
    assert two.refusal == "the pool has 1 of 4 pages left; 2 asked"
    assert (two.mapped_pages, two.resident_bytes(), two.available()) == (0, 0, 1)
    one.unmap([1])
    assert two.map([0, 1]) and two.refusal == ""


def test_limits_hold_and_may_be_lowered_below_use(make_pool):
    pool = make_pool(16)
    one = pool.create("a", "w", 8 * SMALL)
    two = pool.create("a", "kv", 8 * SMALL)
    pool.set_limit("a", 4)
    assert one.map([0, 1, 2]) and not two.map([0, 1])
    assert two.refusal == "'a' has 3 pages of its limit of 4; 2 more asked"
    assert two.map([7]) and two.available() == 0
    pool.set_limit("a", 2)  # what is there stays
    assert one.mapped_pages == 3 and not one.map([5])
    assert one.map([])  # asks for nothing
    one.unmap([0, 1])
    assert not one.map([5])
    one.unmap([2])
    assert one.map([5])
    pool.set_limit("a", None)
    assert one.available() == 7
    pool.set_limit("elsewhere", 0)
    with pytest.raises(ConfigError):
        pool.set_limit("a", -1)


def test_another_models_bytes_are_never_seen(make_pool):
    pool = make_pool(4, reserve_pages=4)
    one, two = pool.create("a", "kv", 4 * SMALL), pool.create("b", "kv", 4 * SMALL)
    assert one.map_all()
    bytes_of(one).fill_(0x5A)
    one.unmap([0, 2, 3])
    assert two.map([1, 2, 3])
    assert not bytes_of(two).any()
    bytes_of(two)[SMALL : 2 * SMALL].fill_(0x33)
    assert bytes_of(one)[SMALL : 2 * SMALL].unique().tolist() == [0x5A]


def test_reserved_pages_stay_in_memory_and_read_zero_when_handed_out_again(make_pool):
    pool = make_pool(8, reserve_pages=2)
    one = pool.create("a", "kv", 8 * SMALL)
    assert one.map(range(5))
    bytes_of(one)[: 5 * SMALL].fill_(1)
    one.unmap([0, 1, 2, 3])
    assert (pool.stats().mapped, pool.stats().reserved) == (1, 2)
    assert one.resident_bytes() == 3 * SMALL
    assert pool.check() == []
    assert one.map([0, 1, 2, 3])
    assert not bytes_of(one)[: 4 * SMALL].any()
    assert pool.stats().reserved == 0


def test_pages_prepared_ahead_are_there_when_asked_for(make_pool, monkeypatch):
    pool = make_pool(12)
    one, two = pool.create("a", "kv", 8 * SMALL), pool.create("b", "kv", 8 * SMALL)
    asleep = pool.create("c", "kv", 8 * SMALL)
    weights = pool.create("b", "w", SMALL, grows=False)
    assert weights.map_all()
    pool.set_limit("b", 2)
    assert not pool.prepare()  # no reserve to fill
    pool.reserve(4)
    one.map([0, 2])
    assert [pool.prepare() for _ in range(5)] == [True, True, True, True, False]
    assert pool.stats().reserved == 4 and pool.stats().mapped == 3
    assert (one.ready_pages, two.ready_pages, asleep.ready_pages) == (3, 1, 0)
    assert one.resident_bytes() == 5 * SMALL and two.resident_bytes() == SMALL
    with monkeypatch.context() as patch:
        patch.setattr(pool.backend, "map", None)  # not called: the lowest pages are there
        patch.setattr(pool.backend, "zero", None)  # nor this: nobody has written there
        assert one.map([1, 3]) and two.map([0])
    assert two.map([]) and not pool.check()


def test_pages_are_prepared_for_the_range_that_grows(make_pool):
    pool = make_pool(40)
    ranges = [pool.create(name, "kv", 20 * SMALL) for name in "abc"]
    pool.reserve(8)
    for one in ranges:
        one.map([0])
    while pool.prepare():
        pass
    assert [one.ready_pages for one in ranges] == [2, 2, 2]
    for page in range(1, 16):
        assert ranges[1].map([page])
        while pool.prepare():
            pass
    assert ranges[1].ready_pages == 4 and pool.stats().reserved <= 8  # all it could still take
    ranges[0].unmap([0])  # and goes to sleep: its pages are the others'
    for page in range(1, 10):
        assert ranges[2].map([page])
        while pool.prepare():
            pass
    assert ranges[0].ready_pages <= 1 and ranges[2].ready_pages >= 3
    assert pool.stats().reserved <= 8
    assert pool.check() == []


def test_pages_that_do_not_grow_are_not_kept(make_pool):
    pool = make_pool(20, reserve_pages=4)
    weights = pool.create("a", "w", 8 * SMALL, grows=False)
    kv = pool.create("b", "kv", 8 * SMALL)
    assert weights.map_all() and kv.map([0, 1, 2])
    kv.unmap([1, 2])
    assert weights.unmap_all() == 8 and weights.unmap_all() == 0
    assert kv.ready_pages == 2 and weights.ready_pages == 0
    spare = 2 if pool.backend.hands_over else 0
    assert pool.stats().reserved == 2 + spare and pool.check() == []


def test_what_a_range_keeps_is_there_again_unless_it_was_taken(make_pool):
    pool = make_pool(8, reserve_pages=8)
    one = pool.create("a", "w", 6 * SMALL, grows=False, keeps=True)
    two = pool.create("b", "kv", 8 * SMALL)
    assert one.map_all()
    bytes_of(one).fill_(3)
    assert one.unmap_all() == 6 and (pool.stats().mapped, one.ready_pages) == (0, 6)
    assert one.claim_all() and not one.claimed and (bytes_of(one) == 3).all()
    one.unmap_all()
    assert two.map([0, 1, 2, 3]) and not bytes_of(two).any()
    assert one.ready_pages == 4 and pool.check() == []
    bytes_of(two)[: 4 * SMALL].fill_(5)
    two.unmap([0, 1, 2, 3])
    assert one.claim_all() and len(one.claimed) == 2
    taken = sorted(one.claimed)
    one.populate()
    for page in range(6):
        held = bytes_of(one)[page * SMALL : (page + 1) * SMALL]
        assert (held == (0 if page in taken else 3)).all()
    assert pool.check() == []


def test_what_a_range_keeps_is_taken_last_and_can_be_forgotten(make_pool):
    pool = make_pool(8, reserve_pages=8)
    one = pool.create("a", "w", 4 * SMALL, grows=False, keeps=True)
    two, three = pool.create("b", "kv", 8 * SMALL), pool.create("c", "kv", 8 * SMALL)
    assert one.map_all() and two.map([0, 1, 2, 3])
    one.unmap_all()
    two.unmap([1, 2, 3])
    assert three.map([0, 1, 2]) and one.ready_pages == 4  # though it has been waiting for longer
    assert three.map([3, 4]) and one.ready_pages == 2
    one.forget_kept()
    assert one.ready_pages == 0 and pool.check() == []
    three.unmap([0, 1, 2, 3, 4])
    assert one.claim_all() and len(one.claimed) == 4
    one.populate()
    assert not bytes_of(one).any()


def test_what_is_kept_is_bounded_by_the_high_mark(make_pool):
    pool = make_pool(8, reserve_pages=2)
    one = pool.create("a", "w", 6 * SMALL, grows=False, keeps=True)
    assert one.map_all() and one.unmap_all() == 6
    spare = pool.backend.spare_pages
    assert one.ready_pages + spare <= 2 and pool.stats().reserved <= 2 and pool.check() == []


def test_a_page_on_its_way_is_waited_for_by_who_needs_it_and_by_nobody_else(make_pool):
    pool = make_pool(8, reserve_pages=4)
    one, two = pool.create("a", "kv", 8 * SMALL), pool.create("b", "kv", 8 * SMALL)
    assert one.map([0])
    real, begun, go = pool.backend.populate, threading.Event(), threading.Event()

    def slowly(space, first, count):
        if threading.current_thread() is slow:
            begun.set()
            assert go.wait(10)
        real(space, first, count)

    pool.backend.populate = slowly
    slow = threading.Thread(target=pool.prepare)
    slow.start()
    assert begun.wait(10) and one.state[1] == COMING
    assert pool.stats().reserved == 1  # counted once, from now on
    assert two.map([0, 1]) and one.map([5])  # do not wait
    mapped = threading.Thread(target=one.map, args=([1],))
    mapped.start()
    assert one.state[1] == COMING
    go.set()
    slow.join(10)
    mapped.join(10)
    assert one.state[1] == MAPPED and pool.stats().reserved == 0
    assert (pool.stats().mapped, pool.check()) == (5, [])


def test_claimed_pages_are_counted_at_once_and_populated_later(make_pool):
    pool = make_pool(8, reserve_pages=2)
    one, two = pool.create("a", "w", 6 * SMALL, grows=False), pool.create("b", "kv", 8 * SMALL)
    assert two.map([0, 1]) and one.claim_all()
    assert (one.mapped_pages, one.resident_bytes()) == (6, 0)
    assert pool.check() == [] and not two.map([2])
    one.populate()
    assert one.resident_bytes() == 6 * SMALL and not bytes_of(one).any() and not one.claimed
    bytes_of(one).fill_(3)
    assert one.unmap_all() == 6 and pool.check() == []
    assert one.claim_all() and one.unmap_all() == 6  # given up before it was populated
    assert pool.check() == [] and two.map([2])
    assert not pool.create("c", "w", 8 * SMALL).claim_all()


def test_claimed_pages_that_cannot_be_had_are_given_back(make_pool):
    pool = make_pool(8)
    one = pool.create("a", "w", 6 * SMALL, grows=False)
    real = pool.backend.populate

    def not_all_of_it(space, first, count):
        real(space, first, count // 2)
        raise OutOfMemory("the system has no memory")

    pool.backend.populate = not_all_of_it
    assert one.claim_all()
    with pytest.raises(OutOfMemory):
        one.populate()
    assert (pool.stats().mapped, pool.check()) == (0, [])
    pool.backend.populate = real
    assert one.claim_all()
    one.populate()
    assert not bytes_of(one).any()


def test_who_closes_a_range_waits_until_it_is_populated(make_pool):
    pool = make_pool(8)
    one, two = pool.create("a", "w", 6 * SMALL, grows=False), pool.create("b", "kv", SMALL)
    real, begun, go = pool.backend.populate, threading.Event(), threading.Event()

    def slowly(space, first, count):
        begun.set()
        assert go.wait(10)
        real(space, first, count)

    pool.backend.populate = slowly
    assert one.claim_all()
    filler = threading.Thread(target=one.populate)
    filler.start()
    assert begun.wait(10)
    pool.backend.populate = real
    assert two.map([0])  # goes on
    closer = threading.Thread(target=pool.drop_owner, args=("a",))
    closer.start()
    go.set()
    closer.join(10)
    filler.join(10)
    assert one.closed and pool.stats().mapped == 1 and pool.check() == []


@pytest.mark.parametrize("act", ["close", "crash", "resize", "check", "map_all"])
def test_whatever_happens_while_a_page_is_on_its_way(make_pool, act):
    pool = make_pool(8, reserve_pages=4)
    one, two = pool.create("a", "kv", 4 * SMALL), pool.create("b", "kv", 8 * SMALL)
    assert one.map([0])
    real, acting = pool.backend.populate, []

    def and_meanwhile(space, first, count):
        if not acting:
            acting.append(threading.Thread(target=do))
            acting[0].start()
        real(space, first, count)

    def do():
        if act == "close":
            one.close()
        elif act == "crash":
            pool.drop_owner("a")
        elif act == "resize":
            pool.resize(1)
        elif act == "check":
            assert pool.check() == []
        else:
            assert two.map(range(7))  # all that is left: the prepared page has to yield

    pool.backend.populate = and_meanwhile
    pool.prepare()
    acting[0].join(10)
    assert not acting[0].is_alive() and pool.check() == []


def test_a_page_that_cannot_be_populated_is_free_again(make_pool):
    pool = make_pool(8, reserve_pages=4)
    one = pool.create("a", "kv", 8 * SMALL)
    assert one.map([0])
    real = pool.backend.populate

    def no_memory(space, first, count):
        raise OutOfMemory("the system has no memory")

    pool.backend.populate = no_memory
    assert not pool.prepare()
    assert pool.check() == [] and pool.stats().reserved == 0
    pool.backend.populate = real
    assert pool.prepare() and pool.check() == []


def test_the_time_of_moves_is_told_by_page(make_pool):
    pool = make_pool(8)
    one = pool.create("a", "kv", 8 * SMALL)
    assert pool.times() == (Spread(), Spread())
    assert one.map([0, 1, 2])
    one.unmap([1])
    assert (pool.times().map.count, pool.times().unmap.count) == (3, 1)
    assert 0 < pool.times().map.p50 <= pool.times().map.p99


def test_percentiles_are_by_page():
    times = PageTimes(calls=3)
    times.add(1, 9.0)  # falls out of the window
    times.add(98, 98.0)
    times.add(1, 3.0)
    times.add(1, 4.0)
    times.add(0, 7.0)  # moved nothing
    assert times.spread() == Spread(101, 1.0, 3.0)


def test_reserved_pages_yield_to_whoever_maps(make_pool):
    pool = make_pool(6, reserve_pages=6)
    one, two = pool.create("a", "kv", 6 * SMALL), pool.create("b", "kv", 6 * SMALL)
    assert one.map_all()
    one.unmap([0, 1, 2, 3])
    assert two.available() == 4 and pool.stats().reserved == 4
    assert two.map([0, 1, 2])
    assert (pool.stats().mapped, pool.stats().reserved) == (5, 1)
    assert one.map([3]) and pool.check() == []
    pool.reserve(0)
    assert pool.stats().reserved == 0


def test_resize(make_pool):
    pool = make_pool(6, reserve_pages=6)
    one = pool.create("a", "kv", 6 * SMALL)
    assert one.map_all()
    one.unmap([0, 1, 2])
    with pytest.raises(OutOfMemory, match="to 2 pages: 6 are in use"):
        pool.resize(2)
    assert one.map([0]) and pool.stats().capacity == 6
    pool.resize(4)
    assert (pool.stats().capacity, pool.stats().reserved) == (4, 0)
    assert not one.map([1])
    pool.resize(5)
    assert one.map([1])
    with pytest.raises(ConfigError):
        pool.resize(0)


def test_a_crashed_owner_leaves_nothing(make_pool):
    pool = make_pool(8, reserve_pages=1)
    lost = [pool.create("lost", name, 4 * SMALL) for name in ("w", "kv")]
    kept = pool.create("kept", "kv", 4 * SMALL)
    pool.set_limit("lost", 8)
    assert all(one.map([0, 1]) for one in [*lost, kept])
    lost[0].unmap([1])
    pool.drop_owner("lost")
    pool.drop_owner("never seen")
    spare = 1 if pool.backend.hands_over else 0
    assert (pool.stats().mapped, pool.stats().reserved) == (2, spare)
    assert list(pool.stats().owners) == ["kept"]
    assert kept.map([2, 3]) and pool.check() == []
    with pytest.raises(Conflict, match="lost/w is closed"):
        lost[0].map([0])
    assert lost[0].resident_bytes() == 0 and lost[0].available() == 0
    lost[0].close()  # twice is fine
    assert pool.create("lost", "w", SMALL).map([0])


def test_misuse_is_refused_and_changes_nothing(make_pool):
    pool = make_pool(8)
    one = pool.create("a", "kv", 3 * SMALL + 1)
    assert one.pages == 4
    assert one.map([1])
    for call, pages, words in [
        (one.map, [0, 1], "page 1 of a/kv is already mapped"),
        (one.unmap, [1, 0], "page 0 of a/kv is not mapped"),
        (one.map, [0, 0], "named twice"),
        (one.map, [4], "page 4 is outside"),
        (one.unmap, [-1], "page -1 is outside"),
    ]:
        with pytest.raises(Conflict, match=words):
            call(pages)
    assert one.mapped_pages == 1
    with pytest.raises(Conflict, match="already has a range 'kv'"):
        pool.create("a", "kv", SMALL)
    with pytest.raises(ConfigError, match="0 bytes"):
        pool.create("a", "w", 0)
    with pytest.raises(Conflict, match="does not lie"):
        one.view((5, SMALL), torch.uint8)
    assert one.map([]) and one.mapped_pages == 1


def test_adjacent_pages_are_one_call(make_pool, monkeypatch):
    pool = make_pool(16)
    one = pool.create("a", "kv", 16 * SMALL)
    calls = []
    real = pool.backend.map

    def spy(space, first, count):
        calls.append((first, count))
        real(space, first, count)

    monkeypatch.setattr(pool.backend, "map", spy)
    assert one.map([5, 3, 4, 9, 8])
    assert calls == [(3, 3), (8, 2)]


def test_no_memory_half_way_gives_back_the_first_half(make_pool, monkeypatch):
    pool = make_pool(16)
    one = pool.create("a", "kv", 16 * SMALL)
    real = pool.backend.map

    def fail_at_eight(space, first, count):
        if first == 8:
            raise OutOfMemory("the system has no memory")
        real(space, first, count)

    monkeypatch.setattr(pool.backend, "map", fail_at_eight)
    assert not one.map([2, 3, 8, 9])
    assert one.refusal == "the system has no memory"
    assert one.mapped_pages == 0 and pool.check() == []


def test_pages_that_cannot_be_split_off_stay_reserved():
    class Crowded(Kernel):
        limit = 65530

        def max_map_count(self) -> int:
            return self.limit

    kernel = Crowded()
    pool = PagePool(open_backend("memfd", SMALL, kernel=kernel), 10)
    one, two = pool.create("a", "kv", 10 * SMALL), pool.create("b", "kv", 4 * SMALL)
    assert one.map_all()
    kernel.limit = 2 * (kernel.mapping_count() + 1)
    one.unmap([5])
    assert (pool.stats().mapped, pool.stats().reserved) == (9, 1)
    assert pool.check() == []
    assert not two.map([0]) and "too many memory mappings" in two.refusal
    with pytest.raises(OutOfMemory):
        pool.resize(9)
    kernel.limit = 65530
    assert two.map([0]) and pool.check() == []
    pool.close()


def test_check_reports_memory_the_pool_does_not_know():
    pool = PagePool(open_backend("anon", SMALL), 8)
    one = pool.create("a", "kv", 4 * SMALL)
    assert one.map([0])
    bytes_of(one)[SMALL] = 1  # a stray write where nothing is mapped
    found = pool.check()
    assert len(found) == 2
    assert "the system counts 69632" in found[0] and found[1].startswith("a/kv: ledger holds 65536")
    pool._mapped += 1
    assert any("not by the ranges" in line for line in pool.check())
    pool._mapped -= 1
    pool.close()


def test_stats(make_pool):
    pool = make_pool(16)
    one = pool.create("a", "kv", 5 * SMALL)
    pool.create("b", "kv", 2 * SMALL)
    pool.set_limit("b", 3)
    assert one.map([0, 4])
    stats = pool.stats()
    assert (stats.page_bytes, stats.capacity, stats.virtual) == (SMALL, 16, 7)
    assert pool.total_resident_bytes() == (stats.mapped + stats.reserved) * SMALL
    assert (stats.owners["a"].mapped, stats.owners["a"].virtual) == (2, 5)
    assert (stats.owners["b"].mapped, stats.owners["b"].limit) == (0, 3)


def test_a_pool_needs_a_page(make_pool):
    with pytest.raises(ConfigError, match="at least one"):
        make_pool(0)


def test_threads_share_a_pool(make_pool):
    pool = make_pool(12, reserve_pages=2)
    clashes = []

    def work(owner: str) -> None:
        vrange = pool.create(owner, "kv", 6 * SMALL)
        view = bytes_of(vrange).view(6, SMALL)
        mark = ord(owner)
        for turn in range(60):
            pages = [turn % 6, (turn + 3) % 6]
            if vrange.map(pages):
                if view[pages].any():
                    clashes.append(f"{owner} saw old bytes")
                view[pages[0]], view[pages[1]] = mark, mark
                if (view[pages] != mark).any():
                    clashes.append(f"{owner} lost its bytes")
                vrange.unmap(pages)
        vrange.close()

    threads = [threading.Thread(target=work, args=(owner,)) for owner in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []
    assert pool.stats().mapped == 0
