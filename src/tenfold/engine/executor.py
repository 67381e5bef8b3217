"""The seam between deciding a step and computing it.

The scheduler side hands over a plan and gets chosen tokens back. A torch runner computes them on a
device; a simulated one makes them up and moves a virtual clock. Nothing above this line can tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tenfold.engine.sequence import Choice, StepPlan


@dataclass(slots=True)
class StepTime:
    """Where the last step's seconds went: inside operations, and choosing tokens. What is left of
    the step went between operations."""

    kernels: float = 0.0
    sampling: float = 0.0


class Executor(Protocol):
    """Runs steps of one model instance. One call at a time, from the engine's thread."""

    time: StepTime
    """Of the last ``execute``."""

    def prepare(self) -> None:
        """Once, before the first step: work that must not run beside other models' steps."""
        ...

    def execute(self, plan: StepPlan) -> list[Choice]:
        """One Choice for each slice that samples, in the plan's order.

        A Choice holds exactly the tokens that steps without drafts would choose one by one, as far
        as the slice's draft turns out to be their start, and one more.

        Keys and values of every token of the plan are in the cache on return. An exception means
        that nothing of the plan counts; the engine fails the plan's requests and goes on."""
        ...

    def forget(self, request_id: str) -> None:
        """The sequence ended; drop whatever was kept for it."""
        ...
