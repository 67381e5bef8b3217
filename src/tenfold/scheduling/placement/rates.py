"""Token rates over a window, from counters that only grow.

A counter that shrinks was begun anew (its worker died, or the model was loaded again) and counts
from nothing. Knows no clock: every reading brings its time.
"""

from __future__ import annotations

from collections import deque


class Rates:
    """Sums of the counters of each name, whichever place they are read at, a second over the last
    ``window`` seconds."""

    def __init__(self, window: float) -> None:
        self.window = window
        self._last: dict[tuple[str, str], int] = {}
        self._total: dict[str, int] = {}
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def read(self, name: str, place: str, counter: int, now: float) -> None:
        """A counter's value. The first reading at a place is taken to have grown from 0, for what
        is new; where that is not so, read it once before it matters."""
        before = self._last.get((name, place), 0)
        self._last[name, place] = counter
        grown = counter - before if counter >= before else counter
        self._total[name] = self._total.get(name, 0) + grown
        seen = self._seen.setdefault(name, deque([(now, 0)]))
        if len(seen) > 1 and seen[-1][0] == now:
            seen.pop()
        seen.append((now, self._total[name]))
        self._drop_old(seen, now)

    def _drop_old(self, seen: deque[tuple[float, int]], now: float) -> None:
        """Readings before the last one that is no younger than the window."""
        while len(seen) > 1 and seen[1][0] <= now - self.window:
            seen.popleft()

    def rate(self, name: str, now: float) -> float:
        """Tokens a second; 0 for what was never read. Less than a window after the first reading it
        is taken over what there is, but not over less than a tenth of the window."""
        seen = self._seen.get(name)
        if seen is None:
            return 0.0
        self._drop_old(seen, now)
        (began, base), start = seen[0], now - self.window
        if began <= start and len(seen) > 1:  # between two readings it is taken to grow evenly
            end, upto = seen[1]
            base += round((upto - base) * (start - began) / (end - began))
        elif began <= start:
            base = self._total[name]
        return (self._total[name] - base) / max(now - max(began, start), self.window / 10)

    def forget(self, name: str) -> None:
        self._seen.pop(name, None)
        self._total.pop(name, None)
        for key in [key for key in self._last if key[0] == name]:
            del self._last[key]
