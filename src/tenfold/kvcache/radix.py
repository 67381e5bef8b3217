"""The prefix tree: which token prefixes have their KV in which blocks.

Nodes split only at block edges. A child is found by the chained hash of its first block and
believed only after its tokens compare equal. Each namespace has its own root, so equal tokens of
two namespaces never meet. Time is a logical counter. Does not know what a block is stored in,
whether memory is short, or what a request is; freed block numbers go back to whoever evicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tenfold.kvcache.hashing import IntArray
from tenfold.kvcache.lru import EvictionOrder
from tenfold.kvcache.node import Node, no_blocks

Freed = list[list[int]]
"""Per group, the block numbers that are nobody's now."""


class Match(NamedTuple):
    """The first ``blocks`` blocks are in the tree; they end inside or at the end of ``node``."""

    node: Node | None
    blocks: int


class TreeListener(Protocol):
    """Told of every change, after it is made. Must not change the tree."""

    def on_insert(self, node: Node, first: int) -> None:
        """Blocks ``first`` .. ``node.end`` of this node are new."""
        ...

    def on_split(self, head: Node, tail: Node) -> None:
        """``tail`` gave its first blocks to ``head``, now its parent."""
        ...

    def on_evict(self, node: Node, hashes: list[int]) -> None:
        """The blocks of these hashes, behind ``node.end``, are gone; so is the node if empty."""
        ...

    def on_window(self, node: Node) -> None:
        """Some sliding-group blocks of this node were freed or filled in; its tokens stay."""
        ...


