"""The routing policies by name. Adding one is a file and a line here; none is imported until asked
for."""

from __future__ import annotations

from typing import Final

from tenfold.core.registry import Registry
from tenfold.scheduling.routing.base import RoutingFactory

routing_policies: Final[Registry[RoutingFactory]] = Registry(
    "routing policy",
    {
        "cache-aware": "tenfold.scheduling.routing.cache_aware:CacheAware",
        "d2lpm": "tenfold.scheduling.routing.d2lpm:D2LPM",
        "least-loaded": "tenfold.scheduling.routing.least_loaded:LeastLoaded",
        "preble-like": "tenfold.scheduling.routing.preble:PrebleLike",
        "round-robin": "tenfold.scheduling.routing.round_robin:RoundRobin",
    },
)
