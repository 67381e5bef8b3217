"""Follow the cache while workers are about equally busy: the rule of SGLang's router.

If the requests outstanding at the busiest and the least busy worker differ by more than
``slack_requests``, and by more than ``slack_ratio`` times, the least busy one gets the request.
Otherwise, if more than ``match_ratio`` of the prompt was sent to a worker before, that worker does;
of several the least busy; and else the least busy of all. As there, what a worker has cached is
inferred from what was sent to it: nothing is learnt of evictions, and ``most_blocks`` forgets what
was not used for long. Knows no clients.
"""

from __future__ import annotations

from tenfold.scheduling.routing.base import Routed
from tenfold.scheduling.routing.router import Flight, PrefixRouter


class CacheAware(PrefixRouter):
    """Shortest queue under imbalance, else the longest match that is long enough."""

    follows_caches = False

    def pick(self, request: Routed, among: int, now: float) -> Flight:
        fewest, most = self.workers.extremes(among)
        settings, map = self.settings, self.map(request.model)
        even = most - fewest <= settings.slack_requests or most <= settings.slack_ratio * fewest
        chosen = among
        if even:
            match = map.match(request.hashes, among)
            if match.blocks > settings.match_ratio * len(request.hashes):
                chosen = match.holders
        number = self.workers.least(chosen)
        map.insert(number, 0, request.hashes)
        return Flight(request, number)

    def ended(self, flight: Flight, output_tokens: int | None) -> None:
        """Its prompt stays in the map."""

    def inserted(self, worker: str, model: str, after: int, hashes: list[int]) -> None:
        """Not listened to."""

    def evicted(self, worker: str, model: str, hashes: list[int]) -> None:
        """Not listened to."""

    def cleared(self, worker: str, model: str) -> None:
        """Not listened to."""
