"""How much better a placement must promise to be before anything moves.

Rates are noisy, so some other placement looks a little better at nearly every look; moving for that
costs loads and gains nothing. Knows no models and no devices.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean, pstdev

FLOOR = 0.10
"""Less than this part of the highest pressure is never worth a move."""

MOST_LOOKS = 60
"""Of which improvements are remembered."""

LASTING = 12
"""Looks for which an improvement must have held to be taken for more than noise."""


class Threshold:
    """``fixed`` above 0: always that. Else learnt: mean + 2 sigma of the improvements that were
    offered and not taken, at least ``FLOOR``.

    Learnt alone, that would never take an offer that comes slowly and then stays, because what it
    is measured against is itself. So one that has held for ``LASTING`` looks, its mean more than 2
    sigma above the floor, is taken at the floor.
    """

    def __init__(self, fixed: float = 0.0) -> None:
        self.fixed = fixed
        self._seen: deque[float] = deque(maxlen=MOST_LOOKS)
        self._since = 0

    def value(self) -> float:
        """The part by which the highest pressure must fall for a move now."""
        if self.fixed > 0:
            return self.fixed
        if len(self._seen) < 2:
            return FLOOR
        lasting = list(self._seen)[-LASTING:]
        if self._since >= LASTING and fmean(lasting) - 2 * pstdev(lasting) > FLOOR:
            return FLOOR
        return max(FLOOR, fmean(self._seen) + 2 * pstdev(self._seen))

    def passed_over(self, offered: float) -> None:
        """A look whose offer was not taken."""
        self._seen.append(max(0.0, offered))
        self._since += 1

    def taken(self) -> None:
        """Something moved: what is offered from now on is about another placement."""
        self._since = 0
