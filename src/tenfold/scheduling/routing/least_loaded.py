"""The worker with the fewest outstanding requests; ties go round. Knows no clients, no caches."""

from __future__ import annotations

from tenfold.scheduling.routing.router import Router


class LeastLoaded(Router):
    """Join the shortest queue, which is what routers do that have no other rule."""
