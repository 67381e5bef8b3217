"""Deficit longest prefix match: the longest match first, among clients that have credit left.

DLPM, "Locality-aware Fair Scheduling in LLM Serving" (arXiv 2501.14312), Algorithm 1. A client
without credit is skipped, not waited for, so requests that share a prefix still run one after
another; when no client with something queued has credit left, there is a refill in the middle of
the pass, and work is conserved. Extend tokens are charged from admission on, output tokens step by
step, nobody is stopped half-way, and what a client overdraws it owes.

For clients that always have work, |W_f - W_g| <= 2 (U + Q), U = w_e L_input + w_q M (Theorem 4.1),
where M bounds the output in flight of a client: the tokens that memory holds if admission reserves
whole answers; else the number of running requests times the longest answer (U').

Decided here, beside what ``deficits`` decides: priorities order requests among clients with credit,
and cannot buy any; a pass ends when nothing that has credit is left to try; a request that has
credit and does not fit keeps the others from their next round, as published, or after
``escape_seconds`` lets one go by. Does not know sizes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush, nsmallest
from itertools import islice
from typing import NamedTuple

from tenfold.scheduling.base import PolicySetup, Waiting
from tenfold.scheduling.lpm import BLOCK_TOKENS, SIBLING_TOKENS
from tenfold.scheduling.queue import Key, SortedQueue
from tenfold.scheduling.siblings import Siblings


class _Head(NamedTuple):
    """The request of a client that a sweep has come to."""

    key: Key
    client: str


class DLPM:
    """Algorithm 1 of the paper. ``deficits`` are the device's, whichever model asks."""

    blocking = False

    def __init__(
        self, setup: PolicySetup | None = None, *, sibling_tokens: int = SIBLING_TOKENS
    ) -> None:
        setup = setup or PolicySetup()
        self.deficits = setup.accounts.deficits
        self._matches = setup.matches
        self._extend = setup.settings.extend_weight * setup.price
        self._output = setup.settings.output_weight * setup.price
        self._escape = setup.settings.escape_seconds
        self._queues: dict[str, SortedQueue] = {}
        self._clients: dict[str, str] = {}
        block = BLOCK_TOKENS if self._matches is None else self._matches.block_tokens
        self._siblings = Siblings(block, sibling_tokens)
        self._blocked_since: float | None = None
        self._now = 0.0

    # --- the queue ------------------------------------------------------------------------------
    def add(self, w: Waiting) -> None:
        if self._matches is not None and w.id in self._matches:
            w.matched = self._matches.matched(w.id)
        self._queues.setdefault(w.client, SortedQueue(lambda w: -w.matched)).add(w)
        self._clients[w.id] = w.client
        self.deficits.queue(w.client)

    def remove(self, w: Waiting) -> None:
        if self._clients.pop(w.id, None) is None:
            return
        queue = self._queues[w.client]
        queue.discard(w.id)
        if not len(queue):
            del self._queues[w.client]
        self._siblings.forget(w.id)
        self.deficits.unqueue(w.client, self._now)

    def _refresh(self) -> None:
        """Bring the order up to date with what is cached."""
        if self._matches is None:
            for queue in self._queues.values():
                for w in list(queue.walk()):
                    queue.move(w)
            return
        for id in self._matches.take_changed():
            client = self._clients.get(id)
            found = None if client is None else self._queues[client].get(id)
            if found is not None and found.matched != (now := self._matches.matched(id)):
                found.matched = now
                self._queues[found.client].move(found)

    # --- whom to try ----------------------------------------------------------------------------
    def candidates(self, now: float) -> Iterator[Waiting]:
        self._now = now
        self._refresh()
        self._siblings.new_pass()
        self.deficits.expire(now)
        refused: set[str] = set()
        if self._blocked_for(now):
            self._blocked_since = now
            self.deficits.grant()
        sweep = _Sweep(self, refused)
        while (w := sweep.next()) is not None:
            if self._siblings.defer(w):
                refused.add(w.id)
                continue
            yield w
            if w.id in self._clients:
                refused.add(w.id)
                if self._blocked_since is None:
                    self._blocked_since = now
            else:
                self._siblings.admitted(w)
                self._blocked_since = None

    def _blocked_for(self, now: float) -> bool:
        since = self._blocked_since
        return bool(self._escape) and since is not None and now - since >= self._escape

    # --- what becomes of them -------------------------------------------------------------------
    def admitted(self, w: Waiting, extend_tokens: int) -> None:
        again, w.preempted = w.preempted, False
        if not again:
            self.deficits.start(w.client)
        self.deficits.pledge(w.client, self._extend * extend_tokens)
        self.remove(w)

    def prefilled(self, client: str, tokens: int) -> None:
        self.deficits.charge(client, self._extend * tokens, pledged=True)

    def decoded(self, counts: Mapping[str, int]) -> None:
        for client, tokens in counts.items():
            self.deficits.charge(client, self._output * tokens)

    def finished(self, client: str, unused: int = 0) -> None:
        self.deficits.pledge(client, -self._extend * unused)
        self.deficits.stop(client, self._now)

    def shared(self, tokens: Mapping[str, float]) -> None:
        for client, amount in tokens.items():
            self.deficits.charge(client, self._extend * amount)

    def preempted(self, w: Waiting, unused: int = 0) -> None:
        w.preempted = True
        self.add(w)
        self.deficits.pledge(w.client, -self._extend * unused)

    def __len__(self) -> int:
        return len(self._clients)

    # --- looking --------------------------------------------------------------------------------
    def may_run(self, client: str) -> bool:
        self.deficits.refill()  # as the next pass would begin
        return self.deficits.eligible(client)

    def first(self, most: int) -> list[Waiting]:
        """Who has credit goes first; that a refill will change this is not foreseen."""
        rows = []
        for client, queue in self._queues.items():
            late = not self.deficits.eligible(client)
            rows += [(late, queue.key_of(w), w) for w in islice(queue.walk(), most)]
        return [row[-1] for row in nsmallest(most, rows, key=lambda row: row[:2])]

    def reason(self, w: Waiting) -> str:
        credit, rounds = self.deficits.credit(w.client), self.deficits.rounds(w.client)
        turn = "" if self.deficits.eligible(w.client) else " and waits for a refill"
        return (
            f"{w.matched} of {w.prompt_tokens} prompt tokens are cached; {w.client!r} has credit "
            f"{credit:g} in round {rounds}{turn}{self._siblings.note(w)}"
        )


