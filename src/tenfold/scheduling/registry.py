"""The policies by name. Adding one is a file and a line here; none is imported until asked for."""

from __future__ import annotations

from typing import Final

from tenfold.core.registry import Registry
from tenfold.scheduling.base import PolicyFactory

policies: Final[Registry[PolicyFactory]] = Registry(
    "scheduling policy",
    {
        "dlpm": "tenfold.scheduling.dlpm:DLPM",
        "fcfs": "tenfold.scheduling.fcfs:FCFS",
        "k-lpm": "tenfold.scheduling.klpm:KLPM",
        "lpm": "tenfold.scheduling.lpm:LPM",
        "vtc": "tenfold.scheduling.vtc:VTC",
    },
)
