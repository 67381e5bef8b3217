"""The residency policies by name: ours and what it is compared with."""

from __future__ import annotations

from typing import Final

from tenfold.core.registry import Registry
from tenfold.scheduling.residency.base import PolicyFactory

residency_policies: Final[Registry[PolicyFactory]] = Registry(
    "residency mode",
    {
        "cold": "tenfold.scheduling.residency.ttl:Cold",
        "elastic": "tenfold.scheduling.residency.elastic:Elastic",
        "quota": "tenfold.scheduling.residency.quota:Quota",
        "static": "tenfold.scheduling.residency.static:Static",
        "swap": "tenfold.scheduling.residency.swap:Swap",
        "ttl": "tenfold.scheduling.residency.ttl:KeepAlive",
    },
)
