"""Memory for results that are needed for a moment only: a stack that is never given back.

What was taken inside a scope is free again when the scope ends, so a step's intermediate results
use the same few megabytes layer after layer, and lie at the same addresses when it is replayed.
Knows nothing of what is kept in it. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_LINE = 16
"""Every tensor begins at a multiple of so many floats, a cache line."""


class Scratch:
    """Float32 tensors from chunks of ``chunk`` elements; a larger one gets a chunk of its own."""

    def __init__(self, chunk: int = 1 << 20) -> None:
        self._chunk = chunk
        self._chunks: list[Tensor] = []
        self._at = (0, 0)
        self._depth = 0

    @property
    def active(self) -> bool:
        """Whether a scope is open; without one nothing may be taken."""
        return self._depth > 0

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._chunks)

    @contextmanager
    def scope(self) -> Iterator[None]:
        mark = self._at
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._at = mark

    def take(self, rows: int, cols: int) -> Tensor:
        """An uninitialised (rows, cols), valid until the innermost open scope ends."""
        count = rows * cols
        index, offset = self._at
        while index == len(self._chunks) or offset + count > len(self._chunks[index]):
            if index == len(self._chunks):
                size = max(self._chunk, 1 << (count - 1).bit_length() if count else 0)
                self._chunks.append(torch.empty(size, dtype=torch.float32, device="cpu"))
            elif len(self._chunks[index]) - offset < count:
                index, offset = index + 1, 0
        self._at = (index, offset + -(-count // _LINE) * _LINE)
        return self._chunks[index][offset : offset + count].view(rows, cols)
