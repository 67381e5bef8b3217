"""Oldest first, whichever model it is for. A device whose order is "fifo" does not ask this one:
its models take turns. It is what the other orders are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.scheduling.deadlines.base import Job, Room, Split, age


class OldestFirst:
    """Targets are not looked at."""

    overtakes = False

    def split(self, jobs: Sequence[Job], room: Room) -> Split:
        return Split(sorted(jobs, key=age), [])
