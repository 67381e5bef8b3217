"""One worker after another, whatever they have to do. Knows no clients and no caches."""

from __future__ import annotations

from tenfold.scheduling.routing.base import Routed
from tenfold.scheduling.routing.router import Flight, Router


class RoundRobin(Router):
    """The next worker that may be asked, in the order in which they joined."""

    def pick(self, request: Routed, among: int, now: float) -> Flight:
        return Flight(request, self.workers.next(among))
