"""What the routing policies have in common: who is there, what is on its way, what is cached.

A policy of its own need not use it. Knows no policy.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tenfold.core.settings import RoutingSettings
from tenfold.kvcache.prefix_map import PrefixMap
from tenfold.scheduling.routing.base import Routed
from tenfold.scheduling.routing.workers import Workers


@dataclass(slots=True)
class Flight:
    """A request that was given to a worker. ``charge``: what its client was billed for it."""

    request: Routed
    worker: int
    charge: float = 0.0


class Router:
    """Counts outstanding requests. A policy says in ``pick`` who gets a request, and may listen to
    ``ended``, ``joined`` and ``left``."""

    follows_caches = False

    def __init__(self, settings: RoutingSettings | None = None) -> None:
        self.settings = settings or RoutingSettings()
        self.workers = Workers()
        self._flights: dict[str, Flight] = {}
        self._now = 0.0

    # --- for policies to fill in ----------------------------------------------------------------
    def pick(self, request: Routed, among: int, now: float) -> Flight:
        """Who gets the request, one of the bit set ``among``. Here: who has the least to do."""
        return Flight(request, self.workers.least(among))

    def ended(self, flight: Flight, output_tokens: int | None) -> None:
        """A flight is over, after so many output tokens; None: it was dropped."""

    def joined(self, worker: int) -> None:
        """A worker has this number now."""

    def left(self, worker: int) -> None:
        """The worker of this number is gone; what it had on its way was dropped."""

    # --- RoutingPolicy --------------------------------------------------------------------------
    def join(self, worker: str) -> None:
        if worker in self.workers:
            self.leave(worker)
        self.joined(self.workers.join(worker))

    def leave(self, worker: str) -> None:
        number = self.workers.number(worker)
        if number is None:
            return
        for id in [id for id, flight in self._flights.items() if flight.worker == number]:
            self.dropped(id)
        self.left(number)
        self.workers.leave(worker)

    def set_weight(self, client: str, weight: float) -> None:
        """Clients are alike to this policy."""

    def choose(self, request: Routed, among: Collection[str], now: float) -> str:
        self._now = now
        flight = self.pick(request, self.workers.group(among), now)
        self._flights[request.id] = flight
        self.workers.add(flight.worker)
        return self.workers.names[flight.worker]

    def finished(self, id: str, output_tokens: int, now: float) -> None:
        self._now = now
        self._end(id, output_tokens)

    def dropped(self, id: str) -> None:
        self._end(id, None)

    def _end(self, id: str, output_tokens: int | None) -> None:
        flight = self._flights.pop(id, None)
        if flight is not None:
            self.workers.add(flight.worker, -1)
            self.ended(flight, output_tokens)

    def inserted(self, worker: str, model: str, after: int, hashes: list[int]) -> None:
        """Caches are nothing to this policy."""

    def evicted(self, worker: str, model: str, hashes: list[int]) -> None:
        """Caches are nothing to this policy."""

    def cleared(self, worker: str, model: str) -> None:
        """Caches are nothing to this policy."""


class PrefixRouter(Router):
    """Keeps a map of each model's prefixes as well, fed by what workers tell of their caches. A
    policy calls ``expect`` in ``pick``, so that a prompt is known before it is computed."""

    follows_caches = True

    def __init__(self, settings: RoutingSettings | None = None) -> None:
        super().__init__(settings)
        self._maps: dict[str, PrefixMap] = {}

    def map(self, model: str) -> PrefixMap:
        """The model's map, made when missing."""
        found = self._maps.get(model)
        if found is None:
            found = self._maps[model] = PrefixMap(self.settings.most_blocks)
        return found

    def left(self, worker: int) -> None:
        for found in self._maps.values():
            found.leave(worker)

    def ended(self, flight: Flight, output_tokens: int | None) -> None:
        self.map(flight.request.model).settle(flight.worker, flight.request.hashes)

    def inserted(self, worker: str, model: str, after: int, hashes: list[int]) -> None:
        number = self.workers.number(worker)
        if number is not None:
            self.map(model).insert(number, after, hashes)

    def evicted(self, worker: str, model: str, hashes: list[int]) -> None:
        number = self.workers.number(worker)
        if number is not None:
            self.map(model).evict(number, hashes)

    def cleared(self, worker: str, model: str) -> None:
        number = self.workers.number(worker)
        if number is not None:
            self.map(model).clear(number)
