"""The policies by name. Adding one is a file and a line here; none is imported until asked for."""

from __future__ import annotations

from typing import Final

from tenfold.core.registry import Registry
from tenfold.scheduling.base import PolicyFactory

policies: Final[Registry[PolicyFactory]] = Registry(
    "scheduling policy",
    {
        "fcfs": "tenfold.scheduling.fcfs:FCFS",
        "lpm": "tenfold.scheduling.lpm:LPM",
    },
)
