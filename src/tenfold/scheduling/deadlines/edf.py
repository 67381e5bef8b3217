"""Earliest deadline first, whatever that makes late: best while all can be on time, then worst."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from tenfold.scheduling.deadlines.base import Job, Room, Split


class EarliestDeadline:
    """Nothing is dropped; jobs that are never due come after those that are."""

    overtakes = True

    def split(self, jobs: Sequence[Job], room: Room) -> Split:
        due = [job for job in jobs if job.due < inf]
        due.sort(key=lambda job: (job.due, job.arrival, job.order))
        return Split(due, [job for job in jobs if job.due == inf])