class RadixTree:
    """A prefix tree over ``groups`` block numbers per block of tokens.

    ``windows`` maps the groups that slide to their window in tokens: their blocks may be missing,
    are pinned by ranges instead of by the path, and can be evicted from the middle of the tree.
    ``held[g]`` counts the blocks in the tree and ``idle[g]`` those of them that no sequence uses.
    """

    def __init__(
        self, block_tokens: int, groups: int, windows: Mapping[int, int] | None = None
    ) -> None:
        self.block_tokens = block_tokens
        self.groups = groups
        self.windows = dict(windows or {})
        self.roots: dict[str, Node] = {}
        self.held = [0] * groups
        self.idle = [0] * groups
        self.listeners: list[TreeListener] = []
        self._clock = 0
        self._uids = 0
        self._order = EvictionOrder(self.windows)

    @property
    def now(self) -> int:
        """The logical time: how often anything was inserted, locked or let go."""
        return self._clock

    # --- finding ------------------------------------------------------------------------------
    def root(self, namespace: str) -> Node:
        """The namespace's root, made when missing; it goes once nothing holds or follows it."""
        if namespace not in self.roots:
            self.roots[namespace] = self._node(namespace, None, 0, no_blocks(), [], [])
        return self.roots[namespace]

    def match(self, tokens: IntArray, hashes: list[int], namespace: str) -> Match:
        """The longest prefix in the tree, whatever the sliding groups still hold of it."""
        root = self.roots.get(namespace)
        if root is None:
            return Match(None, 0)
        return self.descend(root, 0, tokens, hashes, len(hashes))

    def descend(
        self, node: Node, at: int, tokens: IntArray, hashes: list[int], limit: int
    ) -> Match:
        """Go on with a match that has come to block ``at`` in ``node``, up to ``limit`` blocks."""
        size = self.block_tokens
        while at < limit:
            if at == node.end:
                child = node.children.get(hashes[at])
                if child is None:
                    break
                shared = child.common(at, tokens[at * size : limit * size], size)
                if shared == 0:
                    break  # an equal hash of other tokens
                node = child
            else:
                shared = node.common(at, tokens[at * size : limit * size], size)
            at += shared
            if at < node.end:
                break
        return Match(node, at)

    def usable(self, node: Node, at: int) -> int:
        """The longest prefix, at most ``at`` blocks, that a sequence can go on from.

        It must end behind blocks of every sliding group that cover the last ``window`` tokens.
        """
        previous = -1
        while at != previous and self.windows:
            previous = at
            for group in self.windows:
                at = self._covered(node, group, at)
        return at

    def window_start(self, group: int, position: int) -> int:
        """The first block of a sliding group that the token at ``position`` may look at."""
        return max(0, position - self.windows[group]) // self.block_tokens

    def gather(self, node: Node, group: int, low: int, high: int) -> IntArray:
        """The group's block numbers of blocks [low, high) on the path to ``node``."""
        if node.start <= low and high <= node.end:
            return node.blocks[group][low - node.start : high - node.start].copy()
        out = np.full(high - low, -1, dtype=np.int32)
        for part, span in node.spans(low, high):
            first = part.start + span.start - low
            out[first : first + span.stop - span.start] = part.blocks[group][span]
        return out

    # --- growing ------------------------------------------------------------------------------
    def split(self, node: Node, at: int) -> Node:
        """The node that ends at block ``at`` of this one, split off where it must be."""
        if at == node.end:
            return node
        self._uids += 1
        head = node.split_head(at - node.start, self._uids, self.block_tokens)
        self._order.offer_slid(head)
        for listener in self.listeners:
            listener.on_split(head, node)
        return head

    def insert(
        self, node: Node, tokens: IntArray, hashes: list[int], blocks: list[IntArray]
    ) -> Match:
        """Put blocks behind the end of ``node``, which is unlocked or locked by the caller.

        Where the tree has a block already, ``blocks`` is overwritten with the tree's number and the
        caller keeps its own copy to free; all other numbers belong to the tree from now on. Returns
        the deepest node and its end: short of the blocks offered only where other tokens with an
        equal hash are in the way, and then the rest stays the caller's.
        """
        self._clock += 1
        start, done = node, 0
        while done < len(hashes):
            rest = tokens[done * self.block_tokens :]
            child = node.children.get(hashes[done])
            if child is None:
                ours = 1 if node is start else 0
                tail = [ids[done:] for ids in blocks]
                node = self._attach(node, rest, hashes[done:], tail, may_grow=node.lock <= ours)
                break
            shared = child.common(child.start, rest, self.block_tokens)
            if shared == 0:
                break
            node = self.split(child, child.start + shared)
            self._merge(node, [ids[done : done + shared] for ids in blocks])
            done += shared
        return Match(node, node.end)

    def _attach(
        self,
        node: Node,
        tokens: IntArray,
        hashes: list[int],
        blocks: list[IntArray],
        may_grow: bool,
    ) -> Node:
        """New blocks behind ``node``: the node itself grows where nobody else ends at its end."""
        first = node.end
        if may_grow and node.parent is not None and not node.children:
            node.append(tokens, hashes, blocks)
        else:
            parent = node
            node = self._node(parent.namespace, parent, first, tokens, hashes, blocks)
            parent.children[hashes[0]] = node
            self._order.offer_leaf(node)
        self._count_new(node, blocks)
        if self.windows:
            self._order.offer_slid(node)
        for listener in self.listeners:
            listener.on_insert(node, first)
        return node

    def _merge(self, node: Node, blocks: list[IntArray]) -> None:
        """Fill what the tree lacks here from ``blocks``; then set ``blocks`` to the tree's own."""
        filled = False
        self._leave_counts(node)
        for theirs, offered in zip(node.blocks, blocks, strict=True):
            lacking = (theirs < 0) & (offered >= 0)
            theirs[lacking] = offered[lacking]
            offered[:] = theirs
            filled |= bool(lacking.any())
        self._enter_counts(node)
        if filled:
            self._order.offer_slid(node)
            for listener in self.listeners:
                listener.on_window(node)

    # --- holding ------------------------------------------------------------------------------
    def lock(self, node: Node, above: Node | None = None) -> None:
        """Keep the path down to ``node``, from below ``above``, an ancestor locked already."""
        self._clock += 1
        part: Node | None = node
        while part is not None and part is not above:
            part.last_access = self._clock
            if part.lock == 0:
                self._count_path_idle(part, -1)
            part.lock += 1
            part = part.parent

    def unlock(self, node: Node) -> None:
        """Let go of a path that was locked; what nobody else locks can be evicted."""
        self._clock += 1
        part: Node | None = node
        while part is not None:
            part.last_access = self._clock
            part.lock -= 1
            if part.lock == 0:
                self._count_path_idle(part, +1)
            part = part.parent
        self._order.offer_leaf(node)
        self.release_root(node.namespace)

    def pin(self, node: Node, group: int, low: int, high: int) -> None:
        """Keep a sliding group's blocks [low, high) of the locked path down to ``node``."""
        for part, span in node.spans(low, high):
            pins = part.pins[group][span]
            self.idle[group] -= int(np.count_nonzero(pins == 0))
            pins += 1

    def unpin(self, node: Node, group: int, low: int, high: int) -> None:
        """Undo ``pin`` for these blocks. They stay cached until memory is wanted."""
        self._clock += 1
        for part, span in node.spans(low, high):
            pins = part.pins[group][span]
            pins -= 1
            self.idle[group] += int(np.count_nonzero(pins == 0))
            part.touched[group] = self._clock
            self._order.offer_slid(part)

    def release_root(self, namespace: str) -> None:
        """Forget the namespace if nothing of it is left."""
        root = self.roots.get(namespace)
        if root is not None and not root.children and root.lock == 0 and root.holds == 0:
            del self.roots[namespace]

    # --- shrinking ----------------------------------------------------------------------------
    def evict(self, count: int, group: int | None = None) -> Freed | None:
        """Drop up to ``count`` blocks, least recently used first; None when all are in use.

        Either the tail of a leaf goes, with all groups' blocks, or some blocks that a sliding group
        left behind. ``group`` says whose blocks are wanted: a sliding group's own come first.
        """
        victim = self._order.victim(group)
        if victim is None:
            return None
        if victim.group is None:
            return self._evict_tail(victim.node, count)
        return self._evict_window(victim.node, victim.group, count)

    def cut(self, node: Node, at: int) -> Freed:
        """Drop the blocks of this node from ``at`` (counted from the root) on, and all that follow
        them, children before parents. Nothing of it may be locked."""
        freed: Freed = [[] for _ in range(self.groups)]
        below, stack = [node], [node]
        while stack:
            children = list(stack.pop().children.values())
            below += children
            stack += children
        for part in reversed(below):
            gone = part.end - max(at, part.start)
            for mine, ids in zip(freed, self._evict_tail(part, gone), strict=True):
                mine += ids
        return freed

    def leave(self, node: Node, group: int, blocks: IntArray) -> Freed:
        """Drop these blocks of a sliding group, as far as this node has them and none is pinned."""
        ids = node.blocks[group]
        return self._drop(node, group, np.flatnonzero(np.isin(ids, blocks) & _idle(node, group)))

    def _evict_tail(self, leaf: Node, count: int) -> Freed:
        self._leave_counts(leaf)
        hashes, gone = leaf.truncate(max(0, len(leaf.hashes) - count), self.block_tokens)
        self._enter_counts(leaf)
        if not leaf.hashes and leaf.parent is not None:
            del leaf.parent.children[hashes[0]]
            self._order.offer_leaf(leaf.parent)
        for listener in self.listeners:
            listener.on_evict(leaf, hashes)
        self.release_root(leaf.namespace)
        return [ids[ids >= 0].tolist() for ids in gone]

    def _evict_window(self, node: Node, group: int, count: int) -> Freed:
        """From the front: the node's last blocks are the window of whatever follows it."""
        return self._drop(node, group, np.flatnonzero(_idle(node, group))[:count])

    def _drop(self, node: Node, group: int, chosen: npt.NDArray[np.integer]) -> Freed:
        ids = node.blocks[group]
        freed: Freed = [[] for _ in range(self.groups)]
        freed[group] = ids[chosen].tolist()
        ids[chosen] = -1
        self.held[group] -= len(chosen)
        self.idle[group] -= len(chosen)
        for listener in self.listeners:
            listener.on_window(node)
        return freed

    # --- bookkeeping --------------------------------------------------------------------------
    def _node(
        self,
        namespace: str,
        parent: Node | None,
        start: int,
        tokens: IntArray,
        hashes: list[int],
        blocks: list[IntArray],
    ) -> Node:
        self._uids += 1
        return Node(
            uid=self._uids,
            namespace=namespace,
            parent=parent,
            start=start,
            tokens=tokens.copy(),
            hashes=list(hashes),
            blocks=[ids.copy() for ids in blocks] or [no_blocks() for _ in range(self.groups)],
            pins={g: np.zeros(len(hashes), dtype=np.int32) for g in self.windows},
            touched=dict.fromkeys(self.windows, self._clock),
            last_access=self._clock,
        )

    def _covered(self, node: Node, group: int, at: int) -> int:
        """``at``, or the start of the last gap in the window before it."""
        low = self.window_start(group, at * self.block_tokens)
        for part, span in node.spans(low, at):
            missing = np.flatnonzero(part.blocks[group][: span.stop] < 0)
            if missing.size and missing[-1] >= span.start:
                # Every prefix that ends inside this run of missing blocks lacks its last block.
                run = missing - np.arange(missing.size)
                return part.start + int(missing[np.searchsorted(run, run[-1])])
        return at

    def _count_path_idle(self, node: Node, sign: int) -> None:
        for group in range(self.groups):
            if group not in self.windows:  # such a group holds every block of its nodes
                self.idle[group] += sign * len(node.hashes)

    def _count_new(self, node: Node, blocks: list[IntArray]) -> None:
        """Blocks that the node just got; no window covers any yet."""
        for group, ids in enumerate(blocks):
            new = int(np.count_nonzero(ids >= 0)) if group in self.windows else len(ids)
            self.held[group] += new
            if group in self.windows or not node.lock:
                self.idle[group] += new

    def _leave_counts(self, node: Node) -> None:
        self._count(node, -1)

    def _enter_counts(self, node: Node) -> None:
        self._count(node, +1)

    def _count(self, node: Node, sign: int) -> None:
        for group in range(self.groups):
            if group in self.windows:
                self.held[group] += sign * int(np.count_nonzero(node.blocks[group] >= 0))
                self.idle[group] += sign * node.idle(group)
            else:
                self.held[group] += sign * len(node.hashes)
                if not node.lock:
                    self.idle[group] += sign * len(node.hashes)


def _idle(node: Node, group: int) -> npt.NDArray[np.bool_]:
    """Which blocks of a sliding group are held here and covered by no window."""
    idle: npt.NDArray[np.bool_] = (node.blocks[group] >= 0) & (node.pins[group] == 0)
    return idle
