"""Token rates over a window, from counters that only grow.

A counter that shrinks was begun anew (its worker died) and counts from nothing. Knows no clock:
every reading brings its time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Series:
    """``total``: all that was counted; ``seen``: (time, total) of the readings in the window."""

    counter: int = 0
    total: int = 0
    seen: deque[tuple[float, int]] = field(default_factory=deque)

    def read(self, counter: int, now: float, oldest: float) -> None:
        if not self.seen:
            self.seen.append((now, 0))
        self.total += counter - self.counter if counter >= self.counter else counter
        self.counter = counter
        if len(self.seen) > 1 and self.seen[-1][0] == now:
            self.seen.pop()
        self.seen.append((now, self.total))
        self.drop_old(oldest)

    def drop_old(self, oldest: float) -> None:
        """Readings before the last one that is no younger."""
        while len(self.seen) > 1 and self.seen[1][0] <= oldest:
            self.seen.popleft()

    def since(self, start: float) -> float:
        """What was counted since; between two readings it is taken to grow evenly."""
        self.drop_old(start)
        began, base = self.seen[0]
        if began > start:
            return self.total - base
        if len(self.seen) == 1:
            return 0.0
        end, upto = self.seen[1]
        return self.total - base - (upto - base) * (start - began) / (end - began)


class Rates:
    """Of each model at each place, over the last ``window`` seconds."""

    def __init__(self, window: float) -> None:
        self.window = window
        self._series: dict[str, dict[str, _Series]] = {}
        self._first: float | None = None

    def read(self, model: str, place: str, counter: int, now: float) -> None:
        """A counter's value; the first one at a place has grown from 0."""
        if self._first is None:
            self._first = now
        series = self._series.setdefault(model, {}).setdefault(place, _Series())
        series.read(counter, now, now - self.window)

    def rate(self, model: str, now: float, place: str | None = None) -> float:
        """Tokens a second at one place, or at all together. Less than a window after the first
        reading of all it is taken over what there is, but no less than a tenth of the window."""
        if self._first is None:
            return 0.0
        start = now - self.window
        spread = max(now - max(self._first, start), self.window / 10)
        places = self._series.get(model, {})
        found = places.values() if place is None else [places[place]] if place in places else []
        return sum(series.since(start) for series in found) / spread

    def begin(self, model: str, place: str) -> None:
        """The model's counter at the place starts again from 0."""
        if (series := self._series.get(model, {}).get(place)) is not None:
            series.counter = 0

    def forget(self, model: str) -> None:
        self._series.pop(model, None)
