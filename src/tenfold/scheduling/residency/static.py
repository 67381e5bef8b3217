"""A static split: every model is always awake, with the same fixed part of what weights leave.

The oldest way to share a device, and the one that Prism calls static partition (section 7.1).
"""

from __future__ import annotations

from math import inf

from tenfold.core.settings import ResidencySettings
from tenfold.scheduling.residency.base import Action, DeviceView, ModelView, SetLimit, Wake

LEAST_PART = 2
"""Pages for keys and values below which a part is no use."""


class Static:
    """Implements ``base.ResidencyPolicy``."""

    def __init__(self, settings: ResidencySettings) -> None:
        """No setting matters here."""

    def fits(self, device: DeviceView, model: ModelView) -> str:
        others = [one for one in device.models.values() if one.name != model.name]
        weights = sum(one.weight_pages for one in others) + model.weight_pages
        part = (device.capacity - weights) // (len(others) + 1)
        if part >= LEAST_PART:
            return ""
        return (
            f"all models are awake at once: their weights take {weights} of {device.capacity} "
            f"pages, which leaves {max(0, part)} for each model's keys and values"
        )

    def decide(self, device: DeviceView) -> list[Action]:
        models = list(device.models.values())
        found: list[Action] = [
            Wake(one.name, "all models are awake")
            for one in models
            if not one.awake and not one.held
        ]
        for name, pages in self.parts(device, models).items():
            if device.models[name].cap != pages:
                found.append(SetLimit(name, pages, f"an equal part, of {len(models)} models"))
        return found

    def parts(self, device: DeviceView, models: list[ModelView]) -> dict[str, int]:
        """Pages of each model, weights included."""
        weights = sum(one.weight_pages for one in models)
        part = max(0, device.capacity - weights) // max(1, len(models))
        return {
            one.name: one.weight_pages
            + (part if one.limit_pages is None else min(part, one.limit_pages))
            for one in models
        }

    def look_again(self, device: DeviceView) -> float:
        return inf
