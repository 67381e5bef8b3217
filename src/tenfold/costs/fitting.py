"""Recursive least squares that forgets, shrugs off outliers, and keeps every coefficient >= 0.

Errors are relative, so short and long steps count alike. Forgetting is directional (Kulhavý 1987;
Cao and Schwartz 2000): an observation ages only what it speaks about, so a long run of one kind of
step does not wear away what another kind taught. Knows no units: coefficients are multiples of a
prior, 1 each at the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class RecursiveFit:
    """Finds c >= 0 with rows · c = measured, weighing recent observations more.

    ``prior_weight``: how firmly the start (all ones) is believed, in observations of steps that one
    coefficient makes up alone. ``memory``: an observation's weight falls to 1/e after so many more
    in just its direction. ``clip``: a residual counts as at most so many typical ones.
    """

    def __init__(
        self, size: int, *, prior_weight: float = 1e-3, memory: float = 30.0, clip: float = 2.0
    ) -> None:
        self._information: Array = np.eye(size) * prior_weight
        self._free: Array = np.ones(size)
        self._found: list[float] = [1.0] * size
        self._forget = 1.0 / memory
        self._clip = clip
        self.variance = 0.25
        """Mean square of the relative residuals, clipped."""

    def observe(self, row: Sequence[float], measured: float) -> None:
        """``row`` · coefficients was ``measured`` (> 0)."""
        x = np.asarray(row, dtype=np.float64)
        if not x.any():
            return
        # By the larger of both, so that neither a stall nor a step cut short has much to say.
        size = max(measured, float(x @ self._free))
        x /= size
        residual = measured / size - float(x @ self._free)
        scale = self.variance**0.5
        weight = min(1.0, self._clip * scale / max(abs(residual), 1e-12))
        aged = self._information @ x
        self._information -= self._forget * weight * np.outer(aged, aged) / float(x @ aged)
        self._information += weight * np.outer(x, x)
        self._information = (self._information + self._information.T) / 2
        self._free = self._free + np.linalg.solve(self._information, x) * (weight * residual)
        # A few large residuals change the scale little; many of them are the new normal.
        clipped = min(residual * residual, 9 * self.variance)
        self.variance = max(1e-4, self.variance + 0.05 * (clipped - self.variance))

    def coefficients(self) -> list[float]:
        """The non-negative coefficients closest to the free fit, in the metric of what is known."""
        free: list[float] = self._free.tolist()
        if min(free) >= 0:
            self._found = free
            return list(free)
        # A handful of numbers: plain Python is quicker here than array calls, and the last answer,
        # from where the search goes on, is seldom far from the next.
        rows: list[list[float]] = self._information.tolist()
        target: list[float] = (self._information @ self._free).tolist()
        found = [max(0.0, c) for c in self._found]
        for _ in range(200):
            moved = 0.0
            for i, row in enumerate(rows):
                rest = target[i] - sum(a * c for a, c in zip(row, found, strict=True))
                value = max(0.0, found[i] + rest / row[i])
                moved = max(moved, abs(value - found[i]) - 1e-4 * abs(found[i]))
                found[i] = value
            if moved <= 1e-9:
                break
        self._found = found
        return list(found)