class _Sweep:
    """Algorithm 1's scan of the whole queue, without looking at requests of clients that have no
    credit: it goes down the order, refills where nobody has any, goes on below that place with
    those that have now, and starts from the top again for what it had gone past."""

    def __init__(self, policy: DLPM, refused: set[str]) -> None:
        self._policy = policy
        self._refused = refused
        self._eligible: set[str] = set()
        self._heads: list[_Head] = []
        self._at: Key | None = None
        self._passed = False
        self._begin()

    def next(self) -> Waiting | None:
        """The next request to try, of a client with credit."""
        deficits, queues = self._policy.deficits, self._policy._queues
        while True:
            if deficits.refill():
                self._join()
            while self._heads:
                key, client = heappop(self._heads)
                queue = queues.get(client)
                if queue is None or not deficits.eligible(client):
                    self._eligible.discard(client)
                    continue
                w = queue.get(key[-1])
                self._push(client, key)
                if w is not None and w.id not in self._refused:
                    self._at = key
                    return w
            if not self._passed:
                return None
            self._begin()

    def _begin(self) -> None:
        """From the top, with everybody who has credit."""
        self._at, self._passed = None, False
        self._eligible.clear()
        self._heads = []
        self._join()

    def _join(self) -> None:
        """Clients that have credit now go on below the place where the scan is."""
        deficits = self._policy.deficits
        for client, queue in self._policy._queues.items():
            if client not in self._eligible and deficits.eligible(client):
                self._eligible.add(client)
                self._passed |= self._at is not None and queue.first() <= self._at
                self._push(client, self._at)
        heapify(self._heads)

    def _push(self, client: str, after: Key | None) -> None:
        key = self._policy._queues[client].after(after)
        if key is not None:
            heappush(self._heads, _Head(key, client))
