"""Prompts that share what they begin with: tokens, and block hashes, are kept once a shared part.

A prompt is the tokens of another one and some of its own behind them. Knows nothing of who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from tenfold.kvcache.hashing import IntArray, extend_hashes

FIRST_TOKEN, LAST_TOKEN = 1000, 30_000
"""Made-up tokens lie here: plain words in every vocabulary that is served."""


DRAWN = 512
"""Tokens that are drawn at once."""


class Prompt:
    """Token ids, immutable: those of ``before``, then ``own``. An array to numpy, and a sequence of
    which only slices are taken."""

    __slots__ = ("_block", "_hashes", "_length", "before", "own")

    def __init__(self, own: IntArray, before: Prompt | None = None) -> None:
        self.own = own
        self.before = before
        self._length: int = len(own) + (0 if before is None else len(before))
        self._block = 0
        self._hashes: list[int] = []

    def plus(self, own: IntArray | Sequence[int]) -> Prompt:
        """This prompt, and these tokens behind it."""
        return Prompt(np.asarray(own, dtype=np.int32), self)

    def hashes(self, block_tokens: int) -> list[int]:
        """The chained hashes of its full blocks, in the empty namespace. Not to be changed."""
        if self._block != block_tokens:
            hashes = [] if self.before is None else self.before.hashes(block_tokens).copy()
            extend_hashes(hashes, cast(IntArray, self), block_tokens)
            self._hashes, self._block = hashes, block_tokens
        return self._hashes

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> IntArray:
        start, stop, step = part.indices(self._length)
        return self._span(start, stop)[::step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> IntArray:
        whole = self._span(0, self._length)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _span(self, start: int, stop: int) -> IntArray:
        pieces: list[IntArray] = []
        part: Prompt | None = self
        while part is not None and start < stop:
            first = part._length - len(part.own)
            if first < stop:
                pieces.append(part.own[max(0, start - first) : stop - first])
                stop = min(stop, first)
            part = part.before
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces[::-1]) if pieces else np.empty(0, dtype=np.int32)


class Words:
    """Made-up token ids from one seed: the same calls in the same order give the same tokens."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._drawn = np.empty(0, dtype=np.int32)
        self._next = 0

    def tokens(self, count: int) -> IntArray:
        if self._next + count > len(self._drawn):  # a draw costs more than the numbers it gives
            size = max(count, DRAWN)
            self._drawn = self._random.integers(FIRST_TOKEN, LAST_TOKEN, size, dtype=np.int32)
            self._next = 0
        first = self._next
        self._next += count
        return self._drawn[first : self._next]

    def prompt(self, count: int) -> Prompt:
        """A prompt that shares nothing with others."""
        return Prompt(self.tokens(count))
