"""What the cache promises, one promise a test."""

from __future__ import annotations

import numpy as np
import pytest
from kv_pages import Budget, FakePages

from tenfold.core.types import KVGroup
from tenfold.kvcache.cache import KVCache, SequenceKV
from tenfold.kvcache.hashing import block_hashes

B = 4


def make(
    *windows: int | None, pages: int = 1000, capacity: int = 100, prefix_cache: bool = True
) -> KVCache:
    """One block of each group is exactly one page."""
    groups = [KVGroup(f"g{i}", (i,), 1, 1, w) for i, w in enumerate(windows or (None,))]
    budget = Budget(pages)
    return KVCache(
        groups,
        [FakePages(budget) for _ in groups],
        block_tokens=B,
        page_bytes=8 * B,
        capacity_blocks=[capacity] * len(groups),
        prefix_cache=prefix_cache,
    )


def opened(cache: KVCache, tokens: list[int], namespace: str = "") -> SequenceKV:
    return cache.open(tokens, block_hashes(tokens, B, namespace), namespace)


def advance(cache: KVCache, seq: SequenceKV, tokens: list[int], computed: int) -> None:
    cache.advance(seq, tokens, block_hashes(tokens, B, seq.namespace), computed)


def run(cache: KVCache, tokens: list[int], namespace: str = "") -> SequenceKV:
    seq = opened(cache, tokens, namespace)
    assert cache.reserve(seq, len(tokens))
    advance(cache, seq, tokens, len(tokens))
    return seq


def test_a_prefix_is_computed_once_and_one_token_is_always_left() -> None:
    cache = make()
    first = run(cache, list(range(12)))
    again = opened(cache, list(range(12)))
    longer = opened(cache, [*range(12), 99])
    assert first.cached_tokens == 0
    assert again.cached_tokens == 8
    assert longer.cached_tokens == 12
    assert cache.table(longer, 0).tolist() == cache.table(first, 0).tolist()
    assert cache.table(first, 0).dtype == np.int32
    assert cache.ledgers[0].used == 3


def test_namespaces_share_nothing() -> None:
    cache = make()
    cache.close(run(cache, list(range(12)), "a"))
    assert opened(cache, list(range(12)), "b").cached_tokens == 0
    assert opened(cache, list(range(12)), "a").cached_tokens == 8


def test_two_that_computed_the_same_keep_one_copy() -> None:
    cache = make()
    tokens = list(range(9))
    one, two = opened(cache, tokens), opened(cache, tokens)
    assert cache.reserve(one, 9) and cache.reserve(two, 9)
    assert cache.ledgers[0].used == 6
    advance(cache, one, tokens, 9)
    advance(cache, two, tokens, 9)
    assert cache.ledgers[0].used == 4
    assert cache.table(one, 0)[:2].tolist() == cache.table(two, 0)[:2].tolist()
    assert cache.table(one, 0)[2] != cache.table(two, 0)[2]
    assert cache.check_integrity() == []


def test_reserve_is_all_or_nothing_over_the_groups() -> None:
    cache = make(None, None, pages=5)
    seq = opened(cache, list(range(12)))
    assert not cache.reserve(seq, 12)
    assert cache.stats().mapped_pages == 0 and len(cache.table(seq, 0)) == 0
    assert cache.reserve(seq, 8)
    assert cache.stats().used == 4


def test_the_least_recently_used_leaf_goes_first_from_its_tail() -> None:
    cache = make(pages=6)
    old, new = [1] * 12, [2] * 12
    for tokens in (old, new):
        cache.close(run(cache, tokens))
    cache.close(opened(cache, [*old, 0]))  # used again: now the other is older
    seq = opened(cache, [3] * 4)
    assert cache.reserve(seq, 4)
    assert opened(cache, [*old, 0]).cached_tokens == 12
    assert opened(cache, [*new, 0]).cached_tokens == 8
    assert cache.check_integrity() == []


def test_locked_prefixes_are_never_evicted() -> None:
    cache = make(pages=3)
    holder = run(cache, [1] * 12)
    seq = opened(cache, [2] * 4)
    assert not cache.reserve(seq, 4)
    assert cache.evict_pages(1) == 0 and cache.stats().cached == 0
    cache.close(holder)
    assert cache.reserve(seq, 4)


