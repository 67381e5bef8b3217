"""Which workers have cached which prefixes: one tree for all of them, over chained block hashes.

The global radix tree of D2LPM (arXiv 2501.14312, Algorithm 2). A node is a run of blocks that the
same workers have; runs split where workers part and merge where they agree again. A worker *holds*
what it said it has cached, and is *hoped* to hold the prompts that were just sent to it, until it
says so or they end. Hashes are chained (``kvcache.hashing``), so two prompts that are equal in one
block are equal in all before it: one comparison tells whether a whole run matches.

Sets of workers are integers, worker n the bit 1 << n. Does not know what a worker is, when it was
asked for what, or whether what it is told is true; it never says more than it was told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple


class PrefixMatch(NamedTuple):
    """The first ``blocks`` blocks of a prompt are at every worker in ``holders``, a bit set."""

    blocks: int
    holders: int


class _Run:
    """Consecutive blocks with the same workers. The root has no parent and no blocks.

    A worker of a run is in all runs before it; one that holds it holds all before it."""

    __slots__ = ("children", "hashes", "held", "hoped", "parent")

    def __init__(self, parent: _Run | None, hashes: list[int], held: int, hoped: int) -> None:
        self.parent = parent
        self.hashes = hashes
        self.held = held
        self.hoped = hoped
        self.children: dict[int, _Run] = {}

    @property
    def workers(self) -> int:
        return self.held | self.hoped


class PrefixMap:
    """The prefixes of one model. At most ``most_blocks`` blocks: those used longest ago go first,
    from their ends. One thread."""

    def __init__(self, most_blocks: int = 1 << 20) -> None:
        if most_blocks < 1:
            raise ValueError(f"most_blocks is {most_blocks}; it must be at least 1")
        self.most_blocks = most_blocks
        self._root = _Run(None, [], 0, 0)
        self._where: dict[int, _Run] = {}
        self._order: OrderedDict[_Run, None] = OrderedDict()
        """Every run but the root, used longest ago first, and each before the one it follows."""

    def __len__(self) -> int:
        """Blocks, each counted once however many workers have it."""
        return len(self._where)

    @property
    def runs(self) -> int:
        return len(self._order)

    # --- asking ---------------------------------------------------------------------------------
    def match(self, hashes: Sequence[int], among: int = -1) -> PrefixMatch:
        """The longest prefix that one of the workers ``among`` has, and those that have it.

        Counts as a use. Nothing matches: 0 blocks, and no holders."""
        node, at, holders, total = self._root, 0, 0, len(hashes)
        while at < total:
            child = node.children.get(hashes[at])
            if child is None or not (found := (child.held | child.hoped) & among):
                break
            node, holders = child, found
            shared = _common(child.hashes, hashes, at)
            at += shared
            if shared < len(child.hashes):
                break
        self._touch(node)
        return PrefixMatch(at, holders)

    # --- being told -----------------------------------------------------------------------------
    def insert(self, worker: int, after: int, hashes: Sequence[int]) -> None:
        """The worker has these blocks behind the block ``after`` (0: a prompt's start), and so all
        before that. An unknown ``after`` is one that was forgotten: nothing happens."""
        bit = 1 << worker
        node = self._root
        if after:
            found = self._where.get(after)
            if found is None:
                return
            if found.hashes[-1] != after:
                node = self._head(found, found.hashes.index(after) + 1)
            elif self._extends(found, bit, 0) and self._where.keys().isdisjoint(hashes):
                self._lengthen(found, hashes)
                self._touch(found)
                self._trim()
                return
            else:
                node = found
            changed = []
            above = node
            while above.parent is not None and not above.held & bit:
                above.held |= bit
                above.hoped &= ~bit
                changed.append(above)
                above = above.parent
            changed.reverse()
            self._mark(node, hashes, bit, held=True, changed=[*changed, node])
        else:
            self._mark(node, hashes, bit, held=True, changed=[])

    def expect(self, worker: int, hashes: Sequence[int]) -> None:
        """The worker is about to cache this prompt."""
        self._mark(self._root, hashes, 1 << worker, held=False, changed=[])

    def settle(self, worker: int, hashes: Sequence[int]) -> None:
        """A prompt that was expected has ended. What of it the worker did not say it holds, and no
        longer prompt is still to bring, it has not."""
        bit = 1 << worker
        node, at, total = self._root, 0, len(hashes)
        while at < total:
            child = node.children.get(hashes[at])
            if child is None or not child.workers & bit:
                break
            if _common(child.hashes, hashes, at) < len(child.hashes):
                break
            node = child
            at += len(child.hashes)
        while node.hoped & bit and not any(c.workers & bit for c in node.children.values()):
            parent = node.parent
            assert parent is not None
            node.hoped ^= bit
            self._tidy(node)
            node = parent
        self._absorb(node)

    def evict(self, worker: int, hashes: Sequence[int]) -> None:
        """The worker no longer has these blocks, nor any behind them. Unknown ones are ignored."""
        bit = 1 << worker
        for one in reversed(hashes):  # caches shrink from the ends: the last is nearest the start
            node = self._where.get(one)
            if node is not None and node.workers & bit:
                if node.hashes[0] != one:
                    self._head(node, node.hashes.index(one))
                self._drop(node, bit)

    def clear(self, worker: int) -> None:
        """The worker is about to tell anew what it holds. What it is hoped to hold stays."""
        self._forget(worker, hopes=False)

    def leave(self, worker: int) -> None:
        """The worker is gone, with everything."""
        self._forget(worker, hopes=True)

    def _forget(self, worker: int, *, hopes: bool) -> None:
        bit = 1 << worker
        for node in list(self._order):  # those behind come first
            if node.held & bit:
                node.held ^= bit
                if not hopes and any(c.hoped & bit for c in node.children.values()):
                    node.hoped |= bit
            elif hopes:
                node.hoped &= ~bit
            if not node.workers:
                self._remove(node)
        for node in list(self._order):
            if node in self._order:
                self._absorb(node)

    # --- inside: growing ------------------------------------------------------------------------
    def _mark(
        self, node: _Run, hashes: Sequence[int], bit: int, *, held: bool, changed: list[_Run]
    ) -> None:
        """Add a worker to the blocks behind the end of ``node``, new ones where there are none.

        ``changed``: runs above whose workers have changed already."""
        at, total = 0, len(hashes)
        while at < total:
            child = node.children.get(hashes[at])
            if child is None:
                rest = list(hashes[at:])
                if self._where.keys().isdisjoint(rest):  # else: other tokens with an equal hash
                    holds, hopes = (bit, 0) if held else (0, bit)
                    if self._extends(node, holds, hopes):
                        self._lengthen(node, rest)
                    else:
                        node = self._grow(node, rest, holds, hopes)
                        changed.append(node)
                break
            shared = _common(child.hashes, hashes, at)
            at += shared
            if not (child.held if held else child.workers) & bit:
                child = self._head(child, shared)
                if held:
                    child.held |= bit
                    child.hoped &= ~bit
                else:
                    child.hoped |= bit
                changed.append(child)
            elif at < total:
                child = self._head(child, shared)
            node = child
        self._touch(node)
        for run in reversed(changed):
            self._absorb(run)
            if run.parent is not None:
                self._absorb(run.parent)
        self._trim()

    def _extends(self, node: _Run, held: int, hoped: int) -> bool:
        """Whether new blocks of these workers behind a run are just more of it."""
        same = node.held == held and node.hoped == hoped
        return same and not node.children and node.parent is not None

    def _lengthen(self, node: _Run, hashes: Sequence[int]) -> None:
        node.hashes += hashes
        self._where.update(dict.fromkeys(hashes, node))

    def _grow(self, parent: _Run, hashes: list[int], held: int, hoped: int) -> _Run:
        node = _Run(parent, hashes, held, hoped)
        parent.children[hashes[0]] = node
        self._where.update(dict.fromkeys(hashes, node))
        self._order[node] = None
        return node

    def _head(self, node: _Run, size: int) -> _Run:
        """The run that ends ``size`` blocks into this one, split off where it must be. ``node``
        itself keeps the rest."""
        if size == len(node.hashes):
            return node
        assert node.parent is not None
        head = self._grow(node.parent, node.hashes[:size], node.held, node.hoped)
        del node.hashes[:size]
        node.parent = head
        head.children[node.hashes[0]] = node
        self._touch(head)
        return head

    # --- inside: shrinking ----------------------------------------------------------------------
    def _drop(self, node: _Run, bit: int) -> None:
        """Take a worker from a run and all behind it."""
        parent = node.parent
        assert parent is not None
        gone = [node]
        for run in gone:
            gone += [child for child in run.children.values() if child.workers & bit]
        for run in reversed(gone):
            run.held &= ~bit
            run.hoped &= ~bit
            self._tidy(run)
        self._absorb(parent)

    def _tidy(self, node: _Run) -> None:
        """Remove a run that nobody has any more, or join it to the one behind it."""
        if node.workers:
            self._absorb(node)
        else:
            self._remove(node)

    def _remove(self, node: _Run) -> None:
        assert node.parent is not None and not node.children
        del node.parent.children[node.hashes[0]]
        self._unlist(node.hashes)
        del self._order[node]

    def _unlist(self, hashes: list[int]) -> None:
        for one in hashes:
            self._where.pop(one, None)

    def _absorb(self, node: _Run) -> None:
        """Join a run with the only one behind it, if the same workers have both."""
        if len(node.children) != 1 or node.parent is None:
            return
        (child,) = node.children.values()
        if child.held == node.held and child.hoped == node.hoped:
            node.hashes += child.hashes
            self._where.update(dict.fromkeys(child.hashes, node))
            node.children = child.children
            for grandchild in node.children.values():
                grandchild.parent = node
            del self._order[child]

    def _trim(self) -> None:
        """Back to the most blocks that are allowed."""
        while (excess := len(self._where) - self.most_blocks) > 0:
            leaf = next(iter(self._order))
            if excess < len(leaf.hashes):
                self._unlist(leaf.hashes[-excess:])
                del leaf.hashes[-excess:]
                return
            parent = leaf.parent
            assert parent is not None
            self._remove(leaf)
            self._absorb(parent)

    def _touch(self, node: _Run) -> None:
        """The path down to here is used now."""
        above: _Run | None = node
        while above is not None and above.parent is not None:
            self._order.move_to_end(above)
            above = above.parent

    # --- looking --------------------------------------------------------------------------------
    def holds(self, worker: int, hash: int) -> bool:
        """Whether the worker has, or is hoped to have, this block."""
        node = self._where.get(hash)
        return node is not None and bool(node.workers >> worker & 1)

    def check_integrity(self) -> list[str]:
        """Everything that contradicts itself, in words; empty when all is well. O(blocks)."""
        faults: list[str] = []
        places = {node: place for place, node in enumerate(self._order)}
        listed = 0
        nodes = [self._root]
        for node in nodes:
            nodes += node.children.values()
            if node.parent is None:
                continue
            name = f"run of {len(node.hashes)} from {node.hashes[:1]}"
            listed += len(node.hashes)
            faults += _faults_of(node, name)
            if node not in places:
                faults.append(f"{name} has no place in the order of use")
            elif places.get(node.parent, len(places)) < places[node]:
                faults.append(f"{name} is said to be used after the run before it")
            if any(self._where.get(one) is not node for one in node.hashes):
                faults.append(f"{name} has blocks that are found elsewhere")
        if listed != len(self._where):
            faults.append(f"{len(self._where)} blocks are known and {listed} are in runs")
        if len(places) != len(nodes) - 1:
            faults.append(
                f"{len(places)} runs are in order of use and {len(nodes) - 1} in the tree"
            )
        if listed > self.most_blocks:
            faults.append(f"{listed} blocks, more than {self.most_blocks}")
        return faults


def _common(run: list[int], hashes: Sequence[int], at: int) -> int:
    """How many blocks of a run, whose first is the prompt's block ``at``, are the prompt's."""
    size = min(len(run), len(hashes) - at)
    if run[size - 1] == hashes[at + size - 1]:
        return size
    low, high = 1, size - 1  # equal up to low, and not up to high + 1
    while low < high:
        middle = (low + high + 1) // 2
        if run[middle - 1] == hashes[at + middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


def _faults_of(node: _Run, name: str) -> list[str]:
    """What is wrong between a run and its neighbours."""
    faults = []
    parent = node.parent
    assert parent is not None
    if not node.hashes or parent.children.get(node.hashes[0]) is not node:
        faults.append(f"{name} is not where its first block should lead")
    if not node.workers:
        faults.append(f"{name} is nobody's")
    if node.held & node.hoped:
        faults.append(f"{name} is held and hoped for at once")
    if parent.parent is not None:
        if node.workers & ~parent.workers or node.held & ~parent.held:
            faults.append(f"{name} has workers that the run before it lacks")
        if len(parent.children) == 1 and (node.held, node.hoped) == (parent.held, parent.hoped):
            faults.append(f"{name} should be one with the run before it")
    return faults
