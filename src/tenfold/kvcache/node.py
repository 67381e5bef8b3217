"""One node of the radix tree: a run of whole blocks and who needs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tenfold.kvcache.hashing import IntArray


def no_blocks() -> IntArray:
    return np.empty(0, dtype=np.int32)


@dataclass(slots=True, eq=False)
class Node:
    """Blocks ``start`` .. ``end`` (counted from the root) of every sequence that passes here.

    ``tokens`` has ``len(hashes)`` x block_tokens entries. ``blocks[g]`` names the block of group g,
    -1 where the group's block is not held. ``lock`` counts the open sequences that end here or
    below. For each sliding group g, ``pins[g]`` counts per block the sequences whose window covers
    it, and ``touched[g]`` says when the last of them let go. A root has no parent and no blocks.
    """

    uid: int
    namespace: str
    parent: Node | None
    start: int = 0
    tokens: IntArray = field(default_factory=no_blocks)
    hashes: list[int] = field(default_factory=list)
    blocks: list[IntArray] = field(default_factory=list)
    pins: dict[int, IntArray] = field(default_factory=dict)
    touched: dict[int, int] = field(default_factory=dict)
    children: dict[int, Node] = field(default_factory=dict)
    lock: int = 0
    last_access: int = 0
    holds: int = 0
    """Roots only: watchers that need this root to stay although it may be empty."""
    end: int = field(init=False)

    def __post_init__(self) -> None:
        self.end = self.start + len(self.hashes)

    @property
    def evictable(self) -> bool:
        """A leaf that nobody uses. Nodes already removed have no blocks left and are not."""
        return not self.children and self.lock == 0 and bool(self.hashes)

    def common(self, at: int, tokens: IntArray, block_tokens: int) -> int:
        """How many whole blocks from block ``at`` of this node on begin ``tokens``."""
        own = self.tokens[(at - self.start) * block_tokens :]
        size = min(len(own), len(tokens))
        if size == 0:
            return 0
        differs = own[:size] != tokens[:size]
        first = int(differs.argmax())
        return (first if differs[first] else size) // block_tokens

    def path(self) -> Iterator[Node]:
        """This node, its parent, … and the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def spans(self, low: int, high: int) -> Iterator[tuple[Node, slice]]:
        """Where blocks [low, high) of the path lie: each node and its slice, deepest first."""
        for node in self.path():
            if node.end <= low:
                return
            a, b = max(low, node.start), min(high, node.end)
            if a < b:
                yield node, slice(a - node.start, b - node.start)

    def idle(self, group: int) -> int:
        """Held blocks of the group that no open sequence uses."""
        held = self.blocks[group] >= 0
        if group in self.pins:
            held &= self.pins[group] == 0
        elif self.lock:
            return 0
        return int(np.count_nonzero(held))

    def append(self, tokens: IntArray, hashes: list[int], blocks: list[IntArray]) -> None:
        """Lengthen the node at its end."""
        self.tokens = np.concatenate((self.tokens, tokens))
        self.hashes.extend(hashes)
        self.end += len(hashes)
        self.blocks = [np.concatenate(pair) for pair in zip(self.blocks, blocks, strict=True)]
        for group, pins in self.pins.items():
            self.pins[group] = np.concatenate((pins, np.zeros(len(hashes), dtype=np.int32)))

    def truncate(self, keep: int, block_tokens: int) -> tuple[list[int], list[IntArray]]:
        """Shorten the node to its first ``keep`` blocks; returns the hashes and blocks cut off."""
        hashes, blocks = self.hashes[keep:], [ids[keep:] for ids in self.blocks]
        self.tokens = self.tokens[: keep * block_tokens].copy()
        del self.hashes[keep:]
        self.end = self.start + keep
        self.blocks = [ids[:keep].copy() for ids in self.blocks]
        self.pins = {group: pins[:keep].copy() for group, pins in self.pins.items()}
        return hashes, blocks

    def split_head(self, keep: int, uid: int, block_tokens: int) -> Node:
        """Move the first ``keep`` blocks to a new node between the parent and this one.

        This node keeps its identity and its end, so whoever holds it holds the same prefix.
        """
        cut = keep * block_tokens
        head = Node(
            uid=uid,
            namespace=self.namespace,
            parent=self.parent,
            start=self.start,
            tokens=self.tokens[:cut].copy(),
            hashes=self.hashes[:keep],
            blocks=[ids[:keep].copy() for ids in self.blocks],
            pins={group: pins[:keep].copy() for group, pins in self.pins.items()},
            touched=dict(self.touched),
            children={self.hashes[keep]: self},
            lock=self.lock,
            last_access=self.last_access,
        )
        if self.parent is not None:
            self.parent.children[head.hashes[0]] = head
        self.parent = head
        self.start += keep
        self.tokens = self.tokens[cut:].copy()
        self.hashes = self.hashes[keep:]
        self.blocks = [ids[keep:].copy() for ids in self.blocks]
        self.pins = {group: pins[keep:].copy() for group, pins in self.pins.items()}
        return head
