"""The match index against matching from scratch, over a tree that grows and shrinks at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kv_model import brute_match, contents

from tenfold.kvcache.hashing import block_hashes, digest64
from tenfold.kvcache.node import Node
from tenfold.kvcache.radix import RadixTree
from tenfold.kvcache.waiting import MatchIndex

tokens_st = st.lists(st.integers(0, 1), min_size=1, max_size=10)


class Mirror:
    """The set of cached hashes, from the tree's events alone, as a router would keep it."""

    def __init__(self) -> None:
        self.hashes: set[tuple[str, int]] = set()

    def on_insert(self, node: Node, first: int) -> None:
        fresh = {(node.namespace, h) for h in node.hashes[first - node.start :]}
        assert not fresh & self.hashes
        self.hashes |= fresh

    def on_split(self, head: Node, tail: Node) -> None: ...

    def on_evict(self, node: Node, hashes: list[int]) -> None:
        gone = {(node.namespace, h) for h in hashes}
        assert gone <= self.hashes
        self.hashes -= gone

    def on_window(self, node: Node) -> None: ...


class IndexMachine(RuleBasedStateMachine):
    @initialize(window=st.sampled_from([None, 1, 2, 5]), collide=st.booleans())
    def start(self, window: int | None, collide: bool) -> None:
        self.digest = (lambda data: digest64(data) % 3) if collide else digest64
        self.collide = collide
        self.tree = RadixTree(1, 2, {1: window} if window else None)
        self.index = MatchIndex(self.tree)
        self.mirror = Mirror()
        if not collide:
            self.tree.listeners.append(self.mirror)
        self.watched: dict[str, tuple[list[int], str]] = {}
        self.fresh = 0

    @rule(tokens=tokens_st, holes=st.sets(st.integers(0, 9)), namespace=st.sampled_from("ab"))
    def insert(self, tokens: list[int], holes: set[int], namespace: str) -> None:
        ids = np.arange(self.fresh, self.fresh + len(tokens), dtype=np.int32)
        self.fresh += len(tokens)
        other = ids.copy()
        if self.tree.windows:
            other[[i for i in holes if i < len(tokens)]] = -1
        hashes = block_hashes(tokens, 1, namespace, digest=self.digest)
        root = self.tree.root(namespace)
        match = self.tree.insert(root, np.array(tokens, np.int32), hashes, [ids, other])
        assert match.blocks == len(tokens) or self.collide
        found = self.tree.match(np.array(tokens, np.int32), hashes, namespace)
        assert found == match

    @rule(count=st.integers(1, 4), group=st.sampled_from([None, 0, 1]))
    def evict(self, count: int, group: int | None) -> None:
        held = sum(self.tree.held)
        freed = self.tree.evict(count, group)
        assert (freed is None) == (held == 0)
        assert sum(self.tree.held) == held - sum(map(len, freed or []))

    @rule(tokens=tokens_st, namespace=st.sampled_from("ab"))
    def watch(self, tokens: list[int], namespace: str) -> None:
        self.fresh += 1
        key = str(self.fresh)
        self.watched[key] = (tokens, namespace)
        hashes = block_hashes(tokens, 1, namespace, digest=self.digest)
        self.index.watch(key, tokens, hashes, namespace)

    @precondition(lambda self: len(self.watched) > 6)
    @rule(data=st.data())
    def unwatch(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.watched)))
        del self.watched[key]
        self.index.unwatch(key)

    @invariant()
    def equals_matching_afresh(self) -> None:
        if not hasattr(self, "tree"):
            return
        for key, (tokens, namespace) in self.watched.items():
            assert self.index.matched(key) == brute_match(self.tree, tokens, namespace)
        cached = contents(self.tree)
        if not self.collide:
            hashes = {(ns, block_hashes(list(p), 1, ns)[-1]) for ns, p in cached}
            assert self.mirror.hashes == hashes
        assert self.tree.held[0] == len(cached)
        assert self.tree.held == self.tree.idle


class TestIndex(IndexMachine.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestIndexAtLength(IndexMachine.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=300, stateful_step_count=50, deadline=None)


def indexed(*prompts: list[int]) -> tuple[RadixTree, MatchIndex]:
    tree = RadixTree(1, 1)
    index = MatchIndex(tree)
    for i, tokens in enumerate(prompts):
        index.watch(str(i), tokens, block_hashes(tokens, 1), "")
    index.take_changed()
    return tree, index


def put(tree: RadixTree, tokens: list[int], first_id: int = 0) -> None:
    ids = np.arange(first_id, first_id + len(tokens), dtype=np.int32)
    tree.insert(tree.root(""), np.array(tokens, np.int32), block_hashes(tokens, 1), [ids])


def test_only_affected_requests_are_touched() -> None:
    tree, index = indexed([1, 2, 3, 0], [1, 9, 9, 0], [5, 5, 5, 0])
    put(tree, [1, 2, 3])
    assert index.take_changed() == {"0", "1"}
    put(tree, [1, 2, 3, 4, 4])
    assert index.take_changed() == set()
    put(tree, [5, 5], 10)
    assert index.take_changed() == {"2"}
    assert [index.matched(k) for k in "012"] == [3, 1, 2]
    put(tree, [1, 9], 20)  # splits the node where both of the first end
    assert index.matched("1") == 2 and "2" not in index.take_changed()


def test_a_prompt_that_diverged_where_a_leaf_was_cut_finds_its_way_again() -> None:
    tree, index = indexed([1, 7, 7, 0])
    put(tree, [1, 2, 3])
    assert tree.evict(2) == [[1, 2]]
    assert index.matched("0") == 1
    put(tree, [1, 7, 7])
    assert index.matched("0") == 3


def test_a_match_cut_short_by_missing_window_blocks_follows_the_blocks_it_fell_back_to() -> None:
    tree = RadixTree(1, 2, {1: 1})
    index = MatchIndex(tree)
    tokens = [1, 2, 3, 4]
    ids = np.arange(3, dtype=np.int32)
    holed = np.array([0, -1, -1], dtype=np.int32)
    hashes = block_hashes(tokens, 1)
    tree.insert(tree.root(""), np.array(tokens[:3], np.int32), hashes[:3], [ids, holed])
    put_split = [1, 9]
    tree.insert(
        tree.root(""),
        np.array(put_split, np.int32),
        block_hashes(put_split, 1),
        [ids[:2] + 10, np.array([-1, -1], np.int32)],
    )
    index.watch("0", tokens, hashes, "")
    assert index.matched("0") == 1
    assert tree.evict(1, 1) == [[], [0]]
    assert index.matched("0") == 0


def test_the_last_token_never_counts() -> None:
    tree, index = indexed([1, 2], [1], [])
    put(tree, [1, 2, 3])
    assert [index.matched(k) for k in "012"] == [1, 0, 0]


def test_keys_are_unique_and_unknown_ones_fail() -> None:
    _, index = indexed([1, 2])
    with pytest.raises(ValueError, match="watched"):
        index.watch("0", [1], [], "")
    with pytest.raises(KeyError):
        index.matched("7")
    index.unwatch("7")
    assert "0" in index and len(index) == 1


def test_a_watched_namespace_survives_its_last_block() -> None:
    tree, index = indexed([1, 2, 3])
    put(tree, [1, 2])
    tree.evict(9)
    put(tree, [1, 2])
    assert index.matched("0") == 2
    index.unwatch("0")
    tree.evict(9)
    assert tree.roots == {}
