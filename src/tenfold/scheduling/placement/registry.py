"""The placement policies by name. Adding one is a file and a line here; none is imported until
asked for."""

from __future__ import annotations

from typing import Final

from tenfold.core.registry import Registry
from tenfold.scheduling.placement.base import PlacementFactory

placement_policies: Final[Registry[PlacementFactory]] = Registry(
    "placement policy",
    {
        "balanced": "tenfold.scheduling.placement.balanced:Balanced",
        "paper": "tenfold.scheduling.placement.paper:Paper",
        "static": "tenfold.scheduling.placement.static:Static",
    },
)