def test_a_hopeless_reserve_leaves_the_cache_warm() -> None:
    cache = make(pages=10)
    cache.close(run(cache, [1] * 12))
    seq = opened(cache, [2] * 80)
    assert not cache.reserve(seq, 80)
    assert opened(cache, [1] * 13).cached_tokens == 12


def test_sliding_blocks_leave_behind_the_window_and_stay_cached_until_wanted() -> None:
    cache = make(None, 8)
    tokens = list(range(24))
    seq = run(cache, tokens)
    assert cache.table(seq, 1)[:4].tolist() == [-1] * 4
    assert (cache.table(seq, 1)[4:] >= 0).all()
    assert cache.tree.idle == [0, 4]
    assert opened(cache, [*tokens[:12], 0]).cached_tokens == 12  # cached ones serve a match
    assert cache.check_integrity() == []


def test_without_the_window_s_blocks_the_match_is_shorter() -> None:
    cache = make(None, 8, pages=14)
    tokens = list(range(24))
    run(cache, tokens)
    assert cache.stats().used == 8 and cache.stats().cached == 4
    other = opened(cache, [7] * 12)
    assert cache.reserve(other, 12)  # four pages too few: all that lies behind the window goes
    assert opened(cache, [*tokens[:12], 0]).cached_tokens == 0
    assert opened(cache, [*tokens, 0]).cached_tokens == 24


def test_without_a_prefix_cache_sliding_blocks_are_freed_at_once() -> None:
    cache = make(None, 8, prefix_cache=False)
    seq = run(cache, list(range(24)))
    assert [ledger.used for ledger in cache.ledgers] == [6, 2]
    assert opened(cache, list(range(24))).cached_tokens == 0
    cache.close(seq)
    assert cache.stats().used == 0 == cache.stats().mapped_pages
    assert cache.check_integrity() == []


def test_closing_twice_and_using_a_closed_sequence() -> None:
    cache = make()
    seq = run(cache, list(range(9)))
    cache.close(seq)
    cache.close(seq)
    with pytest.raises(ValueError, match="closed"):
        cache.reserve(seq, 12)
    assert cache.stats().used == 0 and cache.stats().cached == 2


def test_advance_checks_what_it_is_told() -> None:
    cache = make()
    seq = opened(cache, list(range(9)))
    cache.reserve(seq, 8)
    with pytest.raises(ValueError, match="reserved"):
        advance(cache, seq, list(range(9)), 9)
    with pytest.raises(ValueError, match="extend them"):
        cache.advance(seq, list(range(9)), [], 8)
    advance(cache, seq, list(range(9)), 8)
    with pytest.raises(ValueError, match="computed before"):
        advance(cache, seq, list(range(9)), 4)


def test_generated_tokens_are_cached_as_one_growing_node() -> None:
    cache = make()
    tokens = list(range(6))
    seq = run(cache, tokens)
    for token in range(100, 140):
        tokens.append(token)
        assert cache.reserve(seq, len(tokens))
        advance(cache, seq, tokens, len(tokens))
    assert len(cache.tree.root("").children) == 1
    cache.close(seq)
    assert opened(cache, [*tokens, 1]).cached_tokens == len(tokens) // B * B


def test_pages_go_back_and_free_tokens_counts_what_could_be_had() -> None:
    cache = make(pages=10)
    assert cache.free_tokens() == 40
    cache.close(run(cache, [1] * 16))
    assert cache.free_tokens() == 40
    assert cache.evict_pages(2) == 2
    assert cache.stats().mapped_pages == 2
    assert cache.evict_all() == 2
    assert cache.stats().mapped_pages == 0 and cache.tree.roots == {}


def test_what_can_never_be_held() -> None:
    assert make(capacity=3).can_ever_hold(12)
    assert not make(capacity=3).can_ever_hold(13)
    assert make(None, 8, capacity=100).can_ever_hold(400)
    limited = KVCache(
        [KVGroup("g", (0,), 1, 1)],
        [FakePages(Budget(99))],
        block_tokens=B,
        page_bytes=8 * B,
        capacity_blocks=[99],
        page_limit=3,
    )
    assert limited.can_ever_hold(12) and not limited.can_ever_hold(13)


def test_evicted_blocks_are_handed_over_without_unmapping() -> None:
    cache = make(pages=4)
    cache.close(run(cache, [1] * 16))
    source = cache.ledgers[0].source
    assert isinstance(source, FakePages)
    source.unmap = None  # type: ignore[method-assign, assignment]
    seq = opened(cache, [2] * 16)
    assert cache.reserve(seq, 16)
