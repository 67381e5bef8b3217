"""Which part of the prefix tree goes next when memory is wanted: the one used longest ago.

Knows when nodes were used; does not know how many blocks are wanted or what becomes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush, heapreplace
from typing import NamedTuple

from tenfold.kvcache.node import Node


class LazyHeap:
    """A min-heap of nodes by ``key``, corrected when an entry comes to the top.

    ``key`` of a node may only grow, so an entry's recorded key is a lower bound and the corrected
    top is the true minimum. Nodes that are not ``able`` any more are dropped at the top; offer them
    again when they become able.
    """

    def __init__(self, key: Callable[[Node], int], able: Callable[[Node], bool]) -> None:
        self._key = key
        self._able = able
        self._heap: list[tuple[int, int, Node]] = []
        self._listed: set[Node] = set()

    def offer(self, node: Node) -> None:
        """List the node, which may have become able. Listing it twice does nothing."""
        if node not in self._listed:
            self._listed.add(node)
            heappush(self._heap, (self._key(node), node.uid, node))

    def oldest(self) -> Node | None:
        """The able node with the smallest key, left where it is."""
        while self._heap:
            recorded, uid, node = self._heap[0]
            if not self._able(node):
                heappop(self._heap)
                self._listed.discard(node)
            elif (now := self._key(node)) != recorded:
                heapreplace(self._heap, (now, uid, node))
            else:
                return node
        return None


class Victim(NamedTuple):
    """Evict the tail of this leaf, or (``group`` set) what that sliding group left behind in it."""

    node: Node
    group: int | None


class EvictionOrder:
    """Evictable leaves, and nodes with sliding-group blocks that no window covers, by last use."""

    def __init__(self, sliding: Iterable[int]) -> None:
        self._leaves = LazyHeap(lambda node: node.last_access, lambda node: node.evictable)
        self._slid = {group: _slid_heap(group) for group in sliding}

    def offer_leaf(self, node: Node) -> None:
        if node.evictable:
            self._leaves.offer(node)

    def offer_slid(self, node: Node) -> None:
        for heap in self._slid.values():
            heap.offer(node)

    def victim(self, wanted: int | None) -> Victim | None:
        """What goes next; None when everything is in use.

        ``wanted``: the group that lacks blocks. A sliding group's own leftovers go before any leaf,
        whose eviction would cost the other groups' blocks too. Otherwise the older of both kinds.
        """
        leaf = self._leaves.oldest()
        if wanted in self._slid:
            own = self._slid[wanted].oldest()
            if own is not None:
                return Victim(own, wanted)
            return None if leaf is None else Victim(leaf, None)
        choices = [] if leaf is None else [(leaf.last_access, 1, Victim(leaf, None))]
        for group, heap in self._slid.items():
            node = heap.oldest()
            if node is not None:
                choices.append((node.touched[group], 0, Victim(node, group)))
        return min(choices, key=lambda choice: choice[:2])[2] if choices else None


def _slid_heap(group: int) -> LazyHeap:
    return LazyHeap(lambda node: node.touched[group], lambda node: node.idle(group) > 0)
