"""What one open sequence holds: its block tables and its place in the prefix tree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tenfold.kvcache.hashing import IntArray
from tenfold.kvcache.node import Node


class BlockTable:
    """A growing int32 array: entry i is the block of tokens [i, i + 1) x block_tokens.

    Entries before ``first`` are -1: freed behind the window, or never taken.
    """

    __slots__ = ("_ids", "first", "size")

    def __init__(self, ids: IntArray, first: int) -> None:
        self._ids = ids
        self.size = len(ids)
        self.first = first

    def view(self) -> IntArray:
        """All entries, without a copy. Read-only for callers, and stale after the next change."""
        return self._ids[: self.size]

    def extend(self, blocks: list[int]) -> None:
        need = self.size + len(blocks)
        if need > len(self._ids):
            grown = np.full(max(need, 2 * len(self._ids), 8), -1, dtype=np.int32)
            grown[: self.size] = self._ids[: self.size]
            self._ids = grown
        self._ids[self.size : need] = blocks
        self.size = need

    def cut(self, size: int) -> list[int]:
        """Forget the entries from ``size`` on and return them, to be freed."""
        spare: list[int] = self._ids[size : self.size].tolist()
        self.size = min(self.size, size)
        return spare

    def drop_before(self, first: int) -> None:
        """Forget the entries before ``first``; whoever calls has freed them."""
        self._ids[self.first : first] = -1
        self.first = max(self.first, first)


@dataclass(slots=True, eq=False)
class SequenceKV:
    """An open sequence. Made by ``KVCache.open`` and changed only by that cache.

    ``cached_tokens``: how many first tokens need no computing. ``computed``: positions below it
    hold valid KV. ``node``: the deepest tree node that it locks (None with the prefix cache off);
    the table entries below ``kept`` blocks are the tree's, the others its own.
    """

    namespace: str
    cached_tokens: int
    computed: int
    node: Node | None
    kept: int
    tables: list[BlockTable] = field(default_factory=list)
    can_insert: bool = True
    closed: bool = False
