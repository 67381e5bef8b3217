"""Who paid for which cached prefix, so that clients who share one can share its cost.

The rule: the n clients that have used a block of prompt pay an n-th of it each. Whoever computed it
paid all of it; when another client uses it for the first time that client pays its part, and those
before get back the difference between their old part and the new one. What is paid for a block
stays what it costs to compute it once. At most ``MOST_PAYERS`` share a block; later users are free.
Blocks of generated tokens were paid for as output and cost nobody anything. A block that is evicted
is forgotten: whoever computes it again pays all of it.

Blocks are known by their chained hashes. Does not know what a token costs, nor who may run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tenfold.kvcache.node import Node
from tenfold.kvcache.radix import RadixTree

MOST_PAYERS = 16


class PrefixPayers:
    """A listener of one model's tree."""

    def __init__(self, tree: RadixTree) -> None:
        self._block_tokens = tree.block_tokens
        self._payers: dict[int, tuple[str, ...]] = {}
        tree.listeners.append(self)

    def computed(self, client: str, hashes: Iterable[int]) -> None:
        """The client has paid for computing these blocks of its prompt."""
        for block in hashes:
            self._payers.setdefault(block, (client,))

    def used(self, client: str, hashes: Iterable[int]) -> dict[str, float]:
        """The client uses these cached blocks: prompt tokens to charge it, and (below 0) those to
        give back to who paid before."""
        shared: Counter[tuple[str, ...]] = Counter()
        for block in hashes:
            payers = self._payers.get(block)
            if payers is not None and client not in payers and len(payers) < MOST_PAYERS:
                shared[payers] += self._block_tokens
                self._payers[block] = (*payers, client)
        due: dict[str, float] = {}
        for payers, tokens in shared.items():
            parts = len(payers) + 1
            due[client] = due.get(client, 0.0) + tokens / parts
            for payer in payers:
                due[payer] = due.get(payer, 0.0) - tokens / (parts * (parts - 1))
        return due

    # --- what the tree tells ------------------------------------------------------------------
    def on_evict(self, node: Node, hashes: list[int]) -> None:
        for block in hashes:
            self._payers.pop(block, None)

    def on_insert(self, node: Node, first: int) -> None:
        """``computed`` tells who paid."""

    def on_split(self, head: Node, tail: Node) -> None:
        """Blocks stay what they are."""

    def on_window(self, node: Node) -> None:
        """Blocks stay what they are."""
