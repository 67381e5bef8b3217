"""Moore-Hodgson: as many jobs on time as one machine can have (Moore 1968; Prism, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf

from tenfold.scheduling.deadlines.base import Job, Room, Split


class MooreHodgson:
    """Jobs are added as they fall due; whenever one would be late, the longest so far is dropped.
    Jobs that are never due are left over, too.

    No other order has more on time, if estimates hold and all models are ready. A model that is
    still waking delays only its own jobs, for which the count is no longer proven the largest: that
    problem is NP-hard. Takes n log n.
    """

    overtakes = True

    def split(self, jobs: Sequence[Job], room: Room) -> Split:
        rows = sorted(
            (room(job), job.arrival, job.order, at) for at, job in enumerate(jobs) if job.due < inf
        )
        clock = 0.0
        longest: list[tuple[float, int]] = []
        dropped: set[int] = set()
        for at, (allowed, _, _, which) in enumerate(rows):
            clock += jobs[which].seconds
            heappush(longest, (-jobs[which].seconds, -at))
            if clock > allowed:
                seconds, place = heappop(longest)
                clock += seconds
                dropped.add(-place)
        on_time = [jobs[row[3]] for at, row in enumerate(rows) if at not in dropped]
        never = [job for job in jobs if job.due == inf]
        return Split(on_time, [jobs[rows[at][3]] for at in sorted(dropped)] + never)
