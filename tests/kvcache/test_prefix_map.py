"""The map of prefixes to workers, against one set of prefixes for each worker."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tenfold.kvcache.hashing import block_hashes
from tenfold.kvcache.prefix_map import PrefixMap, PrefixMatch

Path = tuple[int, ...]
WORKERS = 3
paths = st.lists(st.integers(0, 1), min_size=1, max_size=7).map(tuple)
workers = st.integers(0, WORKERS - 1)


def hashes_of(path: Path) -> list[int]:
    """Of blocks of one token each."""
    return block_hashes(path, 1)


def starts(path: Path) -> Iterator[Path]:
    """The path's beginnings, the longest first."""
    for size in range(len(path), 0, -1):
        yield path[:size]


class PrefixMachine(RuleBasedStateMachine):
    @initialize(most=st.sampled_from([3, 12, 1000]))
    def start(self, most: int) -> None:
        self.map = PrefixMap(most)
        self.held: list[set[Path]] = [set() for _ in range(WORKERS)]
        self.hoped: list[set[Path]] = [set() for _ in range(WORKERS)]
        every = (path for size in range(1, 8) for path in product((0, 1), repeat=size))
        self.names = {hashes_of(path)[-1]: path for path in every}

    def has(self, worker: int) -> set[Path]:
        return self.held[worker] | self.hoped[worker]

    def grows(self, worker: int, path: Path) -> bool:
        return any((*path, token) in self.has(worker) for token in (0, 1))

    # --- rules --------------------------------------------------------------------------------
    @rule(worker=workers, path=paths, first=st.integers(0, 6))
    def insert(self, worker: int, path: Path, first: int) -> None:
        first = min(first, len(path) - 1)
        hashes = hashes_of(path)
        self.map.insert(worker, hashes[first - 1] if first else 0, hashes[first:])
        if first and not any(path[:first] in self.has(w) for w in range(WORKERS)):
            return  # behind a block that nobody knows
        self.held[worker].update(starts(path))
        self.hoped[worker].difference_update(starts(path))

    @rule(worker=workers, path=paths)
    def expect(self, worker: int, path: Path) -> None:
        self.map.expect(worker, hashes_of(path))
        self.hoped[worker].update(p for p in starts(path) if p not in self.held[worker])

    @rule(worker=workers, path=paths)
    def settle(self, worker: int, path: Path) -> None:
        self.map.settle(worker, hashes_of(path))
        for start in starts(path):
            if start not in self.has(worker):
                continue
            if start in self.held[worker] or self.grows(worker, start):
                break
            self.hoped[worker].discard(start)

    @rule(worker=workers, gone=st.lists(paths, min_size=1, max_size=3))
    def evict(self, worker: int, gone: list[Path]) -> None:
        self.map.evict(worker, [hashes_of(path)[-1] for path in gone])
        for path in gone:
            for found in (self.held[worker], self.hoped[worker]):
                found -= {p for p in found if p[: len(path)] == path}

    @rule(worker=workers)
    def clear(self, worker: int) -> None:
        self.map.clear(worker)
        live = {start for path in self.hoped[worker] for start in starts(path)}
        self.held[worker].clear()
        self.hoped[worker] = live

    @rule(worker=workers)
    def leave(self, worker: int) -> None:
        self.map.leave(worker)
        self.held[worker].clear()
        self.hoped[worker].clear()

    @rule(path=paths, among=st.integers(0, (1 << WORKERS) - 1))
    def match(self, path: Path, among: int) -> None:
        expected = PrefixMatch(0, 0)
        for start in starts(path):
            holders = sum(1 << w for w in range(WORKERS) if among >> w & 1 and start in self.has(w))
            if holders:
                expected = PrefixMatch(len(start), holders)
                break
        assert self.map.match(hashes_of(path), among) == expected

    # --- what holds always --------------------------------------------------------------------
    @invariant()
    def same(self) -> None:
        if not hasattr(self, "map"):
            return
        assert self.map.check_integrity() == []
        known = {self.names[hash] for hash in self.map._where}
        for worker in range(WORKERS):
            found = {self.names[h] for h in self.map._where if self.map.holds(worker, h)}
            # What the bound cut off is forgotten, and nothing else is.
            assert found == self.has(worker) & known
            if self.map.most_blocks == 1000:
                assert found == self.has(worker)
            self.held[worker] &= known
            self.hoped[worker] &= known


PrefixMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPrefixMap = PrefixMachine.TestCase


def test_runs_split_where_workers_part_and_merge_where_they_agree() -> None:
    map, prompt = PrefixMap(), hashes_of(tuple(range(16)))
    map.insert(0, 0, prompt)
    map.insert(1, 0, prompt[:10])
    assert (map.runs, len(map)) == (2, 16)
    map.insert(1, prompt[9], prompt[10:])
    assert map.runs == 1 and map.match(prompt) == PrefixMatch(16, 0b11)
    map.evict(1, prompt[12:])
    assert map.runs == 2 and map.match(prompt) == PrefixMatch(16, 0b01)
    assert map.match(prompt, 0b10) == PrefixMatch(12, 0b10)
    for one in reversed(prompt):  # as a cache shrinks that gives back block by block
        map.evict(0, [one])
    assert map.runs == 1 and map.match(prompt) == PrefixMatch(12, 0b10)
    map.leave(1)
    assert len(map) == map.runs == 0


def test_the_least_recently_used_goes_first() -> None:
    map = PrefixMap(most_blocks=20)
    old, new = hashes_of((1, *range(9))), hashes_of((2, *range(9)))
    map.insert(0, 0, old)
    map.insert(0, 0, new)
    map.match(old)
    map.insert(0, 0, hashes_of((3, 4)))
    assert len(map) == 20
    assert map.match(old).blocks == 10 and map.match(new).blocks == 8
    map.insert(0, 0, hashes_of(tuple(range(50))))
    assert len(map) == 20 and map.match(hashes_of(tuple(range(50)))).blocks == 20


def test_a_hoped_for_prompt_is_believed_until_it_ends() -> None:
    map, prompt = PrefixMap(), hashes_of(tuple(range(8)))
    map.expect(0, prompt[:4])
    map.expect(0, prompt)
    map.settle(0, prompt[:4])  # the longer one is still to bring these blocks
    assert map.match(prompt) == PrefixMatch(8, 1)
    map.insert(0, 0, prompt[:6])
    map.settle(0, prompt)
    assert map.match(prompt) == PrefixMatch(6, 1)
    assert map.check_integrity() == []


def test_equal_hashes_of_other_tokens_are_left_out() -> None:
    map = PrefixMap()
    map.insert(0, 0, [1, 2, 3])
    map.insert(1, 0, [7, 2, 9])
    assert map.check_integrity() == []
    assert map.match([1, 2, 3]) == PrefixMatch(3, 1) and map.match([7, 2]).blocks == 0


def test_a_prompt_that_grows_block_by_block_is_one_run_used_now() -> None:
    map = PrefixMap(most_blocks=8)
    growing, old = hashes_of(tuple(range(6))), hashes_of((9, *range(3)))
    map.insert(0, 0, growing[:2])
    map.insert(0, 0, old)
    map.insert(0, growing[1], growing[2:3])
    assert (map.runs, len(map)) == (2, 7)
    map.insert(0, growing[2], growing[3:5])  # one block more than are kept: the other's last goes
    assert (map.runs, len(map)) == (2, 8)
    assert map.match(old).blocks == 3 and map.match(growing).blocks == 5
    assert map.check_integrity() == []


def test_a_run_with_others_behind_it_does_not_grow() -> None:
    map = PrefixMap()
    one, two, three = (hashes_of((0, 1, last)) for last in (2, 3, 4))
    for prompt in (one, two):
        map.insert(0, 0, prompt)
    map.insert(0, one[1], three[2:])
    assert map.runs == 4
    assert all(map.match(prompt) == PrefixMatch(3, 1) for prompt in (one, two, three))
