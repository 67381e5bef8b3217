"""What clients were given on one device, and the counters by which policies share it.

One object a device: the policies of all its models charge the same accounts, so a client that asks
four models gets one share. Does not know which policy reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tenfold.core.settings import ScheduleSettings, Share
from tenfold.scheduling.counters import Counters
from tenfold.scheduling.deficits import Deficits


@dataclass(slots=True)
class Served:
    """What a client was given since the device began. ``service`` counts what was computed for it,
    ``asked`` every prompt token, cached or not; both weighted."""

    service: float = 0.0
    asked: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    last_seen: float = 0.0


class Accounts:
    """The books of one device. One thread."""

    def __init__(self, settings: ScheduleSettings | None = None) -> None:
        self.settings = settings or ScheduleSettings()
        self.served: dict[str, Served] = {}
        self.deficits = self._deficits()
        self.counters = Counters()
        self._shares: list[Share] = []
        self._own: list[Accounts] = []

    def _deficits(self) -> Deficits:
        settings = self.settings
        return Deficits(settings.quantum, forget_debt=settings.idle_debt == "forget")

    def of_model(self) -> Accounts:
        """The accounts for a model's policy: these, or (``accounts`` = "model") some of its own."""
        if self.settings.accounts == "device":
            return self
        own = Accounts(self.settings)
        own.set_shares(self._shares)
        self._own.append(own)
        return own

    def set_shares(self, shares: Iterable[Share]) -> None:
        """Weights and groups from now on. Raises ValueError, with nothing changed, for a tree that
        is none."""
        self._shares = list(shares)
        self.deficits.set_shares(self._shares)
        self.counters.set_shares(self._shares)
        for own in self._own:
            own.set_shares(self._shares)
