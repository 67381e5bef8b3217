"""Random lives of sequences over one cache, against a memory of what every block holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kv_model import brute_match, contents
from kv_pages import Budget, FakePages

from tenfold.core.types import KVGroup
from tenfold.kvcache.cache import KVCache, SequenceKV
from tenfold.kvcache.hashing import block_hashes, digest64
from tenfold.kvcache.waiting import MatchIndex

suffixes = st.lists(st.integers(0, 1), min_size=1, max_size=6)
cuts = st.integers(0, 14)
namespaces = st.sampled_from(["", "a"])


@dataclass
class Running:
    kv: SequenceKV
    namespace: str
    tokens: list[int]
    required: list[list[int]] = field(default_factory=list)


class CacheMachine(RuleBasedStateMachine):
    """``written[g][block][slot]`` is the (namespace, token prefix) whose KV was last put there."""

    @initialize(
        size=st.integers(1, 3),
        window=st.sampled_from([None, 1, 3, 7]),
        pages=st.integers(8, 60),
        capacity=st.integers(6, 40),
        collide=st.booleans(),
        prefix_cache=st.sampled_from([True, True, True, False]),
        page_bytes=st.sampled_from([7, 20, 64]),
    )
    def start(
        self,
        size: int,
        window: int | None,
        pages: int,
        capacity: int,
        collide: bool,
        prefix_cache: bool,
        page_bytes: int,
    ) -> None:
        groups = [KVGroup("global", (0,), 1, 1, dtype="f16")]
        if window is not None:
            groups.append(KVGroup("sliding", (1, 2), 1, 1, window, "f16"))
        self.size = size
        self.windows = [group.window for group in groups]
        self.budget = Budget(pages)
        self.digest = (lambda data: digest64(data) % 2) if collide else digest64
        self.cache = KVCache(
            groups,
            [FakePages(self.budget) for _ in groups],
            block_tokens=size,
            page_bytes=page_bytes,
            capacity_blocks=[capacity for _ in groups],
            prefix_cache=prefix_cache,
        )
        self.index = MatchIndex(self.cache.tree)
        self.written: list[dict[int, dict[int, object]]] = [{} for _ in groups]
        self.running: list[Running] = []
        self.watched: dict[str, tuple[list[int], str]] = {}
        self.keys = 0
        self.seen: list[list[int]] = [[]]

    def hashes(self, tokens: list[int], namespace: str) -> list[int]:
        return block_hashes(tokens, self.size, namespace, digest=self.digest)

    def draw_tokens(self, data: st.DataObject, cut: int, suffix: list[int]) -> list[int]:
        """A prompt that begins like an earlier sequence, generated tokens included."""
        tokens = data.draw(st.sampled_from(self.seen))[:cut] + suffix
        self.seen.append(tokens)
        return list(tokens)

    def check_content(self, run: Running) -> None:
        computed = run.kv.computed
        for group, window in enumerate(self.windows):
            table = self.cache.table(run.kv, group).tolist()
            first = 0 if window is None else max(0, computed - window) // self.size
            for position in range(computed):
                block = table[position // self.size]
                if position // self.size < first:
                    assert block == -1
                else:
                    prefix = (run.namespace, tuple(run.tokens[: position + 1]))
                    assert self.written[group][block][position % self.size] == prefix

    # --- rules --------------------------------------------------------------------------------
    @rule(data=st.data(), cut=cuts, suffix=suffixes, namespace=namespaces)
    def arrive(self, data: st.DataObject, cut: int, suffix: list[int], namespace: str) -> None:
        self.open(data, cut, suffix, namespace)

    def open(self, data: st.DataObject, cut: int, suffix: list[int], namespace: str) -> None:
        tokens = self.draw_tokens(data, cut, suffix)
        expected = brute_match(self.cache.tree, tokens, namespace)
        used = [ledger.used for ledger in self.cache.ledgers]
        kv = self.cache.open(tokens, self.hashes(tokens, namespace), namespace)
        assert kv.cached_tokens == kv.computed == expected < len(tokens)
        assert [ledger.used for ledger in self.cache.ledgers] == used
        self.running.append(Running(kv, namespace, list(tokens)))

    @rule(data=st.data(), cut=cuts, suffix=suffixes, namespace=namespaces, stay=st.booleans())
    def whole_request(
        self, data: st.DataObject, cut: int, suffix: list[int], namespace: str, stay: bool
    ) -> None:
        """A sequence that comes, computes its prompt and some more, and goes or stays."""
        self.open(data, cut, suffix, namespace)
        run = self.running[-1]
        self.compute(run, len(run.tokens))
        run.tokens += data.draw(suffixes)
        self.compute(run, len(run.tokens))
        if not stay:
            self.cache.close(self.running.pop().kv)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), more=st.integers(0, 9))
    def reserve(self, data: st.DataObject, more: int) -> None:
        run = data.draw(st.sampled_from(self.running))
        before = [self.cache.table(run.kv, g).tolist() for g in range(len(self.windows))]
        upto = run.kv.computed + more
        done = self.cache.reserve(run.kv, upto)
        for group, old in enumerate(before):
            table = self.cache.table(run.kv, group).tolist()
            assert table[: len(old)] == old
            assert len(table) == (max(len(old), -(-upto // self.size)) if done else len(old))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), more=st.integers(1, 9), generated=st.lists(st.integers(0, 1), max_size=9))
    def step(self, data: st.DataObject, more: int, generated: list[int]) -> None:
        run = data.draw(st.sampled_from(self.running))
        start = run.kv.computed
        run.tokens += generated[: max(0, start + more - len(run.tokens))]
        self.seen.append(run.tokens)
        self.compute(run, min(start + more, len(run.tokens)))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def prefill(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.running))
        self.compute(run, len(run.tokens))

    def compute(self, run: Running, end: int) -> None:
        """Write KV up to ``end``, or as far as blocks can be had."""
        self.cache.reserve(run.kv, end)
        tables = [self.cache.table(run.kv, g) for g in range(len(self.windows))]
        end = min(end, *(len(table) * self.size for table in tables))
        for position in range(run.kv.computed, end):
            for group, table in enumerate(tables):
                block = int(table[position // self.size])
                prefix = (run.namespace, tuple(run.tokens[: position + 1]))
                self.written[group].setdefault(block, {})[position % self.size] = prefix
        self.cache.advance(run.kv, run.tokens, self.hashes(run.tokens, run.namespace), end)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), more=st.integers(1, 9), keep=st.integers(0, 9))
    def guess(self, data: st.DataObject, more: int, keep: int) -> None:
        """Compute tokens behind the last one, of which the first ``keep`` turn out right."""
        run = data.draw(st.sampled_from(self.running))
        self.compute(run, len(run.tokens))
        start = run.kv.computed
        if start < len(run.tokens) or not self.cache.reserve(run.kv, start + more):
            return
        drafted = [(start + i) % 2 for i in range(more)]
        for group in range(len(self.windows)):
            table = self.cache.table(run.kv, group)
            for position in range(start, start + more):
                block, prefix = int(table[position // self.size]), [*run.tokens, *drafted]
                written = self.written[group].setdefault(block, {})
                written[position % self.size] = (run.namespace, tuple(prefix[: position + 1]))
        run.tokens += drafted[:keep]
        self.seen.append(run.tokens)
        end = len(run.tokens)
        self.cache.advance(run.kv, run.tokens, self.hashes(run.tokens, run.namespace), end)
        self.cache.trim(run.kv, end)
        for group in range(len(self.windows)):
            assert len(self.cache.table(run.kv, group)) == -(-end // self.size)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.running))
        self.cache.close(run.kv)
        self.cache.close(run.kv)
        self.running.remove(run)

    def idle_pages(self) -> int:
        """Pages in which blocks lie, none of them an open sequence's."""
        found = 0
        for group, ledger in enumerate(self.cache.ledgers):
            tables = [self.cache.table(run.kv, group).tolist() for run in self.running]
            used = {block for table in tables for block in table}
            live = {block for block in range(ledger.blocks) if ledger.is_live(block)}
            pages = [
                {p for b in blocks for p in ledger.pages_of(b)} for blocks in (live, used - {-1})
            ]
            found += len(pages[0] - pages[1])
        return found

    @rule(pages=st.integers(0, 5))
    def evict_pages(self, pages: int) -> None:
        before, idle = self.cache.stats(), self.idle_pages()
        assert self.cache.idle_pages() == idle
        given = self.cache.evict_pages(pages)
        assert before.mapped_pages - self.cache.stats().mapped_pages == given
        assert min(pages, idle) <= given <= idle
        assert self.idle_pages() == idle - given
        if not idle or not pages:
            assert self.cache.stats() == before  # nothing is lost in vain

    @rule()
    def evict_all(self) -> None:
        self.cache.evict_all()
        assert self.cache.stats().cached == 0
        if not self.running:
            assert self.budget.used == 0

    @rule(pages=st.sampled_from([0, 10, 20, 30, 40, 60]))
    def change_budget(self, pages: int) -> None:
        self.budget.pages = pages

    @rule(data=st.data(), cut=cuts, suffix=suffixes, namespace=namespaces)
    def watch(self, data: st.DataObject, cut: int, suffix: list[int], namespace: str) -> None:
        tokens = self.draw_tokens(data, cut, suffix)
        self.keys += 1
        key = str(self.keys)
        self.watched[key] = (tokens, namespace)
        self.index.watch(key, tokens, self.hashes(tokens, namespace), namespace)

    @precondition(lambda self: self.watched)
    @rule(data=st.data())
    def unwatch(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.watched)))
        del self.watched[key]
        self.index.unwatch(key)
        self.index.unwatch(key)

    # --- what always holds --------------------------------------------------------------------
    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "cache"):
            return
        assert self.cache.check_integrity() == []
        for run in self.running:
            self.check_content(run)
        for (namespace, prefix), blocks in contents(self.cache.tree).items():
            for group, block in enumerate(blocks):
                for slot in range(self.size) if block >= 0 else ():
                    end = len(prefix) - self.size + slot + 1
                    assert self.written[group][block][slot] == (namespace, prefix[:end])
        for key, (tokens, namespace) in self.watched.items():
            assert self.index.matched(key) == brute_match(self.cache.tree, tokens, namespace)
        if not self.running:
            assert self.cache.stats().used == 0
        assert 0 <= self.budget.used == self.cache.stats().mapped_pages

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        for run in self.running:
            self.cache.close(run.kv)
        for key in self.watched:
            self.index.unwatch(key)
        self.cache.evict_all()
        assert self.cache.check_integrity() == []
        assert self.budget.used == 0 and self.cache.tree.roots == {}
        assert not self.index._at and not self.index._next


class TestCacheMachine(CacheMachine.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestCacheMachineAtLength(CacheMachine.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=600, stateful_step_count=60, deadline=None)
