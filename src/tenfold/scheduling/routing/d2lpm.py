"""Distributed DLPM: each client has a deficit at every worker, and prefixes are followed within it.

D2LPM, "Locality-aware Fair Scheduling in LLM Serving" (arXiv 2501.14312), Algorithm 2. q[i][w] says
how much more of client i's work may go to worker w before the others get their turn. A request goes
to the workers that have the longest match of its prompt, if the client has credit at one of them,
else to any where it has; of those, to the one with the fewest outstanding requests. Its whole
prompt is charged at once and its output when it ends. Where the client has no credit left anywhere,
rounds give it a quantum Q^w at each worker. So a prefix that many ask for spreads over the workers,
and every worker, which runs DLPM, sees about the same of each client; with Q^w unbounded this is
stickiness, and unfair (Theorem A.5).

What the paper leaves open, and what is done here:

- *Rounds* are counted, not carried out: as many as it takes until the worker where least is owed
  turns positive, so q never exceeds a quantum. Where not every worker may be asked (one does not
  hold the model, or is being drained) a round is of those that may.
- *Weights.* A client of weight f gets f Q^w a round.
- *A request that was dropped* before it ran gets its charge back, up to one quantum of credit. What
  a dead worker was charged goes with its column; a worker that comes starts at 0 and waits, like a
  new client in DLPM, for the next round.
- *A client* with nothing outstanding for a while is forgotten, credit and debt. That costs nobody
  anything: q[i][w] only compares the workers of one client, and its debt to others is kept where it
  is served.
- *Prompts count as cached* from dispatch on, as published; what the worker did not tell it has
  cached when the request ends is taken back.
- ``charge_input`` "extend" charges only what was not cached at the worker.

Ties go round (``workers``). Does not know how much a worker can hold, nor how fast it is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

from tenfold.core.settings import RoutingSettings
from tenfold.kvcache.prefix_map import PrefixMap, PrefixMatch
from tenfold.scheduling.routing.base import Routed
from tenfold.scheduling.routing.router import Flight, PrefixRouter
from tenfold.scheduling.routing.workers import bits_of

IDLE_SECONDS = 60.0
"""After so long without a request a client is forgotten."""

COLUMNS = 16
"""Rows grow by so many workers."""


@dataclass(slots=True)
class Row:
    """A client: ``q`` by worker number, ``positive`` the workers where it is above 0."""

    q: NDArray[np.float64]
    share: float
    positive: int = 0
    outstanding: int = 0


class D2LPM(PrefixRouter):
    """Algorithm 2 of the paper."""

    def __init__(self, settings: RoutingSettings | None = None) -> None:
        super().__init__(settings)
        if not self.settings.quantum > 0:
            raise ValueError(f"a quantum of {self.settings.quantum}; it must be above 0")
        self._rows: dict[str, Row] = {}
        self._weights: dict[str, float] = {}
        self._idle: OrderedDict[str, float] = OrderedDict()
        self._columns = COLUMNS
        self._rounds = 0

    # --- clients and workers --------------------------------------------------------------------
    def _row(self, client: str) -> Row:
        row = self._rows.get(client)
        if row is None:
            row = Row(np.zeros(self._columns), self._share(client))
            self._rows[client] = row
        return row

    def _share(self, client: str) -> float:
        return self._weights.get(client, 1.0) * self.settings.quantum

    def set_weight(self, client: str, weight: float) -> None:
        if not weight > 0:
            raise ValueError(f"the weight of {client!r} is {weight}; it must be above 0")
        self._weights[client] = weight
        if (row := self._rows.get(client)) is not None:
            row.share = self._share(client)
            np.minimum(row.q, row.share, out=row.q)

    def joined(self, worker: int) -> None:
        if worker >= self._columns:
            self._columns += COLUMNS
            for row in self._rows.values():
                row.q = np.concatenate((row.q, np.zeros(COLUMNS)))

    def left(self, worker: int) -> None:
        super().left(worker)
        for row in self._rows.values():
            row.q[worker] = 0.0
            row.positive &= ~(1 << worker)

    # --- choosing -------------------------------------------------------------------------------
    def pick(self, request: Routed, among: int, now: float) -> Flight:
        self._forget_idle(now)
        row, map = self._row(request.client), self.map(request.model)
        available = row.positive & among
        if not available:
            available = self._refill(row, among)
        match = map.match(request.hashes, among)
        number = self.workers.least(match.holders & available or available)
        charge = self.settings.extend_weight * self._billed(request, map, match, number)
        self._charge(row, number, charge)
        row.outstanding += 1
        self._idle.pop(request.client, None)
        map.expect(number, request.hashes)
        return Flight(request, number, charge)

    def _billed(self, request: Routed, map: PrefixMap, match: PrefixMatch, worker: int) -> int:
        """Prompt tokens to charge. At least one of a prompt is always computed. ``match``: the best
        of all workers."""
        if self.settings.charge_input == "all" or not request.hashes:
            return request.prompt_tokens
        if not match.holders >> worker & 1:
            match = map.match(request.hashes, 1 << worker)
        return max(1, request.prompt_tokens - match.blocks * request.block_tokens)

    def _refill(self, row: Row, among: int) -> int:
        """Rounds until the client has credit at one of the workers; where it has some then."""
        chosen = self.workers.members(among)
        q = row.q[chosen]
        best = float(q.max())
        rounds = floor(-best / row.share) + 1
        while best + rounds * row.share <= 0:  # rounding
            rounds += 1
        self._rounds += rounds
        row.q[chosen] = np.minimum(q + rounds * row.share, row.share)
        row.positive = bits_of(row.q > 0)
        return row.positive & among

    def _charge(self, row: Row, worker: int, amount: float) -> None:
        q = min(float(row.q[worker]) - amount, row.share)
        row.q[worker] = q
        bit = 1 << worker
        row.positive = row.positive | bit if q > 0 else row.positive & ~bit

    # --- what becomes of them -------------------------------------------------------------------
    def ended(self, flight: Flight, output_tokens: int | None) -> None:
        super().ended(flight, output_tokens)
        client = flight.request.client
        row = self._rows[client]
        if output_tokens is None:
            self._charge(row, flight.worker, -flight.charge)
        else:
            self._charge(row, flight.worker, self.settings.output_weight * output_tokens)
        row.outstanding -= 1
        if not row.outstanding:
            self._idle[client] = self._now

    def _forget_idle(self, now: float) -> None:
        while self._idle:
            client, since = next(iter(self._idle.items()))
            if now - since < IDLE_SECONDS:
                return
            del self._idle[client], self._rows[client]

    # --- looking --------------------------------------------------------------------------------
    def credit(self, client: str, worker: str) -> float:
        """q[client][worker]; 0 for unknown ones."""
        number, row = self.workers.number(worker), self._rows.get(client)
        return 0.0 if number is None or row is None else float(row.q[number])

    @property
    def rounds(self) -> int:
        """Rounds so far, of all clients."""
        return self._rounds
