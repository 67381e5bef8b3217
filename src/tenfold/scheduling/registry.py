"""The policies by name: where the config's choices and the command line's come from."""

from __future__ import annotations

from collections.abc import Callable

from tenfold.core.registry import Registry
from tenfold.scheduling.base import Policy


def policies() -> Registry[Callable[..., Policy]]:
    """Each takes the index of matches: ``policies().get("lpm")(matches)``."""
    return Registry(
        "scheduling policy",
        {"fcfs": "tenfold.scheduling.fcfs:Fcfs", "lpm": "tenfold.scheduling.lpm:Lpm"},
    )
