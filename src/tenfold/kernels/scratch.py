"""Memory for results that are needed for a moment only: a stack that only grows.

What was taken inside a scope is free again when the scope ends, so a step's intermediate results
use the same few megabytes layer after layer, and lie at the same addresses when it is replayed.
Knows nothing of what is kept in it, nor of where its memory comes from. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from tenfold.kernels.lines import CACHE_LINE

LINE = CACHE_LINE // 4
"""Every tensor begins at a multiple of so many floats, a cache line."""


class ScratchMemory(Protocol):
    """Where a stack gets its memory."""

    def grow(self, floats: int) -> Tensor:
        """At least so many floats in one piece, uninitialised: the piece of the last call made
        longer, at the same address, or another one. Raises OutOfMemory."""
        ...


class HeapMemory:
    """Pieces of the process's own memory, at least ``chunk`` floats each."""

    def __init__(self, chunk: int = 1 << 20) -> None:
        self._chunk = chunk

    def grow(self, floats: int) -> Tensor:
        size = max(self._chunk, 1 << (floats - 1).bit_length() if floats else 0)
        return torch.empty(size, dtype=torch.float32, device="cpu")


class Scratch:
    """Float32 tensors from the pieces that ``memory`` gives, each within one piece."""

    def __init__(self, memory: ScratchMemory | None = None) -> None:
        self._memory = memory or HeapMemory()
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
        """An uninitialised (rows, cols), valid until the innermost open scope ends.

        Raises OutOfMemory, nothing taken, where the memory cannot grow."""
        count = rows * cols
        index, offset = self._at
        while index == len(self._chunks) or offset + count > len(self._chunks[index]):
            if index + 1 < len(self._chunks):
                index, offset = index + 1, 0
                continue
            chunk = self._memory.grow(offset + count)
            if self._chunks and chunk.data_ptr() == self._chunks[-1].data_ptr():
                self._chunks[-1] = chunk
            else:
                self._chunks.append(chunk)
                index, offset = len(self._chunks) - 1, 0
        self._at = (index, offset + -(-count // LINE) * LINE)
        return self._chunks[index][offset : offset + count].view(rows, cols)
