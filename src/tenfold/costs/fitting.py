"""Recursive least squares that forgets, shrugs off outliers, and keeps every coefficient >= 0.

Errors are relative, so short and long steps count alike. Forgetting is directional (Kulhavý 1987;
Cao and Schwartz 2000): an observation ages only what it speaks about, so a long run of one kind of
step does not wear away what another kind taught. Knows no units: coefficients are multiples of a
prior, 1 each at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from operator import mul

Row = list[float]


class RecursiveFit:
    """Finds c >= 0 with rows · c = measured, weighing recent observations more.

    ``prior_weight``: how firmly the start (all ones) is believed, in observations of steps that one
    coefficient makes up alone. ``memory``: an observation's weight falls to 1/e after so many more
    in just its direction. ``clip``: a residual counts as at most so many typical ones.
    """

    def __init__(
        self, size: int, *, prior_weight: float = 1e-3, memory: float = 30.0, clip: float = 2.0
    ) -> None:
        # A handful of numbers: plain Python lists are quicker here than calls on arrays of five.
        self._information = [
            [prior_weight if i == j else 0.0 for j in range(size)] for i in range(size)
        ]
        self._free: Row = [1.0] * size
        self._found: Row = [1.0] * size
        self._forget = 1.0 / memory
        self._clip = clip
        self.variance = 0.25
        """Mean square of the relative residuals, clipped."""

    def observe(self, row: Sequence[float], measured: float) -> None:
        """``row`` · coefficients was ``measured`` (> 0)."""
        if not any(row):
            return
        # By the larger of both, so that neither a stall nor a step cut short has much to say.
        size = max(measured, dot(row, self._free))
        x = [value / size for value in row]
        residual = measured / size - dot(x, self._free)
        scale = self.variance**0.5
        weight = min(1.0, self._clip * scale / max(abs(residual), 1e-12))
        aged = [dot(line, x) for line in self._information]
        forget = self._forget * weight / dot(x, aged)
        # Both triangles get the very same sums, so the matrix stays symmetric to the last bit.
        for i, line in enumerate(self._information):
            for j in range(len(line)):
                line[j] += weight * (x[i] * x[j]) - forget * (aged[i] * aged[j])
        change = _solve(self._information, x)
        for i, value in enumerate(change):
            self._free[i] += value * weight * residual
        # A few large residuals change the scale little; many of them are the new normal.
        clipped = min(residual * residual, 9 * self.variance)
        self.variance = max(1e-4, self.variance + 0.05 * (clipped - self.variance))

    def coefficients(self) -> list[float]:
        """The non-negative coefficients closest to the free fit, in the metric of what is known."""
        if min(self._free) >= 0:
            self._found = list(self._free)
            return list(self._found)
        # Coordinate descent from the last answer, which is seldom far from this one.
        rows, found = self._information, self._found
        target = [dot(row, self._free) for row in rows]
        for _ in range(200):
            moved = 0.0
            for i, row in enumerate(rows):
                value = max(0.0, found[i] + (target[i] - dot(row, found)) / row[i])
                moved = max(moved, abs(value - found[i]) - 1e-4 * abs(found[i]))
                found[i] = value
            if moved <= 1e-9:
                break
        return list(found)


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """The sum of products, in order; what the longer one has beyond the shorter does not count."""
    return float(sum(map(mul, a, b)))


def _solve(matrix: list[Row], right: Row) -> Row:
    """``matrix``⁻¹ · ``right`` for a symmetric positive definite matrix (Cholesky)."""
    size = len(right)
    lower: list[Row] = []
    y: Row = []
    for i in range(size):
        line: Row = []
        for j in range(i):
            line.append((matrix[i][j] - dot(line, lower[j])) / lower[j][j])
        y.append(0.0)
        line.append(sqrt(max(matrix[i][i] - dot(line, line), 1e-300)))
        y[i] = (right[i] - dot(line[:i], y)) / line[i]
        lower.append(line)
    for i in reversed(range(size)):
        y[i] /= lower[i][i]
        for j in range(i):
            y[j] -= lower[i][j] * y[i]
    return y
