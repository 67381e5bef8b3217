from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kv_pages import Budget, FakePages

from tenfold.kvcache.ledger import PageLedger


class LedgerMachine(RuleBasedStateMachine):
    """Random takes and gives against a plain model: a set of live blocks."""

    @initialize(
        block=st.integers(1, 40),
        page=st.integers(1, 40),
        blocks=st.integers(0, 30),
        pages=st.integers(0, 40),
    )
    def start(self, block: int, page: int, blocks: int, pages: int) -> None:
        self.budget = Budget(pages)
        self.source = FakePages(self.budget)
        self.ledger = PageLedger(block, page, blocks, self.source)
        self.live: set[int] = set()

    def touched(self, blocks: set[int]) -> set[int]:
        size, page = self.ledger.block_bytes, self.ledger.page_bytes
        return {byte // page for b in blocks for byte in range(b * size, (b + 1) * size)}

    def cost(self, block: int) -> int:
        """0 wholly mapped, 1 partly, 2 not at all."""
        pages = self.touched({block})
        mapped = len(pages & self.source.mapped)
        return 0 if mapped == len(pages) else 1 if mapped else 2

    @rule(n=st.integers(0, 8))
    def take(self, n: int) -> None:
        free = set(range(self.ledger.blocks)) - self.live
        best = min(((self.cost(b), b) for b in free), default=None)
        before = set(self.source.mapped)
        got = self.ledger.take(n)
        if got is None:
            assert n > 0 and self.source.mapped == before
            return
        assert len(got) == len(set(got)) == n and set(got) <= free
        if got:
            assert best is not None and got[0] == best[1]
        self.live |= set(got)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.live)), unique=True))
        before = len(self.source.mapped)
        assert self.ledger.give(blocks) == before - len(self.touched(self.live - set(blocks)))
        self.live -= set(blocks)

    @rule(pages=st.integers(0, 40))
    def change_budget(self, pages: int) -> None:
        self.budget.pages = pages

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert self.ledger.check_integrity() == []
        assert self.source.mapped == self.touched(self.live)
        assert self.ledger.used == len(self.live)
        assert self.ledger.mapped_pages == len(self.source.mapped)
        free = set(range(self.ledger.blocks)) - self.live
        assert self.ledger.ready == sum(self.cost(b) == 0 for b in free)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_a_refused_take_changes_nothing_and_a_smaller_one_succeeds() -> None:
    source = FakePages(Budget(2))
    ledger = PageLedger(10, 10, 5, source)
    assert ledger.take(3) is None
    assert ledger.take(2) == [0, 1]
    assert ledger.take(1) is None
    assert ledger.give([0]) == 1
    assert ledger.take(1) == [0]


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 30))
def test_blocks_and_pages_know_each_other(block: int, page: int, blocks: int) -> None:
    ledger = PageLedger(block, page, blocks, FakePages(Budget(0)))
    for b in range(blocks):
        assert all(b in ledger.blocks_of(p) for p in ledger.pages_of(b))
    for p in range(-(-blocks * block // page)):
        assert all(p in ledger.pages_of(b) for b in ledger.blocks_of(p))


def test_giving_twice_is_refused_and_does_not_corrupt() -> None:
    ledger = PageLedger(10, 25, 5, FakePages(Budget(9)))
    a, b = ledger.take(2) or []
    with pytest.raises(ValueError, match="not held"):
        ledger.give([a, a, b])
    with pytest.raises(ValueError, match="not held"):
        ledger.give([77])
    assert ledger.check_integrity() == [] and ledger.is_live(b) and not ledger.is_live(a)


def test_blocks_given_back_while_the_source_looks_for_memory() -> None:
    """A source that evicts while it maps may free blocks of the very pages being mapped."""
    ledger: PageLedger

    class Evicting(FakePages):
        answer = False

        def map(self, pages: object) -> bool:
            if self.mapped:
                ledger.give([0])
            assert isinstance(pages, list)
            return self.answer and super().map(pages)

    source = Evicting(Budget(9))
    ledger = PageLedger(6, 10, 4, source)
    source.answer = True
    assert ledger.take(1) == [0]
    source.answer = False
    assert ledger.take(1) is None
    assert ledger.check_integrity() == [] and source.mapped == set() and ledger.used == 0


def test_an_error_of_the_source_leaves_nothing_taken() -> None:
    class Broken(FakePages):
        def map(self, pages: object) -> bool:
            raise OSError("no memory")

    ledger = PageLedger(10, 10, 4, Broken(Budget(9)))
    with pytest.raises(OSError, match="no memory"):
        ledger.take(2)
    assert ledger.used == 0 and ledger.check_integrity() == []


def test_a_large_cold_range_costs_nothing_to_make() -> None:
    ledger = PageLedger(1 << 10, 1 << 21, 1_000_000, FakePages(Budget(4)))
    taken = ledger.take(3000)
    assert taken == list(range(3000)) and ledger.mapped_pages == 2


def test_a_source_may_have_blocks_given_and_refuse_all_the_same() -> None:
    """Blocks of 3 bytes in pages of 4: block 2 lies in the page that block 1 lacks, and in that
    of block 3."""

    class Giving(FakePages):
        def map(self, pages: Sequence[int]) -> bool:
            if ledger.is_live(0) and not ledger.is_live(2):
                ledger.give([3])
                return False
            return super().map(pages)

    ledger = PageLedger(3, 4, 8, Giving(Budget(8)))
    assert ledger.take(4) == [0, 1, 2, 3]
    ledger.give([1, 2])
    assert ledger.take(1) is None
    assert ledger.check_integrity() == []
    assert ledger.used == 1
