"""Which cached blocks go when whole pages are wanted back, and which prefixes that costs.

A page falls free only when every block in it is nobody's, and a block of a prefix goes only with
all that follow it. Evicting by last use alone therefore empties many pages by half. Here a page is
chosen by what emptying it would lose: over all blocks that have to go, the chance that they would
have been asked for again, taken to fall as one over the time since their last use. Pages that hold
little and pages of old prefixes come out cheapest. A page with a block of an open sequence is no
candidate.

One look at the whole tree yields steps for many pages; as what happens later makes newer prefixes,
the rest of the steps stays good for a while, and each is checked against the tree before it is
taken. Does not know who wants the pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

from tenfold.kvcache.hashing import IntArray
from tenfold.kvcache.ledger import PageLedger
from tenfold.kvcache.node import Node, no_blocks
from tenfold.kvcache.radix import Freed, RadixTree

_LEAST_STEPS = 16
_SHARE = 8
"""A look at the tree yields steps for one in so many of the pages that could be had, or a few."""


class Page(NamedTuple):
    """A physical page of one group."""

    group: int
    number: int


class Cut(NamedTuple):
    """Drop the prefixes that pass through block ``at`` (from the root) of this node, from there."""

    node: Node
    at: int
    used: int

    def place(self) -> Node | None:
        """The node that block ``at`` is in now; None if it is gone, in use, or was used since."""
        node: Node | None = self.node
        while node is not None and node.start > self.at and node.lock == 0:
            node = node.parent  # the node was split
        if node is None or node.lock or node.last_access > self.used or node.end <= self.at:
            return None
        return node


class Leave(NamedTuple):
    """Drop these blocks of a sliding group, which no window covers."""

    node: Node
    group: int
    blocks: IntArray

    def still(self) -> bool:
        ids = self.node.blocks[self.group][self.node.pins[self.group] == 0]
        return bool(np.isin(self.blocks, ids).all())


@dataclass(slots=True)
class Step:
    """What to drop so that ``page`` falls free, if no more than ``blocks`` blocks lie in it."""

    page: Page
    blocks: int
    pages: int
    cuts: list[Cut] = field(default_factory=list)
    leaves: list[Leave] = field(default_factory=list)


class PageEviction:
    """Frees whole pages of one model's cache. Not thread-safe."""

    def __init__(self, tree: RadixTree, ledgers: Sequence[PageLedger]) -> None:
        self._tree = tree
        self._ledgers = ledgers
        self._steps: list[Step] = []  # the next one last

    def evict(self, pages: int) -> Freed | None:
        """Drop blocks so that up to so many pages fall free once the ledgers have the blocks back,
        which are nobody's now. Fewer pages than could be had, maybe; None only if there are none.
        """
        freed: list[set[int]] = [set() for _ in self._ledgers]
        if not self._follow(pages, freed):
            look = _Look(self._tree, self._ledgers)
            steps = look.steps(max(pages, _LEAST_STEPS, len(look.left) // _SHARE))
            self._steps = steps[::-1]
            if not self._follow(pages, freed):
                return None
        return [list(blocks) for blocks in freed]

    def _follow(self, pages: int, freed: list[set[int]]) -> int:
        """Take steps that are still good, for about so many pages; how many those are."""
        given = 0
        while given < pages and self._steps:
            step = self._steps.pop()
            if not self._good(step, freed):
                continue
            given += step.pages
            for cut in step.cuts:
                if node := cut.place():
                    _add(freed, self._tree.cut(node, cut.at))
            for leave in step.leaves:
                _add(freed, self._tree.leave(leave.node, leave.group, leave.blocks))
        return given

    def _good(self, step: Step, freed: list[set[int]]) -> bool:
        group, number = step.page
        ledger = self._ledgers[group]
        gone = sum(block in freed[group] for block in ledger.blocks_of(number))
        return (
            0 < ledger.live_in(number) - gone <= step.blocks
            and all(cut.place() is not None for cut in step.cuts)
            and all(leave.still() for leave in step.leaves)
        )


class _Look:
    """The idle blocks of a tree at one moment, and which pages they fill.

    Blocks of unlocked nodes are numbered in the order of a walk, parents first, so that all that
    hangs on a block has the numbers from its own to its node's end. ``left`` counts, for each page
    that could be had, the live blocks in it."""

    def __init__(self, tree: RadixTree, ledgers: Sequence[PageLedger]) -> None:
        self._tree = tree
        self._ledgers = ledgers
        self._now = tree.now + 1
        self._nodes: list[Node] = []
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._strays: list[tuple[Node, int, int]] = []
        """A node, a group and its block there that no window covers."""
        for root in tree.roots.values():
            self._walk(root)
        sizes = [len(node.hashes) for node in self._nodes]
        self._owner = np.repeat(np.arange(len(sizes)), sizes)
        worth = [1.0 / (self._now - node.last_access) for node in self._nodes]
        self._worth = np.repeat(worth, sizes)
        self._blocks = [
            np.concatenate([node.blocks[group] for node in self._nodes] or [no_blocks()])
            for group in range(len(ledgers))
        ]
        self._gone: list[set[int]] = [set() for _ in ledgers]
        self.left: dict[Page, int] = {}
        self._held: dict[Page, list[int]] = {}
        """Of a page: the numbers of its blocks; ~n, which is below zero, is stray n."""
        for group in range(len(ledgers)):
            self._find_pages(group)

    def steps(self, pages: int) -> list[Step]:
        """What frees so many pages, or all that can be had: always what loses least next."""
        heap = [(self._loss(page), page) for page in self._held]
        heapify(heap)
        found: list[Step] = []
        given = 0
        while heap and given < pages:
            recorded, page = heappop(heap)
            if page not in self.left:
                continue
            loss = self._loss(page)  # lower, where what would go with it has gone already
            if loss < recorded and heap and heap[0][0] < loss:
                heappush(heap, (loss, page))
                continue
            step = Step(page, self.left[page], 0)
            for other in self._take(step):
                heappush(heap, (self._loss(other), other))
            given += step.pages
            found.append(step)
        return found

    def _walk(self, root: Node) -> None:
        """Number the blocks of unlocked nodes, and note what windows left behind in any."""
        stack: list[tuple[Node, int]] = [(root, -1)]
        count = max(self._ends, default=0)
        while stack:
            node, closing = stack.pop()
            if closing >= 0:
                self._ends[closing] = count
                continue
            for group, pins in node.pins.items():
                ids = node.blocks[group]
                idle = ids[(ids >= 0) & (pins == 0)].tolist()
                self._strays += [(node, group, block) for block in idle]
            if node.lock == 0 and node.hashes:
                stack.append((node, len(self._nodes)))
                self._nodes.append(node)
                self._starts.append(count)
                self._ends.append(0)
                count += len(node.hashes)
            stack.extend((child, -1) for child in node.children.values())

    def _find_pages(self, group: int) -> None:
        """Pages of which every live block is idle."""
        blocks, numbers = self._blocks[group], np.arange(len(self._owner))
        if group in self._tree.windows:
            mine = [(block, ~n) for n, (_, g, block) in enumerate(self._strays) if g == group]
            blocks = np.array([block for block, _ in mine], dtype=np.int32)
            numbers = np.array([number for _, number in mine], dtype=np.int64)
        for number, own in self._ledgers[group].filled_by(blocks).items():
            self.left[Page(group, number)] = len(own)
            self._held[Page(group, number)] = numbers[own].tolist()

    def _spans(self, held: list[int]) -> list[tuple[int, int]]:
        """What goes with these blocks, as spans of numbers, which nest or are apart."""
        spans: list[tuple[int, int]] = []
        last = 0
        for number in sorted(number for number in held if number >= 0):
            if number >= last:
                last = self._ends[self._owner[number]]
                spans.append((number, last))
        return spans

    def _loss(self, page: Page) -> float:
        held = self._held[page]
        whole = sum(float(self._worth[low:high].sum()) for low, high in self._spans(held))
        for node, group, block in self._strays_of(held):
            if block not in self._gone[group]:
                whole += 1.0 / (self._now - node.touched[group])
        return whole

    def _strays_of(self, held: list[int]) -> list[tuple[Node, int, int]]:
        return [self._strays[~number] for number in held if number < 0]

    def _take(self, step: Step) -> set[Page]:
        """Fill in the step that empties its page; the other pages that lost blocks by it."""
        held, lost = self._held[step.page], set[Page]()
        for low, high in self._spans(held):
            if not self._worth[low:high].any():
                continue  # gone already
            node = self._nodes[self._owner[low]]
            at = node.start + low - self._starts[self._owner[low]]
            step.cuts.append(Cut(node, at, node.last_access))
            self._worth[low:high] = 0.0
            for group, blocks in enumerate(self._blocks):
                for block in blocks[low:high].tolist():
                    self._lose(group, block, step, lost)
        leaves: dict[Node, list[int]] = {}
        for node, group, block in self._strays_of(held):
            if block not in self._gone[group]:
                leaves.setdefault(node, []).append(block)
                self._lose(group, block, step, lost)
        for node, ids in leaves.items():
            step.leaves.append(Leave(node, step.page.group, np.array(ids, dtype=np.int32)))
        return lost & self.left.keys()

    def _lose(self, group: int, block: int, step: Step, lost: set[Page]) -> None:
        if block < 0 or block in self._gone[group]:
            return
        self._gone[group].add(block)
        for number in self._ledgers[group].pages_of(block):
            page = Page(group, number)
            if page in self.left:
                lost.add(page)
                self.left[page] -= 1
                if self.left[page] == 0:
                    del self.left[page]
                    step.pages += 1


def _add(freed: list[set[int]], more: Freed) -> None:
    for mine, ids in zip(freed, more, strict=True):
        mine.update(ids)
