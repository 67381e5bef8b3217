"""First come, first served, within a priority class. Knows neither clients nor caches."""

from __future__ import annotations

from tenfold.scheduling.base import PolicySetup
from tenfold.scheduling.queue import QueuePolicy


class FCFS(QueuePolicy):
    """Arrival order. The first that does not fit holds up the rest: nobody starves in a class."""

    blocking = True

    def __init__(self, setup: PolicySetup | None = None) -> None:
        super().__init__()
