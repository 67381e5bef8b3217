"""What was decided about a device's memory, each with its reason: the latest, and how many."""

from __future__ import annotations

from collections import Counter, deque

from tenfold.core.clock import Clock
from tenfold.core.messages import Decision
from tenfold.core.settings import Rung

MOST_DECISIONS = 1000


class DecisionLog:
    """``decided``: how many there were of each kind."""

    def __init__(self, clock: Clock) -> None:
        self.decided: Counter[str] = Counter()
        self._latest: deque[Decision] = deque(maxlen=MOST_DECISIONS)
        self._clock = clock

    def add(self, kind: str, model: str, why: str, pages: int = 0, seconds: float = 0.0) -> None:
        self._latest.append(Decision(self._clock.now(), kind, model, why, pages, seconds))
        self.decided[kind] += 1

    def note(self, rung: Rung, model: str, why: str, pages: int) -> None:
        """A rung that was climbed page by page is one decision a second."""
        last = self._latest[-1] if self._latest else None
        now = self._clock.now()
        if last is not None and (last.kind, last.model) == (rung, model) and now - last.at < 1.0:
            last.pages += pages
        else:
            self.add(rung, model, why, pages)

    def latest(self, most: int) -> list[Decision]:
        """The latest decisions, newest first."""
        return list(self._latest)[::-1][:most]
