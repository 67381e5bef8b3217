"""What it costs to get whole pages back from a cache of finished answers: by page against by age.

Answers of 16 to 256 tokens grow side by side, so that every page holds blocks of several of them:
the shape that shows fragmentation. Block numbers only, no memory. Does not time anything.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from tenfold.core.errors import OutOfMemory
from tenfold.core.types import KVGroup
from tenfold.kvcache.cache import KVCache, SequenceKV
from tenfold.kvcache.hashing import block_hashes

BLOCK_TOKENS = 16
PROMPT_TOKENS = 48
SIDE_BY_SIDE = 16

Evict = Callable[[KVCache, int], int]


@dataclass(slots=True)
class EvictionResult:
    """``wanted`` pages were taken from a cache of ``pages``. ``tokens_lost``: cached tokens that
    went with them, of ``tokens_cached``. ``recent_kept``: share of the tokens of the latest quarter
    of the answers that is still cached; ``all_kept``: of all of them. ``filled``: live bytes by
    mapped bytes, before and after."""

    policy: str
    seed: int
    pages: int
    wanted: int
    given: int
    tokens_cached: int
    tokens_lost: int
    recent_kept: float
    all_kept: float
    filled_before: float
    filled_after: float

    def to_json(self) -> dict[str, object]:
        return asdict(self)


class _Budget:
    """So many pages and no more; or without a bound."""

    def __init__(self, pages: int) -> None:
        self.left = pages

    def map(self, pages: Sequence[int]) -> bool:
        if len(pages) > self.left:
            return False
        self.left -= len(pages)
        return True

    def unmap(self, pages: Sequence[int]) -> None:
        self.left += len(pages)

    def available(self) -> int:
        return self.left


def by_page(cache: KVCache, pages: int) -> int:
    """As the server does."""
    return cache.evict_pages(pages)


def by_age(cache: KVCache, pages: int) -> int:
    """Least recently used blocks first, until so many pages have fallen free."""
    before = cache.stats().mapped_pages
    while (given := before - cache.stats().mapped_pages) < pages:
        freed = cache.tree.evict(1)
        if freed is None:
            break
        for ledger, blocks in zip(cache.ledgers, freed, strict=True):
            ledger.give(blocks)
    return given


def staggered(
    seed: int,
    *,
    answers: int = 600,
    pages: int = 400,
    again: float = 0.3,
    share: float = 0.25,
    group: KVGroup | None = None,
    page_bytes: int = 2 << 20,
) -> list[EvictionResult]:
    """Take ``share`` of the pages back from two equal caches, by each policy, while answers run.

    Before that, a model of ``pages`` pages has given so many ``answers`` that most have left its
    cache again; with probability ``again`` a prompt goes on from one of the latest answers."""
    group = group or KVGroup("global", tuple(range(30)), 3, 64, dtype="f16")
    found = []
    policies: list[tuple[str, Evict]] = [("page", by_page), ("age", by_age)]
    for name, evict in policies:
        cache = KVCache(
            [group],
            [_Budget(pages)],
            block_tokens=BLOCK_TOKENS,
            page_bytes=page_bytes,
            capacity_blocks=[answers * 32],
        )
        texts = _fill(cache, random.Random(seed), answers, again)
        found.append(_measure(cache, texts, name, seed, evict, share))
    return found


def _fill(cache: KVCache, rng: random.Random, answers: int, again: float) -> list[list[int]]:
    """Answer so many prompts, some of them side by side, a token each in turn; the answers, in the
    order in which they were last used. Those begun last are left running."""
    running: list[tuple[SequenceKV, list[int], int]] = []
    ended: list[list[int]] = []
    for begun in range(answers):
        text = [begun * 1000 + at for at in range(PROMPT_TOKENS)]
        if ended and rng.random() < again:
            earlier = ended.pop(-rng.randint(1, min(len(ended), 4 * SIDE_BY_SIDE)))
            text = [*earlier, *text]
        kv = cache.open(text, block_hashes(text, BLOCK_TOKENS))
        running.append((kv, text, len(text) + rng.randint(16, 256)))
        while len(running) >= SIDE_BY_SIDE:
            running = [one for one in running if _decode(cache, *one, ended)]
    return ended


def _decode(
    cache: KVCache, kv: SequenceKV, text: list[int], end: int, ended: list[list[int]]
) -> bool:
    """One more token; whether the answer goes on."""
    if not cache.reserve(kv, len(text)):
        raise OutOfMemory(f"{cache.stats().mapped_pages} pages are too few for what runs")
    cache.advance(kv, text, block_hashes(text, BLOCK_TOKENS), len(text))
    if len(text) < end:
        text.append(text[-1] + 1)
        return True
    cache.close(kv)
    ended.append(text)
    return False


def _measure(
    cache: KVCache, texts: list[list[int]], name: str, seed: int, evict: Evict, share: float
) -> EvictionResult:
    before = cache.stats()
    wanted = int(before.mapped_pages * share)
    filled = _filled(cache)
    given = evict(cache, wanted)
    after = cache.stats()
    recent = texts[-len(texts) // 4 :]
    return EvictionResult(
        policy=name,
        seed=seed,
        pages=before.mapped_pages,
        wanted=wanted,
        given=given,
        tokens_cached=before.cached * BLOCK_TOKENS,
        tokens_lost=(before.cached - after.cached) * BLOCK_TOKENS,
        recent_kept=_kept(cache, recent),
        all_kept=_kept(cache, texts),
        filled_before=filled,
        filled_after=_filled(cache),
    )


def _filled(cache: KVCache) -> float:
    mapped = cache.stats().mapped_pages * cache.ledgers[0].page_bytes
    return cache.live_bytes() / mapped if mapped else 1.0


def _kept(cache: KVCache, texts: list[list[int]]) -> float:
    """Share of the full blocks of these texts that the cache still has."""
    whole = kept = 0
    for text in texts:
        blocks = len(text) // BLOCK_TOKENS
        again = [*text, 0]
        kv = cache.open(again, block_hashes(again, BLOCK_TOKENS))
        whole, kept = whole + blocks, kept + kv.cached_tokens // BLOCK_TOKENS
        cache.close(kv)
    return kept / whole
