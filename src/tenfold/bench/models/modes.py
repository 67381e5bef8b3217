"""Who competes: ways of sharing a device's memory, each with the order of service that it has where
it comes from.

The traces of this benchmark run ``FASTER`` times as fast as the published ones, so every time that
a policy waits for is divided by it, for all of them alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from tenfold.core.errors import ConfigError
from tenfold.core.settings import DeadlineSettings, MemoryMode, ResidencySettings

FASTER = 6.0


@dataclass(slots=True, frozen=True)
class Mode:
    """``about``: what it is like."""

    name: str
    memory: MemoryMode
    order: Literal["mh", "edf", "fifo"]
    about: str

    def residency(self, **changes: Any) -> ResidencySettings:
        plain = ResidencySettings()
        settings = replace(
            plain,
            mode=self.memory,
            idle_seconds=plain.idle_seconds / FASTER,
            min_seconds=plain.min_seconds / FASTER,
            keep_alive=plain.keep_alive / FASTER,
            quota_seconds=plain.quota_seconds / FASTER,
            turn_seconds=plain.turn_seconds / FASTER,
        )
        return replace(settings, **changes)

    def deadlines(self, **changes: Any) -> DeadlineSettings:
        return replace(DeadlineSettings(order=self.order), **changes)


ELASTIC = "elastic"

MODES = {
    one.name: one
    for one in (
        Mode(ELASTIC, "elastic", "mh", "ours: memory flows, Moore-Hodgson over all models"),
        Mode("static", "static", "fifo", "a fixed split"),
        Mode("quota", "quota", "fifo", "shared keys and values by quota, weights stay (MuxServe)"),
        Mode("swap", "swap", "edf", "one model at a time, by deadline (QLM)"),
        Mode("ttl", "ttl", "fifo", "least recently used goes, or after a time (Ollama)"),
        Mode("cold", "cold", "fifo", "loaded from disk when asked for (ServerlessLLM)"),
        Mode("elastic, fifo", "elastic", "fifo", "ours without Moore-Hodgson"),
        Mode("elastic, edf", "elastic", "edf", "ours with earliest deadline first"),
        Mode("static, mh", "static", "mh", "ours without elastic memory"),
        Mode("quota, mh", "quota", "mh", "quota with our order of service"),
        Mode("swap, mh", "swap", "mh", "swap with our order of service"),
    )
}

BASELINES = {"A": ("static", "quota"), "B": ("swap", "ttl", "cold")}
"""By budget. In B the weights of all models never fit: static and quota are shown as that."""

COMPETING = {
    "A": (ELASTIC, *BASELINES["A"]),
    "B": (ELASTIC, *BASELINES["B"], "static", "quota"),
}


def chosen(names: Iterable[str]) -> list[Mode]:
    """By name. Raises ConfigError for one that is nobody's."""
    found = []
    for name in names:
        if name not in MODES:
            raise ConfigError(f"no mode is named {name!r}; there are: {'; '.join(MODES)}")
        found.append(MODES[name])
    return found
