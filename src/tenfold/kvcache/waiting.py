"""How much of each waiting request is cached now, kept up to date change by change.

Each request is filed under the tree node where its match ends, and under the hash of the block it
would need next. An insert, a split or an eviction therefore touches only the requests whose match
it can change. Does not know what the requests wait for, nor in which order.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TypeVar

from tenfold.kvcache.hashing import IntArray, Tokens, as_tokens
from tenfold.kvcache.node import Node
from tenfold.kvcache.radix import Match, RadixTree

K = TypeVar("K")


@dataclass(slots=True, eq=False)
class _Watch:
    key: str
    tokens: IntArray
    hashes: list[int]
    root: Node
    node: Node
    blocks: int = 0
    next_hash: int | None = None
    filed: bool = False
    usable: int = -1
    """Of ``blocks``, how many a sequence could go on from; -1 when not known."""


class MatchIndex:
    """Longest usable cached prefixes of watched token sequences. A listener of one tree."""

    def __init__(self, tree: RadixTree) -> None:
        self._tree = tree
        self._watches: dict[str, _Watch] = {}
        self._at: defaultdict[Node, set[_Watch]] = defaultdict(set)
        self._next: defaultdict[tuple[Node, int], set[_Watch]] = defaultdict(set)
        self._holed: set[_Watch] = set()
        self._changed: set[str] = set()
        tree.listeners.append(self)

    @property
    def block_tokens(self) -> int:
        """Matches come in whole blocks of so many tokens."""
        return self._tree.block_tokens

    def watch(self, key: str, tokens: Tokens, hashes: list[int], namespace: str) -> None:
        """Follow these tokens under ``key``, which must be new. The last token never counts.

        Raises ValueError for a key already watched.
        """
        if key in self._watches:
            raise ValueError(f"{key!r} is watched already")
        array = as_tokens(tokens)
        limit = max(0, len(array) - 1) // self._tree.block_tokens
        root = self._tree.root(namespace)
        root.holds += 1
        watch = _Watch(key, array, hashes[:limit], root, root)
        self._watches[key] = watch
        self._advance(watch)

    def unwatch(self, key: str) -> None:
        """Stop following ``key``; unknown keys are ignored."""
        watch = self._watches.pop(key, None)
        if watch is None:
            return
        self._unfile(watch)
        self._changed.discard(key)
        watch.root.holds -= 1
        self._tree.release_root(watch.root.namespace)

    def matched(self, key: str) -> int:
        """Tokens of ``key`` that ``KVCache.open`` would find cached now. KeyError if unknown."""
        watch = self._watches[key]
        if watch.usable < 0:
            watch.usable = self._tree.usable(watch.node, watch.blocks)
            if watch.usable < watch.blocks:
                self._holed.add(watch)
        return watch.usable * self._tree.block_tokens

    def place(self, key: str) -> Match:
        """Where the match of ``key`` ends in the tree, whatever sliding groups still hold of it."""
        watch = self._watches[key]
        return Match(watch.node, watch.blocks)

    def take_changed(self) -> set[str]:
        """The watched keys whose match may have changed since the last call, new ones included."""
        changed, self._changed = self._changed, set()
        return changed

    def __contains__(self, key: object) -> bool:
        return key in self._watches

    def __len__(self) -> int:
        return len(self._watches)

    # --- what the tree tells ------------------------------------------------------------------
    def on_insert(self, node: Node, first: int) -> None:
        before = node if first > node.start else node.parent
        assert before is not None
        key = (before, node.hashes[first - node.start])
        for watch in list(self._next.get(key, ())):
            self._advance(watch)

    def on_split(self, head: Node, tail: Node) -> None:
        for watch in list(self._at.get(tail, ())):
            if watch.blocks <= head.end:
                self._file(watch, head, watch.blocks)

    def on_evict(self, node: Node, hashes: list[int]) -> None:
        end = node.end
        left = node.parent if not node.hashes and node.parent is not None else node
        for watch in list(self._at.get(node, ())):
            if watch.blocks >= end:
                self._file(watch, left, end)

    def on_window(self, node: Node) -> None:
        # A match that is usable to its end depends on the last window; one that is not depends on
        # every block of its path.
        for watch in [w for w in self._holed if node in w.node.path()]:
            self._forget_usable(watch)
        widest = max(self._tree.windows.values())
        reach = node.end + -(-widest // self._tree.block_tokens)
        nodes = [node]
        while nodes:
            current = nodes.pop()
            for watch in self._at.get(current, ()):
                self._forget_usable(watch)
            nodes.extend(child for child in current.children.values() if child.start < reach)

    # --- filing -------------------------------------------------------------------------------
    def _advance(self, watch: _Watch) -> None:
        match = self._tree.descend(
            watch.node, watch.blocks, watch.tokens, watch.hashes, len(watch.hashes)
        )
        assert match.node is not None
        self._file(watch, match.node, match.blocks)

    def _file(self, watch: _Watch, node: Node, blocks: int) -> None:
        if watch.filed:
            self._unfile(watch)
        watch.filed = True
        watch.node, watch.blocks = node, blocks
        self._at[node].add(watch)
        if blocks == node.end and blocks < len(watch.hashes):
            watch.next_hash = watch.hashes[blocks]
            self._next[node, watch.next_hash].add(watch)
        self._forget_usable(watch)

    def _forget_usable(self, watch: _Watch) -> None:
        watch.usable = -1
        self._holed.discard(watch)
        self._changed.add(watch.key)

    def _unfile(self, watch: _Watch) -> None:
        self._holed.discard(watch)
        _discard(self._at, watch.node, watch)
        if watch.next_hash is not None:
            _discard(self._next, (watch.node, watch.next_hash), watch)
            watch.next_hash = None


def _discard(sets: dict[K, set[_Watch]], key: K, watch: _Watch) -> None:
    found = sets.get(key)
    if found is not None:
        found.discard(watch)
        if not found:
            del sets[key]
