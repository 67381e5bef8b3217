"""Shared keys and values under quotas, all weights awake: as MuxServe does it.

Quotas begin equal. From time to time the one that uses the least of its quota gives some of what it
does not use to the one that uses the most of its own (MuxServe, ADBS). No weights move.
"""

from __future__ import annotations

from tenfold.core.settings import ResidencySettings
from tenfold.scheduling.residency.base import Action, DeviceView, ModelView, SetLimit
from tenfold.scheduling.residency.static import LEAST_PART, Static

PART = 0.25
"""Of what the giver does not use, for each time that quotas are looked at."""

BUSY_USE = 0.8
"""A model that uses more of its quota than this is short of it."""


class Quota(Static):
    """Implements ``base.ResidencyPolicy``."""

    def __init__(self, settings: ResidencySettings) -> None:
        super().__init__(settings)
        self._every = settings.quota_seconds
        self._next = 0.0
        self._quotas: dict[str, int] = {}
        self._capacity = 0

    def decide(self, device: DeviceView) -> list[Action]:
        models = list(device.models.values())
        found: list[Action] = []
        found += (one for one in super().decide(device) if not isinstance(one, SetLimit))
        if self._quotas.keys() != device.models.keys() or device.capacity != self._capacity:
            self._quotas, self._capacity = self.parts(device, models), device.capacity
            self._next = device.now + self._every
            why = f"an equal quota, of {len(models)} models"
            return [*found, *(SetLimit(name, pages, why) for name, pages in self._quotas.items())]
        if device.now >= self._next:
            self._next = device.now + self._every
            found += self._follow(models)
        return found

    def _follow(self, models: list[ModelView]) -> list[Action]:
        """Move quota to where it is used most."""
        if len(models) < 2:
            return []
        giver, taker = min(models, key=self._use), max(models, key=self._use)
        spare = self._quota(giver) - giver.kv_pages + giver.cached_pages - LEAST_PART
        pages = int(PART * spare)
        if self._use(taker) < BUSY_USE or pages < 1 or taker.limit_pages is not None:
            return []
        self._quotas[giver.name] -= pages
        self._quotas[taker.name] += pages
        use = f"{taker.name} uses {self._use(taker):.0%} of its quota, {giver.name} "
        return [
            SetLimit(one.name, self._quotas[one.name], f"{use}{self._use(giver):.0%}")
            for one in (giver, taker)
        ]

    def _quota(self, model: ModelView) -> int:
        """For keys and values."""
        return self._quotas[model.name] - model.weight_pages

    def _use(self, model: ModelView) -> float:
        used = model.kv_pages - model.cached_pages + (model.waiting > 0) * LEAST_PART
        return used / max(1, self._quota(model))

    def look_again(self, device: DeviceView) -> float:
        return self._next
