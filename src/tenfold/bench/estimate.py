"""A mean over seeds and how far it may be off. Knows nothing of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t, two-sided, 95 %, by the number of values; of more, nearly 1.96 + 2.5 / (n - 1)."""


class Estimate(NamedTuple):
    """A mean and the half-width of its 95 % interval (0 with one value)."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        mean = sum(values) / len(values)
        if len(values) < 2:
            return cls(mean, 0.0)
        spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        t = STUDENT.get(len(values), 1.96 + 2.5 / (len(values) - 1))
        return cls(mean, t * sqrt(spread / len(values)))
