"""One model at a time has the whole device, as QLM and other swapping servers do it.

The awake model goes on while it has requests; where others wait, it stops admitting after its turn,
runs out what it has, and the one whose oldest request waits longest comes next.
"""

from __future__ import annotations

from math import inf

from tenfold.core.settings import ResidencySettings
from tenfold.scheduling.residency.base import Action, DeviceView, Drain, ModelView, Sleep, Wake


class Swap:
    """Implements ``base.ResidencyPolicy``."""

    def __init__(self, settings: ResidencySettings) -> None:
        self.settings = settings

    def fits(self, device: DeviceView, model: ModelView) -> str:
        if model.weight_pages < device.capacity:
            return ""
        return f"its weights take {model.weight_pages} pages of {device.capacity}"

    def decide(self, device: DeviceView) -> list[Action]:
        awake = [one for one in device.models.values() if one.awake]
        wanted = [one for one in device.models.values() if one.wants]
        found: list[Action] = []
        extra = sorted(awake, key=lambda one: (one.busy, one.last_used))[:-1]
        for one in extra:
            if one.state == "resident" and not one.running:
                found.append(Sleep(one.name, "one model at a time"))
                awake.remove(one)
        if not wanted:  # those that waited are gone
            drained = [one.name for one in awake if one.draining is not None]
            return found + [Drain(name, False, "nobody waits any more") for name in drained]
        if len(awake) > 1:
            return found
        chosen = min(wanted, key=lambda one: (one.oldest, one.name))
        if awake:
            now = awake[0]
            if now.state != "resident":
                return found
            if now.busy and not self._over(device, now):
                return found
            if now.running:
                if now.draining is None:
                    found.append(Drain(now.name, True, f"its turn is over, {chosen.name} waits"))
                return found
            found.append(Sleep(now.name, f"{chosen.name} is next"))
        return [*found, Wake(chosen.name, "its oldest request waits longest")]

    def _over(self, device: DeviceView, model: ModelView) -> bool:
        return model.draining is not None or device.now >= model.since + self.settings.turn_seconds

    def look_again(self, device: DeviceView) -> float:
        if not any(one.wants for one in device.models.values()):
            return inf
        turn = self.settings.turn_seconds
        ends = [one.since + turn for one in device.models.values() if one.awake]
        return min((end for end in ends if end > device.now), default=inf)
