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
``escape_seconds`` lets them have it, once until its client is served. Does not know sizes of
memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush, nsmallest
from itertools import islice

from tenfold.scheduling.base import PolicySetup, Waiting
from tenfold.scheduling.client_queues import ClientQueues, Head
from tenfold.scheduling.deficits import Deficits
from tenfold.scheduling.lpm import BLOCK_TOKENS, SIBLING_TOKENS
from tenfold.scheduling.queue import Key
from tenfold.scheduling.siblings import Siblings


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
        self._queues = ClientQueues(lambda w: -w.matched)
        block = BLOCK_TOKENS if self._matches is None else self._matches.block_tokens
        self._siblings = Siblings(block, sibling_tokens)
        self._blocked: Waiting | None = None
        self._blocked_since = 0.0
        self._passed_by: set[str] = set()
        self._now = 0.0

    # --- the queue ------------------------------------------------------------------------------
    def add(self, w: Waiting) -> None:
        if self._matches is not None and w.id in self._matches:
            w.matched = self._matches.matched(w.id)
        self._queues.add(w)
        self.deficits.queue(w.client)

    def remove(self, w: Waiting) -> None:
        if self._queues.discard(w.id):
            self._siblings.forget(w.id)
            self.deficits.unqueue(w.client, self._now)
            if w is self._blocked:
                self._blocked = None
            if self._queues.after(w.client, None) is None:
                self._passed_by.discard(w.client)

    def _refresh(self) -> None:
        """Bring the order up to date with what is cached."""
        if self._matches is None:
            for w in list(self._queues.all()):
                self._queues.move(w)
            return
        for id in self._matches.take_changed():
            found = self._queues.get(id)
            if found is not None and found.matched != (now := self._matches.matched(id)):
                found.matched = now
                self._queues.move(found)

    # --- whom to try ----------------------------------------------------------------------------
    def candidates(self, now: float) -> Iterator[Waiting]:
        self._now = now
        self._refresh()
        self._siblings.new_pass()
        self.deficits.expire(now)
        if (blocked := self._in_the_way(now)) is not None:
            self._blocked = None
            self._passed_by.add(blocked.client)
            self.deficits.grant(blocked.client)
        sweep = _Sweep(self._queues, self.deficits)
        while (w := sweep.next()) is not None:
            if self._siblings.defer(w):
                continue
            yield w
            if w.id in self._queues:
                if self._blocked is None and w.client not in self._passed_by:
                    self._blocked, self._blocked_since = w, now
            else:
                self._siblings.admitted(w)
                self._blocked = None
                self._passed_by.discard(w.client)

    def _in_the_way(self, now: float) -> Waiting | None:
        """The request that has kept others from their round for long enough. Its client is passed
        by once; then they wait until it is served, or small requests would starve a large one."""
        if not self._escape or self._blocked is None:
            return None
        return self._blocked if now - self._blocked_since >= self._escape else None

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
        return len(self._queues)

    # --- looking --------------------------------------------------------------------------------
    def may_run(self, client: str) -> bool:
        self.deficits.refill()  # as the next pass would begin
        return self.deficits.eligible(client)

    def first(self, most: int) -> list[Waiting]:
        """Who has credit goes first; that a refill will change this is not foreseen."""
        rows = []
        for client, queue in self._queues.walk():
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
    """Algorithm 1's scan of the queue, down its order and from the top again, which tries every
    request once and does not look behind the head of a client that has no credit.

    It walks along the clients' heads. Where a request stays queued though it was tried, the
    client's next one joins ``_rest``. Clients that are passed for want of credit are remembered:
    after a refill they go on below the place where the scan is, and what they have above it waits
    for the next time round."""

    def __init__(self, queues: ClientQueues, deficits: Deficits) -> None:
        self._queues = queues
        self._deficits = deficits
        self._tried: set[str] = set()
        self._last: Head | None = None
        self._begin()

    def _begin(self) -> None:
        self._at: Key | None = None
        self._head: Head | None = None
        self._rest: list[Head] = []
        self._skipped: list[str] = []
        self._again = False

    def next(self) -> Waiting | None:
        """The next request to try; None when nobody with credit has another one."""
        if (last := self._last) is not None and (last != self._head or last[0][-1] in self._queues):
            self._push(last[1], last[0])  # else it was a head, and the client has a new one
        if self._deficits.refill():
            self._rejoin()
        while True:
            found = self._step()
            if found is None:
                if not self._again:
                    return None
                self._begin()
                continue
            key, client = found
            self._at = key
            if key[-1] in self._tried:
                self._push(client, key)
                continue
            self._tried.add(key[-1])
            self._last = found
            return self._queues.get(key[-1])

    def _step(self) -> Head | None:
        """On to a client with credit: the next head, or what comes earlier of one that is past its
        head. There may be ten thousand clients without, so this loop is kept short."""
        heads, rest, eligible = self._queues.heads, self._rest, self._deficits.eligible
        at = self._queues.place_after(self._head)
        while rest or at < len(heads):
            if rest and (at == len(heads) or rest[0] < heads[at]):
                found = heappop(rest)
            else:
                found = self._head = heads[at]
                at += 1
            if eligible(found[1]):
                return found
            self._skipped.append(found[1])
        return None

    def _rejoin(self) -> None:
        """Some have credit again."""
        skipped, self._skipped = self._skipped, []
        for client in skipped:
            if self._deficits.eligible(client):
                self._again = True
                self._push(client, self._at)
            else:
                self._skipped.append(client)

    def _push(self, client: str, after: Key | None) -> None:
        key = self._queues.after(client, after)
        if key is not None:
            heappush(self._rest, (key, client))
