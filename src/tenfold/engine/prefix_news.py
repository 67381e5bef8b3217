"""What changes in a model's prefix tree, collected for whoever routes requests by caches.

Nothing is collected until it is asked for. What came and went between two updates is told as gone,
because a router may have hoped for it; what went and came is told as new. Blocks that only a
sliding window lost are not told: the tokens' place in the tree stays. Does not know who listens.
"""

from __future__ import annotations

from tenfold.core.messages import PrefixUpdate
from tenfold.kvcache.node import Node
from tenfold.kvcache.radix import RadixTree

UPDATE_SECONDS = 0.05
"""Updates of one model are at least so far apart, but for those that an answer's end brings."""


class PrefixNews:
    """A listener of one tree, which makes numbered updates. One thread.

    ``interval``: seconds between two of them, at least."""

    def __init__(self, model: str, tree: RadixTree) -> None:
        self.model = model
        self.interval = UPDATE_SECONDS
        self._tree = tree
        self._asked = False
        self._number = 0
        self._told_at = 0.0
        self._changed: dict[int, int | None] = {}
        """By block: the one before it, if it is there and may be new; None if it is gone."""
        tree.listeners.append(self)

    # --- telling --------------------------------------------------------------------------------
    def everything(self, now: float) -> PrefixUpdate:
        """All that is cached; from now on changes are collected."""
        self._asked = True
        self._changed.clear()
        found: list[tuple[int, list[int]]] = []
        nodes = list(self._tree.roots.values())
        for node in nodes:
            nodes += node.children.values()
            if node.hashes:
                found.append((_before(node, node.start), list(node.hashes)))
        return self._update(now, found, [], whole=True)

    def changes(self, now: float, *, at_once: bool = False) -> PrefixUpdate | None:
        """What changed since the last update. None: nothing, nobody asked, or it was just now and
        is not wanted ``at_once``."""
        if not self._changed or not (at_once or now - self._told_at >= self.interval):
            return None
        inserted: list[tuple[int, list[int]]] = []
        gone = []
        last = 0
        for block, before in self._changed.items():
            if before is None:
                gone.append(block)
                continue
            if inserted and before == last:
                inserted[-1][1].append(block)
            else:
                inserted.append((before, [block]))
            last = block
        self._changed.clear()
        return self._update(now, inserted, gone, whole=False)

    def _update(
        self, now: float, inserted: list[tuple[int, list[int]]], gone: list[int], *, whole: bool
    ) -> PrefixUpdate:
        self._number += 1
        self._told_at = now
        return PrefixUpdate(self.model, self._number, inserted, gone, whole)

    # --- TreeListener ---------------------------------------------------------------------------
    def on_insert(self, node: Node, first: int) -> None:
        if not self._asked:
            return
        before = _before(node, first)
        for block in node.hashes[first - node.start :]:
            self._changed[block] = before
            before = block

    def on_split(self, head: Node, tail: Node) -> None:
        """The prefixes are the same."""

    def on_evict(self, node: Node, hashes: list[int]) -> None:
        if self._asked:
            self._changed.update(dict.fromkeys(hashes))

    def on_window(self, node: Node) -> None:
        """The prefixes are the same."""


def _before(node: Node, at: int) -> int:
    """The hash of the block before block ``at`` of a node; 0 at the start."""
    if at > node.start:
        return node.hashes[at - node.start - 1]
    above = node.parent
    return above.hashes[-1] if above is not None and above.hashes else 0
