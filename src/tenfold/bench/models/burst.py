"""A burst: memory moves from an idle model's cached prefixes to a busy model that needs it now.

Two KV caches over one full pool of real pages, as on a device. The busy one wants room for a long
prompt; cached prefixes of the idle one make way; then they change places. What each has before and
after is the operating system's count, and a round counts only if that has moved. Runs no model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tenfold.bench.models.point import Before, Machine
from tenfold.bench.report import percentile
from tenfold.core.errors import OutOfMemory
from tenfold.core.types import KVGroup
from tenfold.kvcache.cache import KVCache, SequenceKV
from tenfold.kvcache.hashing import block_hashes
from tenfold.memory.backends import open_backend
from tenfold.memory.pool import PagePool, VirtualRange
from tenfold.memory.watermarks import Watermarks

BLOCK_TOKENS = 16
MOVED = 64 << 20
SIDE_BY_SIDE = 4
"""Sequences that fill a cache together, so that pages hold blocks of several of them."""

Backend = Literal["anon", "memfd"]


@dataclass(slots=True)
class BurstResult:
    """``seconds`` that each move took. ``idle_bytes`` and ``busy_bytes``: what the two models had
    by the operating system's count, (before, after), round by round."""

    backend: Backend
    moved_bytes: int
    page_bytes: int
    seconds: list[float] = field(default_factory=list)
    idle_bytes: list[tuple[int, int]] = field(default_factory=list)
    busy_bytes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return percentile(sorted(self.seconds), 0.5)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"p50": self.p50, "worst": max(self.seconds)}


def measure_burst(
    machine: Machine, rounds: int, before: Before
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Bursts of 64 MiB over each kind of pages of a CPU."""
    backends: Sequence[Backend] = ("anon", "memfd")
    for backend in backends:
        before(f"a burst over {backend} pages")
        yield backend, burst(backend, rounds=rounds, page_bytes=machine.page_bytes).to_json()


def burst(
    backend: Backend, *, rounds: int = 20, moved: int = MOVED, page_bytes: int = 2 << 20
) -> BurstResult:
    """Move at least ``moved`` bytes, ``rounds`` times, after one time that does not count.

    Raises OutOfMemory when the machine has not twice ``moved``, or when by the system's count less
    has moved."""
    pages = -(-moved // page_bytes)
    pool = PagePool(open_backend(backend, page_bytes), 2 * pages)
    marks = Watermarks(pool, pages // 8, pages // 4)
    try:
        idle, busy = _Model(pool, "one", pages), _Model(pool, "two", pages)
        found = BurstResult(backend, moved, page_bytes)
        for number in range(rounds + 1):
            busy.cache.evict_all()
            idle.fill(2 * pages)
            _move(idle, busy, pages, found)
            if number == 0:  # the system found the memory for the first time
                found = BurstResult(backend, moved, page_bytes)
            idle, busy = busy, idle
        return found
    finally:
        marks.close()
        pool.close()


def _move(idle: _Model, busy: _Model, pages: int, found: BurstResult) -> None:
    before = idle.space.resident_bytes(), busy.space.resident_bytes()
    began = time.perf_counter()
    kv = busy.want(pages, idle)
    seconds = time.perf_counter() - began
    after = idle.space.resident_bytes(), busy.space.resident_bytes()
    busy.cache.close(kv)
    if before[0] - after[0] < found.moved_bytes or after[1] - before[1] < found.moved_bytes:
        raise OutOfMemory(
            f"a burst of {found.moved_bytes} bytes took {before[0] - after[0]} from the idle model "
            f"and gave the busy one {after[1] - before[1]}, by the system's count"
        )
    found.seconds.append(seconds)
    found.idle_bytes.append((before[0], after[0]))
    found.busy_bytes.append((before[1], after[1]))


class _Model:
    """A KV cache of SmolLM2-135M's shape with pages of its own."""

    def __init__(self, pool: PagePool, name: str, pages: int) -> None:
        group = KVGroup("global", tuple(range(30)), 3, 64, dtype="f16")
        self.block_bytes = group.block_bytes(BLOCK_TOKENS)
        self.page_bytes = pool.page_bytes
        blocks = 4 * pages * pool.page_bytes // self.block_bytes
        self.space: VirtualRange = pool.create(name, "kv-global", blocks * self.block_bytes)
        self.cache = KVCache(
            [group],
            [self.space],
            block_tokens=BLOCK_TOKENS,
            page_bytes=pool.page_bytes,
            capacity_blocks=[blocks],
        )
        self._texts = 0

    def fill(self, pages: int) -> None:
        """Cached prefixes, until the model has so many pages and all of them are idle."""
        size = pages * self.page_bytes // self.block_bytes * BLOCK_TOKENS // SIDE_BY_SIDE
        self.cache.evict_all()
        texts = [self._text(size) for _ in range(SIDE_BY_SIDE)]
        open_ = [self.cache.open(text, block_hashes(text, BLOCK_TOKENS)) for text in texts]
        for upto in range(BLOCK_TOKENS, size + 1, BLOCK_TOKENS):
            for kv in open_:
                if not self.cache.reserve(kv, upto):
                    raise OutOfMemory(self.space.refusal)
        for kv, text in zip(open_, texts, strict=True):
            whole = size // BLOCK_TOKENS * BLOCK_TOKENS
            self.cache.advance(kv, text, block_hashes(text, BLOCK_TOKENS), whole)
            self.cache.close(kv)

    def want(self, pages: int, idle: _Model) -> SequenceKV:
        """Room for a prompt that takes so many pages more, from the other's cache."""
        blocks = pages * self.page_bytes // self.block_bytes
        text = self._text(blocks * BLOCK_TOKENS)
        kv = self.cache.open(text, [])
        while not self.cache.reserve(kv, len(text)):
            if not idle.cache.evict_pages(pages - self.space.available()):
                raise OutOfMemory(self.space.refusal)
        return kv

    def _text(self, size: int) -> list[int]:
        self._texts += 1
        return list(range(self._texts << 20, (self._texts << 20) + size))
