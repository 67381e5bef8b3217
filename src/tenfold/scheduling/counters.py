"""Service counters: who was served least, for the virtual token counter (VTC).

A client's counter grows by the service it gets, divided by its weight; the client with the smallest
one is served next ("Fairness in Serving Large Language Models", OSDI 2024, Algorithm 2). A client
that comes back from having nothing queued is *lifted* to the least counter of those that have, so
that pausing saves nothing up; what it is ahead stays. Groups are not known here. Does not know
requests, models or time.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from tenfold.core.settings import Share

SPARE = 1024
"""Counters of clients with nothing to do that are kept without looking."""


class Counters:
    """The counters of one device. One thread."""

    def __init__(self) -> None:
        self._value: dict[str, float] = {}
        self._weight: dict[str, float] = {}
        self._queued: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._least: list[tuple[float, str]] = []
        self.refunds = 0
        self._last_left = ""

    def set_shares(self, shares: Iterable[Share]) -> None:
        """Weights from now on; groups are ignored."""
        self._weight = {one.name: one.weight for one in shares if not one.is_group}

    def queue(self, client: str) -> None:
        """A request of the client waits. If none did, the counter is lifted: to the least of those
        that have something queued, or, with nobody there, to that of the client that left last."""
        if not self._queued.get(client):
            value = max(self._value.get(client, 0.0), self._lift())
            self._value[client] = value
            self._queued[client] = 0
            heappush(self._least, (value, client))
        self._queued[client] += 1

    def unqueue(self, client: str) -> None:
        """One of them waits no more."""
        self._queued[client] -= 1
        if not self._queued[client]:
            del self._queued[client]
            self._last_left = client

    def start(self, client: str) -> None:
        self._running[client] = self._running.get(client, 0) + 1

    def stop(self, client: str) -> None:
        """A request that had started has ended."""
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        if len(self._value) > 2 * (len(self._queued) + len(self._running)) + SPARE:
            self._forget()

    def charge(self, client: str, amount: float) -> None:
        """Count service (below 0: that was not given after all; ``refunds`` counts such calls)."""
        value = self._value.get(client, 0.0) + amount / self._weight.get(client, 1.0)
        self._value[client] = value
        if amount < 0:
            self.refunds += 1
            if client in self._queued:
                heappush(self._least, (value, client))

    def value(self, client: str) -> float:
        return self._value.get(client, 0.0)

    def drift(self, client: str) -> float:
        """Service the client is ahead of the least served one, while both have something queued; 0
        where it has nothing. The least served is admitted first, so it stays below what the
        requests of one client in flight can cost."""
        floor = self._floor()
        if floor is None or client not in self._queued:
            return 0.0
        return (self.value(client) - floor) * self._weight.get(client, 1.0)

    def _forget(self) -> None:
        """Drop clients that a lift would overtake as soon as they came back."""
        least = self._lift()
        for client in [client for client, value in self._value.items() if value <= least]:
            if not (client in self._queued or client in self._running or client == self._last_left):
                del self._value[client]

    def clients(self) -> list[str]:
        return list(self._value)

    def _lift(self) -> float:
        """Whoever comes back now has at least this counter. What the client that left last is
        still charged counts too."""
        floor = self._floor()
        return self._value.get(self._last_left, 0.0) if floor is None else floor

    def _floor(self) -> float | None:
        """The least counter of a client that has something queued."""
        while self._least:
            value, client = self._least[0]
            now = self._value.get(client, 0.0)
            if client in self._queued and value == now:
                return value
            heappop(self._least)
            if client in self._queued and value < now:  # it was served since
                heappush(self._least, (now, client))
        return None
