"""The seam of deadline orders: which first tokens can be on time, and who comes first among them.

One queue for all models of a device ("Prism", arXiv 2505.04021, section 6.2). A job is what is left
of one prompt; an order splits jobs into those that will be on time and the rest. Does not know
clients, steps or memory: whoever lists the jobs has left out those that may not run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple, Protocol


@dataclass(slots=True, eq=False)
class Job:
    """One first token to come. Times are seconds of the device's clock.

    ``seconds``: e_i, what the device needs until it is there, the margin included. ``due``: d_i,
    infinity for none. ``overdue_at``: from then on it goes before the others. ``ready``: when its
    model can run (weights on their way). Smaller ``priority`` runs first; ``order`` numbers
    arrivals of the device.
    """

    id: str
    model: str
    arrival: float
    seconds: float
    due: float = inf
    overdue_at: float = inf
    ready: float = -inf
    priority: int = 0
    order: int = 0


Room = Callable[[Job], float]
"""Seconds of work, its own included, that may be done by the time a job is due. The later it is
due, the more; below 0 for a job that cannot be on time at all."""


class Split(NamedTuple):
    """``on_time`` in the order in which they run; ``rest`` in none."""

    on_time: list[Job]
    rest: list[Job]


class Order(Protocol):
    """Chooses among the jobs of one priority."""

    overtakes: bool
    """Whether a job may wait while later ones run, so that it must have its turn some time."""

    def split(self, jobs: Sequence[Job], room: Room) -> Split:
        """Every job in one of the two lists."""
        ...


@dataclass(slots=True)
class Schedule:
    """Jobs in the order in which they run: ``on_time``, then ``late`` (those that cannot be, or
    would make too many others late, and those without a target), oldest first. ``overdue`` have
    waited too long, and take turns with the others."""

    overdue: list[Job] = field(default_factory=list)
    on_time: list[Job] = field(default_factory=list)
    late: list[Job] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.overdue) + len(self.on_time) + len(self.late)


def age(job: Job) -> tuple[int, float, int]:
    """Oldest first, in its class of priority."""
    return job.priority, job.arrival, job.order
