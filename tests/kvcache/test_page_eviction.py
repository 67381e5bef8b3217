"""Which cached blocks go when whole pages are wanted back."""

from __future__ import annotations

import numpy as np
from kv_pages import Budget, FakePages

from tenfold.core.types import KVGroup
from tenfold.kvcache.cache import KVCache, SequenceKV
from tenfold.kvcache.hashing import block_hashes

B = 4
IN_A_PAGE = 4


def make(pages: int = 100, window: int | None = None) -> KVCache:
    """Four blocks of a group fill a page."""
    groups = [KVGroup("global", (0,), 1, 1)]
    if window:
        groups.append(KVGroup("sliding", (1,), 1, 1, window))
    budget = Budget(pages)
    return KVCache(
        groups,
        [FakePages(budget) for _ in groups],
        block_tokens=B,
        page_bytes=groups[0].block_bytes(B) * IN_A_PAGE,
        capacity_blocks=[400] * len(groups),
    )


def begin(cache: KVCache, text: list[int], upto: int) -> SequenceKV:
    kv = cache.open(text, block_hashes(text, B))
    grow(cache, kv, text, upto)
    return kv


def grow(cache: KVCache, kv: SequenceKV, text: list[int], upto: int) -> None:
    assert cache.reserve(kv, upto)
    cache.advance(kv, text, block_hashes(text, B), upto)


def cached(cache: KVCache, text: list[int]) -> int:
    """Blocks of this text that could be gone on from; asking does not make them any newer."""
    found = cache.tree.match(np.array(text, dtype=np.int32), block_hashes(text, B), "")
    return found.blocks


def numbers(first: int, blocks: int) -> list[int]:
    return list(range(1000 * first, 1000 * first + blocks * B))


def side_by_side(cache: KVCache, texts: list[list[int]]) -> list[SequenceKV]:
    """Sequences that take a block each in turn."""
    open_ = [cache.open(text, block_hashes(text, B)) for text in texts]
    longest = max(len(text) for text in texts)
    for upto in range(B, longest + 1, B):
        for kv, text in zip(open_, texts, strict=True):
            if upto <= len(text):
                grow(cache, kv, text, upto)
    return open_


def test_a_page_that_runs_is_no_candidate_and_nothing_is_lost_in_vain() -> None:
    cache = make()
    old, new = numbers(1, 8), numbers(2, 8)
    first, _ = side_by_side(cache, [old, new])  # every page holds blocks of both
    cache.close(first)
    assert cache.stats().cached == 8 and cache.idle_pages() == 0
    assert cache.evict_pages(1) == 0
    assert cached(cache, old) == 8


def test_the_page_that_costs_least_goes_first() -> None:
    cache = make()
    alone, mixed, pinned = numbers(1, 4), numbers(2, 4), numbers(3, 4)
    cache.close(begin(cache, alone, len(alone)))  # page 0: the oldest prefix
    one, two = side_by_side(cache, [mixed, pinned])  # pages 1 and 2
    cache.close(one)
    assert cache.idle_pages() == 1
    assert cache.evict_pages(2) == 1
    assert (cached(cache, alone), cached(cache, mixed)) == (0, 4)
    cache.close(two)
    assert cache.evict_pages(9) == 2 and cache.stats().cached == 0


def test_of_pages_used_alike_the_emptier_one_goes() -> None:
    cache = make()
    texts = [numbers(n, 4) for n in range(3)]
    kvs = [begin(cache, text, len(text)) for text in texts]
    for kv in kvs:
        cache.close(kv)
    middle = cache.tree.roots[""].children[block_hashes(texts[1], B)[0]]
    cache._give(cache.tree.cut(middle, 2))  # its page is half empty
    assert cache.evict_pages(1) == 1
    assert [cached(cache, text) for text in texts] == [4, 0, 4]


def test_prefixes_used_lately_stay() -> None:
    cache = make()
    texts = [numbers(n, 8) for n in range(6)]
    for text in texts:
        cache.close(begin(cache, text, len(text)))
    for _ in range(20):
        again = cache.open([*texts[0], 1], block_hashes(texts[0], B))
        cache.close(again)
    assert cache.evict_pages(4) == 4
    assert cached(cache, texts[0]) == cached(cache, texts[5]) == 8
    assert cache.check_integrity() == []


def test_what_hangs_on_a_block_goes_with_it() -> None:
    cache = make()
    stem = numbers(1, 4)
    leaves = [[*stem, *numbers(10 + n, 4)] for n in range(3)]
    for text in leaves:
        cache.close(begin(cache, text, len(text)))
    assert cache.idle_pages() == 4
    assert cache.evict_pages(1) == 1
    assert cached(cache, stem) == 4  # a leaf's page loses four blocks, the stem's sixteen
    assert cache.evict_pages(3) == 3 and cache.tree.roots == {}


def test_steps_that_were_thought_out_before_are_looked_at_again() -> None:
    cache = make()
    texts = [numbers(n, 4) for n in range(40)]
    for text in texts:
        cache.close(begin(cache, text, len(text)))
    assert cache.evict_pages(1) == 1 and cached(cache, texts[0]) == 0
    again = cache.open([*texts[1], 1], block_hashes(texts[1], B))  # the next to go, now in use
    assert cache.evict_pages(1) == 1
    assert cached(cache, texts[1]) == 4 and cached(cache, texts[2]) == 0
    cache.close(again)
    third = cache.open([*texts[3][: 2 * B], 1], block_hashes(texts[3][: 2 * B], B))  # splits it
    assert cache.evict_pages(1) == 1 and cached(cache, texts[3]) == 4
    cache.close(third)
    assert cache.evict_pages(99) == 37
    assert cache.stats().mapped_pages == 0 and cache.check_integrity() == []


def test_a_page_that_a_sequence_came_into_meanwhile_is_left_alone() -> None:
    cache = make()
    first, short, last = numbers(1, 4), numbers(2, 3), numbers(3, 4)
    cache.close(begin(cache, first, len(first)))  # page 0
    cache.close(begin(cache, short, len(short)))  # page 1, but for a block
    filler = cache.open(numbers(4, 1), [])
    assert cache.reserve(filler, B)
    cache.close(begin(cache, last, len(last)))  # page 2
    cache.close(filler)
    assert cache.evict_pages(1) == 1 and cached(cache, first) == 0
    newcomer = cache.open(numbers(5, 1), [])
    assert cache.reserve(newcomer, B)  # in page 1, as it is mapped
    assert cache.table(newcomer, 0).tolist() == [7]
    assert cache.evict_pages(1) == 1
    assert (cached(cache, short), cached(cache, last)) == (3, 0)


def test_what_windows_left_behind_frees_pages_while_its_sequence_runs() -> None:
    cache = make(window=4)
    text = numbers(1, 16)
    kv = cache.open(text, block_hashes(text, B))
    for upto in range(B, len(text) + 1, B):
        grow(cache, kv, text, upto)
    assert cache.idle_pages() > 0
    before = cache.stats().mapped_pages
    given = cache.evict_pages(2)
    assert given == 2 and cache.stats().mapped_pages == before - 2
    assert cached(cache, text) == 16  # the other group's blocks are all there
    assert cache.check_integrity() == []
    cache.close(kv)
