"""Models that come when they are asked for and stay for a while, as Ollama does it; cold starts.

A model gets a fixed part of memory for keys and values while it is awake. Where there is no room
for one more, those without requests go, the one used longest ago first; one with requests never
does. Ollama takes the victim with the shortest keep-alive and, among equals, by name; least
recently used is the kinder rule, and what its users take it for. *Cold starts* are the same with
models that leave the host's memory as well, as serverless systems have it.
"""

from __future__ import annotations

from math import inf
from typing import Literal

from tenfold.core.settings import ResidencySettings
from tenfold.scheduling.residency.base import (
    Action,
    DeviceView,
    ModelView,
    SetLimit,
    Sleep,
    Wake,
)

PART = 0.08
"""Of a device's pages: what an awake model gets for keys and values."""


class KeepAlive:
    """Implements ``base.ResidencyPolicy``."""

    to: Literal["host", "cold"] = "host"

    def __init__(self, settings: ResidencySettings) -> None:
        self._keep = settings.keep_alive

    def fits(self, device: DeviceView, model: ModelView) -> str:
        if self._pages(device, model) <= device.capacity:
            return ""
        return (
            f"its weights take {model.weight_pages} pages, with its part for keys and values "
            f"{self._pages(device, model)} of {device.capacity}"
        )

    def decide(self, device: DeviceView) -> list[Action]:
        models = list(device.models.values())
        found: list[Action] = []
        awake = {one.name: one for one in models if one.awake}
        for one in models:
            if self._may_sleep(one) and device.now - one.last_used >= self._stay(one):
                found.append(Sleep(one.name, f"no request for {self._stay(one):g} s", self.to))
                del awake[one.name]
        for one in sorted(models, key=lambda one: (one.oldest, one.name)):
            if one.wants:
                found += self._wake(device, one, awake)
        for one in awake.values():
            pages = self._pages(device, one)
            if one.cap != pages:
                found.append(SetLimit(one.name, pages, "its weights and a fixed part"))
        return found

    def _wake(
        self, device: DeviceView, model: ModelView, awake: dict[str, ModelView]
    ) -> list[Action]:
        """With as many others put to sleep as it takes; nothing where that is not enough."""
        room = device.capacity - sum(self._pages(device, one) for one in awake.values())
        idle = sorted(filter(self._may_sleep, awake.values()), key=lambda one: one.last_used)
        found: list[Action] = []
        while room < self._pages(device, model):
            if not idle:
                return []
            victim = idle.pop(0)
            room += self._pages(device, victim)
            found.append(
                Sleep(victim.name, f"used longest ago, and {model.name} wants in", self.to)
            )
        for action in found:
            del awake[action.model]
        awake[model.name] = model
        return [*found, Wake(model.name, f"{model.waiting} requests wait")]

    def _may_sleep(self, one: ModelView) -> bool:
        return one.state == "resident" and not (one.busy or one.pinned or one.asked)

    def _stay(self, one: ModelView) -> float:
        return self._keep if one.ttl is None else one.ttl

    def _pages(self, device: DeviceView, model: ModelView) -> int:
        part = max(1, int(PART * device.capacity))
        if model.limit_pages is not None:
            part = min(part, model.limit_pages)
        return model.weight_pages + part

    def look_again(self, device: DeviceView) -> float:
        ends = [
            one.last_used + self._stay(one)
            for one in device.models.values()
            if self._may_sleep(one)
        ]
        return min(ends, default=inf)


class Cold(KeepAlive):
    """Implements ``base.ResidencyPolicy``."""

    to: Literal["host", "cold"] = "cold"
