"""Whether there is memory for what a step computes, beside weights, keys and values.

Knows nothing of where that memory lies; ``engine.scratch`` does.
"""

from __future__ import annotations

from typing import Protocol


class StepMemory(Protocol):
    """Room for the results of a step with so many tokens and rows of logits."""

    def fits(self, tokens: int, rows: int) -> bool:
        """Whether a step may be so large at all."""
        ...

    def reserve(self, tokens: int, rows: int) -> bool:
        """Have memory for such a step. False: there are no free pages."""
        ...


class Boundless:
    """The ``StepMemory`` of steps whose results lie elsewhere, or are not computed."""

    def fits(self, tokens: int, rows: int) -> bool:
        return True

    def reserve(self, tokens: int, rows: int) -> bool:
        return True
