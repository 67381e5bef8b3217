"""What a cache of prefixes is worth after pages were taken from it: by page against by age.

Answers of 16 to 256 tokens grow side by side, so that every page holds blocks of several of them:
the shape that shows fragmentation. Every so often another model takes some pages away and gives
them back later. Block numbers only, no memory and no clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from tenfold.core.types import KVGroup
from tenfold.kvcache.cache import KVCache, SequenceKV
from tenfold.kvcache.hashing import block_hashes

BLOCK_TOKENS = 16
PROMPT_TOKENS = 48
LONGEST = 1500
SIDE_BY_SIDE = 12
PERIOD = 20
"""Answers from one loss of pages to the next; half of them without the pages."""

Policy = Literal["page", "age"]


@dataclass(slots=True)
class EvictionResult:
    """``hit_share``: of the tokens that prompts took from earlier answers, those that were still
    cached. ``blocks_lost`` went so that ``pages_taken`` pages fell free. ``filled``: live bytes by
    mapped bytes, on average after each loss."""

    policy: Policy
    seed: int
    page_bytes: int
    answers: int
    hit_share: float
    blocks_lost: int
    pages_taken: int
    filled: float

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def staggered(
    policy: Policy,
    seed: int,
    *,
    answers: int = 400,
    pages: int = 200,
    taken: float = 0.125,
    again: float = 0.5,
    page_bytes: int = 2 << 20,
    group: KVGroup | None = None,
) -> EvictionResult:
    """A model with ``pages`` pages gives so many ``answers`` and loses a share ``taken`` of them
    again and again. With probability ``again`` a prompt goes on from an earlier answer, a late one
    most likely. ``group``: SmolLM2-135M's where none is given."""
    run = _Run(policy, random.Random(seed), pages, page_bytes, group or _smollm2(), answers)
    for begun in range(answers):
        if begun % PERIOD == PERIOD // 2:
            run.lose(int(pages * taken))
        if begun % PERIOD == 0:
            run.get_back()
        run.ask(begun, again)
    asked = max(1, run.asked)
    return EvictionResult(
        policy=policy,
        seed=seed,
        page_bytes=page_bytes,
        answers=answers,
        hit_share=run.hits / asked,
        blocks_lost=run.blocks_lost,
        pages_taken=run.pages_taken,
        filled=sum(run.filled) / max(1, len(run.filled)),
    )


def _smollm2() -> KVGroup:
    return KVGroup("global", tuple(range(30)), 3, 64, dtype="f16")


def by_page(cache: KVCache, pages: int) -> int:
    """As the server does."""
    return cache.evict_pages(pages)


def by_age(cache: KVCache, pages: int) -> int:
    """Least recently used blocks first, until so many pages have fallen free."""
    given = 0
    while given < pages and (freed := cache.tree.evict(1)) is not None:
        for ledger, blocks in zip(cache.ledgers, freed, strict=True):
            given += ledger.give(blocks)
    return given


class _Budget:
    """A page source that has ``left`` pages left; fewer than none once another took too many."""

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
        return max(0, self.left)


class _Run:
    """One model's life: what runs, what has ended, and what it found cached."""

    def __init__(
        self,
        policy: Policy,
        rng: random.Random,
        pages: int,
        page_bytes: int,
        group: KVGroup,
        answers: int,
    ) -> None:
        self._evict: Callable[[KVCache, int], int] = by_page if policy == "page" else by_age
        self._rng = rng
        self._budget = _Budget(pages)
        self._away = 0
        self.cache = KVCache(
            [group],
            [self._budget],
            block_tokens=BLOCK_TOKENS,
            page_bytes=page_bytes,
            capacity_blocks=[pages * page_bytes // group.block_bytes(BLOCK_TOKENS)],
        )
        self._running: list[tuple[SequenceKV, list[int], int]] = []
        self._ended: list[list[int]] = []
        self.hits = self.asked = self.blocks_lost = self.pages_taken = 0
        self.filled: list[float] = []

    def lose(self, pages: int) -> None:
        """Give so many pages away, as far as cached blocks allow."""
        before = self.cache.stats().cached
        self._away = self._evict(self.cache, pages)
        self._budget.left -= self._away
        self.pages_taken += self._away
        stats = self.cache.stats()
        self.blocks_lost += before - stats.cached
        mapped = stats.mapped_pages * self.cache.ledgers[0].page_bytes
        self.filled.append(self.cache.live_bytes() / mapped if mapped else 1.0)

    def get_back(self) -> None:
        self._budget.left += self._away
        self._away = 0

    def ask(self, number: int, again: float) -> None:
        """One more prompt; then all that runs goes on until one of them has ended."""
        text = [number * 10_000 + at for at in range(PROMPT_TOKENS)]
        earlier: list[int] = []
        if self._ended and self._rng.random() < again:
            back = min(len(self._ended), int(self._rng.paretovariate(0.6)))
            earlier = self._ended.pop(-back)[:LONGEST]
        text = [*earlier, *text]
        kv = self.cache.open(text, block_hashes(text, BLOCK_TOKENS))
        self.asked += len(earlier)
        self.hits += kv.cached_tokens
        self._running.append((kv, text, len(text) + self._rng.randint(16, 256)))
        while len(self._running) >= SIDE_BY_SIDE:
            self._running = [one for one in self._running if self._decode(*one)]

    def _decode(self, kv: SequenceKV, text: list[int], end: int) -> bool:
        """One more token; whether the answer goes on. One that finds no memory ends early."""
        if self.cache.reserve(kv, len(text)):
            self.cache.advance(kv, text, block_hashes(text, BLOCK_TOKENS), len(text))
            if len(text) < end:
                text.append(text[-1] + 1)
                return True
        self.cache.close(kv)
        self._ended.append(text)
        return False
