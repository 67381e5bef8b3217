"""The line of first tokens on one device: who is on time, who runs late, and whose turn it is.

**Late requests.** A job that an order leaves out runs when no job that can be on time is there, the
oldest first. Once it has waited ``max_wait`` times its target it is *overdue*, and gets
``overdue_share`` of the time that prompts get, the overdue in the order in which they became so.
Something runs whenever there is a job, so nothing is put off for ever without work being done; and
at the moment t when a job becomes overdue, those ahead of it are fixed: whoever becomes overdue
before t was there before t. With A seconds of such work ahead of it, its own time e, and prompts
getting the part p of the device's time, it is done by

    t + (A + e) / (p · overdue_share) + one step,

if its client has credit and its memory is there all the while. Without a share below 1 an overload
that lasts would make everybody overdue and the order first-come: then nothing is on time.

A class of priority is served before the next. Does not know clients, steps or memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tenfold.core.settings import DeadlineSettings
from tenfold.scheduling.deadlines.base import Job, Order, Room, Schedule, age
from tenfold.scheduling.deadlines.registry import orders


class Line:
    """Jobs in order. One thread; ``plan`` is called anew whenever they have changed."""

    def __init__(self, settings: DeadlineSettings, order: Order | None = None) -> None:
        """``order``: in place of the one that the settings name."""
        self.order = order or orders.get(settings.order)()
        self.schedule = Schedule()
        self._share = settings.overdue_share
        self._given = 0.0
        """How much more than its share the overdue have had since one was there first."""

    def plan(self, jobs: Sequence[Job], now: float) -> Schedule:
        """Split and sort ``jobs``, all that there are."""
        overdue: list[Job] = []
        if self.order.overtakes:
            overdue = [job for job in jobs if job.overdue_at <= now]
        if overdue:
            waiting = [job for job in jobs if job.overdue_at > now]
            overdue.sort(key=lambda job: (job.overdue_at, job.order))
        else:
            waiting = list(jobs)
            self._given = 0.0
        found = self.schedule = Schedule(overdue)
        before = sum(job.seconds for job in overdue)
        ahead = 0.0
        for some in _by_priority(waiting):
            on_time, rest = self.order.split(some, self._room(now, before, ahead))
            found.on_time += on_time
            found.late += sorted(rest, key=age)
            ahead += sum(job.seconds for job in some)
        return found

    def _room(self, now: float, overdue: float, ahead: float) -> Room:
        """While there are ``overdue`` seconds of work, the others get what that leaves of the time;
        ``ahead`` of these jobs are those of better priority."""
        left = 1.0 - self._share

        def room(job: Job) -> float:
            if max(now, job.ready) + job.seconds > job.due:
                return -1.0
            spare = job.due - now
            return max(spare * left, spare - overdue) - ahead

        return room

    @property
    def overdue_first(self) -> bool:
        """Whether it is the turn of the overdue: they have not had their share yet."""
        return self._given <= 0.0 or not self.schedule.on_time

    def jobs(self) -> Iterator[Job]:
        """All jobs of the schedule, best first."""
        found = self.schedule
        if self.overdue_first:
            yield from found.overdue
            yield from found.on_time
        else:
            yield from found.on_time
            yield from found.overdue
        yield from found.late

    def spent(self, overdue: bool, seconds: float) -> None:
        """So much time went to an overdue job, or to another one. It counts while both wait."""
        if self.schedule.overdue and self.schedule.on_time:
            self._given += seconds * ((1.0 if overdue else 0.0) - self._share)


def _by_priority(jobs: list[Job]) -> Iterator[list[Job]]:
    classes = sorted({job.priority for job in jobs})
    for one in classes:
        yield [job for job in jobs if job.priority == one] if len(classes) > 1 else jobs
