"""The KV cache of one model: block tables of open sequences over a prefix tree of finished blocks.

A block belongs to exactly one holder: an open sequence, or the tree. Blocks enter the tree as soon
as they are full; where the tree has the same block already, the sequence switches to the tree's
copy and frees its own (equal tokens in one namespace have equal KV), so one prefix is stored once.
A block of a sliding group leaves its sequence once it lies behind the window; if the tree holds it,
it stays there, evictable. Does not know where a page is, who shares the budget, or which request
should wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tenfold.core.types import KVGroup
from tenfold.kvcache.base import PageSource
from tenfold.kvcache.hashing import IntArray, Tokens, as_tokens
from tenfold.kvcache.integrity import problems_of
from tenfold.kvcache.ledger import PageLedger
from tenfold.kvcache.pagewise import PageEviction
from tenfold.kvcache.radix import Match, RadixTree
from tenfold.kvcache.sequence import BlockTable, SequenceKV

__all__ = ["KVCache", "KVStats", "SequenceKV"]


@dataclass(slots=True, frozen=True)
class KVStats:
    """Blocks summed over the groups, and pages. ``used``: held by open sequences (their pinned
    prefix in the tree included); ``cached``: in the tree and evictable; ``total``: capacity."""

    used: int
    cached: int
    total: int
    mapped_pages: int
    sequences: int


class KVCache:
    """Block tables, prefix matching and eviction for all KV groups of one model.

    ``sources[g]`` maps the pages of group g, whose blocks number ``capacity_blocks[g]``.
    ``page_limit``: the most pages that all groups together could ever have, where that is known;
    ``allowed``: the most that they are to have, which may rise.
    Not thread-safe. Positions and counts are tokens unless a name says blocks or pages.
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        sources: Sequence[PageSource],
        *,
        block_tokens: int,
        page_bytes: int,
        capacity_blocks: Sequence[int],
        prefix_cache: bool = True,
        page_limit: int | None = None,
        allowed: int | None = None,
    ) -> None:
        self.groups = list(groups)
        self.block_tokens = block_tokens
        self.prefix_cache = prefix_cache
        self.ledgers = [
            PageLedger(group.block_bytes(block_tokens), page_bytes, blocks, source)
            for group, source, blocks in zip(groups, sources, capacity_blocks, strict=True)
        ]
        self._windows = {g: kv.window for g, kv in enumerate(groups) if kv.window is not None}
        self.tree = RadixTree(block_tokens, len(self.groups), self._windows)
        self._pagewise = PageEviction(self.tree, self.ledgers)
        self._page_limit = page_limit
        self.allowed = allowed
        self._open: set[SequenceKV] = set()

    @property
    def windowed(self) -> bool:
        """Whether any group lets go of blocks behind a window."""
        return bool(self._windows)

    # --- a sequence's life --------------------------------------------------------------------
    def open(
        self,
        tokens: Tokens,
        hashes: list[int],
        namespace: str = "",
        found: Match | None = None,
    ) -> SequenceKV:
        """Start a sequence from the longest cached prefix that every group can go on from.

        At least one token is left to compute. The prefix is locked until ``close``; no new block is
        taken. ``hashes``: of the full blocks of ``tokens`` in this namespace. ``found``: where a
        ``MatchIndex`` has the match, so that it need not be looked for.
        """
        if not self.prefix_cache:
            empty = [BlockTable(np.empty(0, dtype=np.int32), 0) for _ in self.groups]
            return self._opened(SequenceKV(namespace, 0, 0, None, 0, empty))
        if found is None:
            limit = min(len(hashes), max(0, len(tokens) - 1) // self.block_tokens)
            root = self.tree.root(namespace)
            found = self.tree.descend(root, 0, as_tokens(tokens), hashes, limit)
        node, matched = found
        assert node is not None
        blocks = self.tree.usable(node, matched)
        while node.parent is not None and blocks <= node.start:
            node = node.parent
        node = self.tree.split(node, blocks)
        self.tree.lock(node)
        cached = blocks * self.block_tokens
        tables = []
        for group in range(len(self.groups)):
            if group not in self._windows:
                tables.append(BlockTable(self.tree.gather(node, group, 0, blocks), 0))
                continue
            first = self.tree.window_start(group, cached)
            ids = np.full(blocks, -1, dtype=np.int32)
            ids[first:] = self.tree.gather(node, group, first, blocks)
            tables.append(BlockTable(ids, first))
            self.tree.pin(node, group, first, blocks)
        return self._opened(SequenceKV(namespace, cached, cached, node, blocks, tables))

    def reserve(self, seq: SequenceKV, upto: int) -> bool:
        """Make every group's table cover the positions below ``upto``. All or nothing.

        Evicts cached blocks, least recently used first, when the page source has no more. False:
        even so there is not enough; the caller may ask for less, preempt a sequence, or wait.
        """
        _check_open(seq)
        blocks = -(-upto // self.block_tokens)
        if len(seq.tables) == 1:
            table = seq.tables[0]
            if blocks > table.size:
                ids = self._take(0, blocks - table.size)
                if ids is None:
                    return False
                table.extend(ids)
            return True
        taken: list[list[int]] = []
        for group, table in enumerate(seq.tables):
            got = self._take(group, blocks - table.size) if blocks > table.size else []
            if got is None:
                for earlier, ids in enumerate(taken):
                    self.ledgers[earlier].give(ids)
                return False
            taken.append(got)
        for table, ids in zip(seq.tables, taken, strict=True):
            table.extend(ids)
        return True

    def advance(self, seq: SequenceKV, tokens: Tokens, hashes: list[int], computed: int) -> None:
        """Positions below ``computed`` now hold valid KV. Entries of ``table`` may change.

        ``tokens`` and ``hashes`` describe the whole sequence and must reach ``computed``. Raises
        ValueError when ``computed`` runs back or past what is reserved.
        """
        if self.advance_inside(seq, computed):
            return
        full = computed // self.block_tokens
        if not seq.computed <= computed <= self._reserved(seq):
            raise ValueError(
                f"computed {computed} is not between {seq.computed} (computed before) and "
                f"{self._reserved(seq)} (reserved)"
            )
        if len(hashes) < full:
            raise ValueError(
                f"{len(hashes)} block hashes for {full} full blocks; extend them first"
            )
        if seq.node is not None and seq.can_insert and full > seq.kept:
            low = seq.kept * self.block_tokens
            self._insert(
                seq, as_tokens(tokens[low : full * self.block_tokens]), hashes[seq.kept : full]
            )
        seq.computed = computed
        for group in self._windows:
            self._slide(seq, group, self.tree.window_start(group, computed))

    def advance_inside(self, seq: SequenceKV, computed: int) -> bool:
        """``advance`` as far as it needs no tokens: within a block that was begun, which most steps
        are. False: nothing is done, the whole ``advance`` is to be called."""
        if seq.closed:
            _check_open(seq)
        start = computed - computed % self.block_tokens
        if not start < seq.computed <= computed or self._windows:
            return False
        seq.computed = computed
        return True

    def trim(self, seq: SequenceKV, upto: int) -> None:
        """Give back the blocks that only positions from ``upto`` on would use.

        Raises ValueError when ``upto`` is less than what is computed."""
        _check_open(seq)
        if upto < seq.computed:
            raise ValueError(f"positions below {seq.computed} are computed, more than {upto}")
        blocks = -(-upto // self.block_tokens)
        for table, ledger in zip(seq.tables, self.ledgers, strict=True):
            ledger.give(table.cut(blocks))

    def close(self, seq: SequenceKV) -> None:
        """Release all that the sequence holds. Its cached blocks stay in the tree, evictable.

        Closing twice does nothing."""
        if seq.closed:
            return
        seq.closed = True
        self._open.remove(seq)
        for group, table in enumerate(seq.tables):
            if group in self._windows and seq.node is not None and table.first < seq.kept:
                self.tree.unpin(seq.node, group, table.first, seq.kept)
            self.ledgers[group].give(table.view()[max(table.first, seq.kept) :].tolist())
        if seq.node is not None:
            self.tree.unlock(seq.node)

    def table(self, seq: SequenceKV, group: int) -> IntArray:
        """The group's block table: int32, one entry a block, -1 behind the window.

        A view: read-only, and stale after the next ``reserve`` or ``advance`` of this sequence."""
        return seq.tables[group].view()

    # --- giving memory back -------------------------------------------------------------------
    def evict_pages(self, n: int) -> int:
        """Evict cached blocks until ``n`` pages are unmapped: those whose pages fall free at the
        least loss of prefixes used lately. Blocks in pages that open sequences use stay.

        Returns the pages given back: fewer when there were no more to be had, maybe a few more."""
        given = 0
        while given < n and (freed := self._pagewise.evict(n - given)) is not None:
            given += self._give(freed)
        return given

    def idle_pages(self) -> int:
        """How many pages ``evict_pages`` could give back: those without a block of an open
        sequence. Costs a look at the tables of these, and none at the tree."""
        found = 0
        for group, ledger in enumerate(self.ledgers):
            tables = [seq.tables[group] for seq in self._open]
            used = [table.view()[table.first :] for table in tables]
            found += ledger.mapped_pages
            if used:
                found -= ledger.touched_by(np.concatenate(used))
        return found

    def evict_all(self) -> int:
        """Evict everything that no open sequence uses; returns the pages given back."""
        given = 0
        while (freed := self.tree.evict(1 << 30)) is not None:
            given += self._give(freed)
        return given

    # --- questions ----------------------------------------------------------------------------
    def can_ever_hold(self, tokens: int) -> bool:
        """Whether a lone sequence of so many tokens could be held if all else were given back.

        A sliding group needs its window and the block being written; a prefill chunk beyond that
        must be made small enough by the caller."""
        pages = 0
        for blocks, ledger in zip(self._blocks_for(tokens), self.ledgers, strict=True):
            if blocks > ledger.blocks:
                return False
            pages += -(-blocks * ledger.block_bytes // ledger.page_bytes)
        return all(most is None or pages <= most for most in (self._page_limit, self.allowed))

    def bytes_for(self, tokens: int) -> int:
        """What a sequence of so many tokens holds at its end, shared with nobody."""
        counts = zip(self._blocks_for(tokens), self.ledgers, strict=True)
        return sum(blocks * ledger.block_bytes for blocks, ledger in counts)

    def _blocks_for(self, tokens: int) -> list[int]:
        """Blocks of each group behind so many tokens."""
        blocks = -(-tokens // self.block_tokens)
        if not self._windows:
            return [blocks] * len(self.ledgers)
        return [
            min(blocks, self._windows[group] // self.block_tokens + 2)
            if group in self._windows
            else blocks
            for group in range(len(self.ledgers))
        ]

    def free_tokens(self) -> int:
        """An estimate of how many more tokens could be reserved now, the cache evicted.

        Every group is taken to need all tokens, so it is low for long sequences of sliding groups.
        """
        if len(self.ledgers) == 1:
            return (self.ledgers[0].within_reach + self.tree.idle[0]) * self.block_tokens
        pages = min(ledger.source.available() for ledger in self.ledgers)
        page_bytes = self.ledgers[0].page_bytes
        fresh = pages * page_bytes // sum(ledger.block_bytes for ledger in self.ledgers)
        blocks = min(
            min(ledger.ready + fresh, ledger.free) + idle
            for ledger, idle in zip(self.ledgers, self.tree.idle, strict=True)
        )
        return blocks * self.block_tokens

    def stats(self) -> KVStats:
        """Counts now; costs a few additions."""
        cached = sum(self.tree.idle)
        return KVStats(
            used=sum(ledger.used for ledger in self.ledgers) - cached,
            cached=cached,
            total=sum(ledger.blocks for ledger in self.ledgers),
            mapped_pages=sum(ledger.mapped_pages for ledger in self.ledgers),
            sequences=len(self._open),
        )

    def live_bytes(self) -> int:
        """What blocks that somebody holds take; the mapped pages around them take more."""
        return sum(ledger.used * ledger.block_bytes for ledger in self.ledgers)

    def check_integrity(self) -> list[str]:
        """Everything that contradicts itself, in words; empty when all is well. O(blocks)."""
        return problems_of(self.tree, self.ledgers, list(self._open))

    # --- inside -------------------------------------------------------------------------------
    def _opened(self, seq: SequenceKV) -> SequenceKV:
        self._open.add(seq)
        return seq

    def _reserved(self, seq: SequenceKV) -> int:
        tables = seq.tables
        if len(tables) == 1:
            return tables[0].size * self.block_tokens
        return min([table.size for table in tables]) * self.block_tokens

    def _take(self, group: int, n: int) -> list[int] | None:
        """Blocks from the ledger, or evicted ones handed over without unmapping their pages."""
        ledger = self.ledgers[group]
        got = ledger.take(n)
        if got is not None or n > self._reach(group):
            return got
        recycled: list[int] = []
        while len(recycled) < n:
            freed = self.tree.evict(n - len(recycled), group)
            if freed is None:
                ledger.give(recycled)
                return None
            recycled += freed[group]
            freed[group] = []
            self._give(freed)
            rest = ledger.take(n - len(recycled))
            if rest is not None:
                return recycled + rest
        return recycled

    def _reach(self, group: int) -> int:
        """A bound on the blocks that evicting everything could find, so as not to do it in vain."""
        ledger = self.ledgers[group]
        pages = ledger.source.available()
        for other, idle in zip(self.ledgers, self.tree.idle, strict=True):
            if other is not ledger:
                touched = other.block_bytes // other.page_bytes + 2
                pages += min(other.mapped_pages, idle * touched)
        fresh = ledger.ready + ledger.partly + pages * ledger.page_bytes // ledger.block_bytes
        return min(ledger.free, fresh) + self.tree.idle[group]

    def _give(self, freed: list[list[int]]) -> int:
        return sum(ledger.give(ids) for ledger, ids in zip(self.ledgers, freed, strict=True) if ids)

    def _insert(self, seq: SequenceKV, tokens: IntArray, hashes: list[int]) -> None:
        """Hand newly full blocks to the tree; take the tree's where it has them."""
        assert seq.node is not None
        low, high = seq.kept, seq.kept + len(hashes)
        fresh = hashes[0] not in seq.node.children  # then the tree takes all blocks as they are
        offered = [table.view()[low:high] for table in seq.tables]
        if not fresh:
            offered = [ids.copy() for ids in offered]
        node, end = self.tree.insert(seq.node, tokens, hashes, offered)
        assert node is not None
        self.tree.lock(node, above=seq.node)
        for group, (table, ids) in enumerate(zip(seq.tables, offered, strict=True)):
            if fresh and group not in self._windows:
                continue
            mine = table.view()[low:end]
            spare = mine[mine != ids[: end - low]].tolist()
            mine[:] = ids[: end - low]
            if group in self._windows:
                self.tree.pin(node, group, low, end)
            self.ledgers[group].give(spare)
        seq.node, seq.kept = node, end
        # Other tokens with an equal hash are in the way: this sequence's later blocks stay private.
        seq.can_insert = end == high

    def _slide(self, seq: SequenceKV, group: int, first: int) -> None:
        """Let go of the blocks before ``first``, all behind the window of the next position."""
        table = seq.tables[group]
        first = min(first, table.size)
        if first <= table.first:
            return
        shared = min(first, seq.kept)
        if seq.node is not None and table.first < shared:
            self.tree.unpin(seq.node, group, table.first, shared)
        self.ledgers[group].give(table.view()[max(table.first, shared) : first].tolist())
        table.drop_before(first)


def _check_open(seq: SequenceKV) -> None:
    if seq.closed:
        raise ValueError("the sequence is closed; open a new one")
