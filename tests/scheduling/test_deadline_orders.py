"""Orders of deadlines against every subset, the line of late requests, and estimates."""

from __future__ import annotations

from itertools import combinations
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.core.errors import ConfigError
from tenfold.core.settings import DeadlineSettings
from tenfold.costs.step import FixedStepModel, StepCosts, StepShape
from tenfold.scheduling.deadlines.base import Job
from tenfold.scheduling.deadlines.beat import Beat, Share, slack
from tenfold.scheduling.deadlines.line import Line
from tenfold.scheduling.deadlines.pace import Pace
from tenfold.scheduling.deadlines.registry import orders

NUMBERS = st.integers(1, 30).map(float)
JOBS = st.lists(st.tuples(NUMBERS, st.integers(1, 60).map(float)), min_size=1, max_size=8)


def jobs_of(rows: list[tuple[float, float]], **fields: float) -> list[Job]:
    return [
        Job(str(at), "m", float(at), seconds, due=due, order=at, **fields)  # type: ignore[arg-type]
        for at, (seconds, due) in enumerate(rows)
    ]


def line(order: str = "mh", **settings: float) -> Line:
    return Line(DeadlineSettings(order=order, **settings))  # type: ignore[arg-type]


def in_time(jobs: list[Job], now: float = 0.0) -> bool:
    clock = now
    for job in jobs:
        clock += job.seconds
        if max(clock, job.ready + job.seconds) > job.due:
            return False
    return True


def most_on_time(jobs: list[Job], now: float = 0.0) -> int:
    """By trying every subset: one is on time if it is so by its deadlines."""
    by_due = sorted(jobs, key=lambda job: job.due)
    for count in range(len(jobs), 0, -1):
        if any(in_time(list(some), now) for some in combinations(by_due, count)):
            return count
    return 0


@given(JOBS, st.integers(0, 20).map(float))
@settings(max_examples=400, deadline=None)
def test_as_many_are_on_time_as_in_any_order(rows: list[tuple[float, float]], now: float) -> None:
    jobs = jobs_of(rows)
    found = line().plan(jobs, now)
    assert in_time(found.on_time, now)
    assert len(found.on_time) == most_on_time(jobs, now)
    assert sorted(job.id for job in found.on_time + found.late) == [job.id for job in jobs]
    assert [job.arrival for job in found.late] == sorted(job.arrival for job in found.late)


@given(JOBS, st.lists(st.integers(0, 40), min_size=8, max_size=8))
@settings(max_examples=150, deadline=None)
def test_with_models_that_wake_nobody_is_promised_too_much(
    rows: list[tuple[float, float]], ready: list[int]
) -> None:
    """Not always the most any more; but what is called on time is, as models wake meanwhile."""
    jobs = jobs_of(rows)
    for job, at in zip(jobs, ready, strict=False):
        job.ready = float(at)
    found = line().plan(jobs, 0.0)
    assert in_time(found.on_time)
    assert all(job.ready + job.seconds <= job.due for job in found.on_time)


def test_a_model_that_wakes_makes_only_its_own_requests_late() -> None:
    awake = Job("a", "a", 0.0, 3.0, due=5.0)
    asleep = Job("b", "b", 0.0, 1.0, due=9.0, ready=8.5)
    found = line().plan([awake, asleep], 0.0)
    assert (found.on_time, found.late) == ([awake], [asleep])
    asleep.ready = 8.0
    assert line().plan([awake, asleep], 0.0).on_time == [awake, asleep]


def test_the_longest_is_dropped_not_the_last() -> None:
    jobs = jobs_of([(9.0, 10.0), (2.0, 11.0), (2.0, 12.0)])
    found = line().plan(jobs, 0.0)
    assert [job.id for job in found.on_time] == ["1", "2"]
    assert [job.id for job in line("edf").plan(jobs, 0.0).on_time] == ["0", "1", "2"]


def test_no_target_is_behind_all_that_can_be_on_time() -> None:
    free, late, good = (
        Job("free", "m", 1.0, 1.0),
        Job("late", "m", 0.0, 5.0, due=4.0),
        Job("good", "m", 2.0, 1.0, due=50.0),
    )

    def ids(order: str) -> list[str]:
        return [job.id for job in _planned(line(order), [free, late, good], 0.0)]

    assert ids("mh") == ["good", "late", "free"]
    assert ids("edf") == ["late", "good", "free"]
    assert ids("fifo") == ["late", "free", "good"]


def test_a_better_priority_is_served_before() -> None:
    first = Job("first", "m", 9.0, 6.0, due=7.0, priority=-1, order=2)
    other = Job("other", "m", 0.0, 1.0, due=2.0, order=1)
    found = line().plan([other, first], 0.0)
    assert [job.id for job in found.on_time] == ["first"] and found.late == [other]


def test_what_has_waited_too_long_takes_turns_with_the_others() -> None:
    old, new = Job("old", "m", 0.0, 4.0, due=1.0, overdue_at=10.0), Job("n", "m", 9.0, 4.0, due=20)
    one = line(overdue_share=0.25)
    assert [job.id for job in _planned(one, [old, new], 9.0)] == ["n", "old"]
    assert [job.id for job in _planned(one, [old, new], 10.0)] == ["old", "n"]
    one.spent(True, 1.0)
    assert [job.id for job in one.jobs()] == ["n", "old"]
    one.spent(False, 2.9)
    assert [job.id for job in one.jobs()] == ["n", "old"]
    one.spent(False, 0.2)
    assert [job.id for job in one.jobs()] == ["old", "n"]
    first = line(overdue_share=1.0)
    assert [job.id for job in _planned(first, [old, new], 10.0)] == ["old", "n"]
    first.spent(True, 100.0)
    assert [job.id for job in first.jobs()] == ["old", "n"]


def _planned(one: Line, jobs: list[Job], now: float) -> list[Job]:
    one.plan(jobs, now)
    return list(one.jobs())


def test_overdue_work_is_reckoned_with() -> None:
    """With half of the time for them, 4 seconds of overdue work make 3 others take 6."""
    half = {"overdue_share": 0.5}
    old = Job("old", "m", 0.0, 4.0, overdue_at=0.0)
    for due, on_time in ((6.0, True), (5.9, False)):
        new = Job("new", "m", 0.0, 3.0, due=due)
        assert (line(**half).plan([old, new], 0.0).on_time == [new]) is on_time
    assert line(**half).plan([old, Job("new", "m", 0.0, 5.0, due=9.0)], 0.0).on_time


class Machine:
    """One prompt at a time in steps of a second, as the line has it; requests arrive meanwhile."""

    def __init__(self, one: Line, max_wait: float) -> None:
        self.line = one
        self.max_wait = max_wait
        self.now = 0.0
        self.jobs: dict[str, Job] = {}
        self.done: dict[str, float] = {}
        self.met = 0
        self.bounds: dict[str, float] = {}

    def arrive(self, at: float, seconds: float, target: float) -> None:
        name = str(len(self.jobs) + len(self.done))
        overdue = at + self.max_wait * target
        self.jobs[name] = Job(name, "m", at, seconds, at + target, overdue, order=int(name))

    def step(self) -> None:
        self.line.plan(list(self.jobs.values()), self.now)
        self._bound()
        best = next(self.line.jobs())
        took = min(1.0, best.seconds)
        self.now += took
        self.line.spent(best.overdue_at <= self.now - took, took)
        best.seconds -= took
        if best.seconds <= 0:
            self.done[best.id] = self.now
            self.met += self.now <= best.due
            del self.jobs[best.id]

    def _bound(self) -> None:
        """The promise of the module, made at the moment when a job becomes overdue."""
        ahead = 0.0
        for job in self.line.schedule.overdue:
            ahead += job.seconds
            share = self.line._share
            self.bounds.setdefault(job.id, self.now + (ahead + 1.0) / share + 1.0)


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 7), st.integers(2, 12)),
        min_size=2,
        max_size=60,
    ),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.sampled_from(["mh", "edf"]),
)
@settings(max_examples=150, deadline=None)
def test_everybody_is_served_within_the_bound(
    rows: list[tuple[int, int, int]], share: float, order: str
) -> None:
    machine = Machine(line(order, overdue_share=share), max_wait=2.0)
    arrivals, at = [], 0.0
    for gap, seconds, target in rows:
        at += gap
        arrivals.append((at, float(seconds), float(target)))
    steps = 0
    while arrivals or machine.jobs:
        while arrivals and (arrivals[0][0] <= machine.now or not machine.jobs):
            machine.now = max(machine.now, arrivals[0][0])
            machine.arrive(*arrivals.pop(0))
        machine.step()
        steps += 1
        assert steps <= sum(seconds for _, seconds, _ in rows)  # every step does some work
    assert len(machine.done) == len(rows)
    for id, bound in machine.bounds.items():
        assert machine.done[id] <= bound


def test_late_requests_are_served_under_an_overload_that_does_not_end() -> None:
    """Short ones that can be on time keep coming, three for every two that can be served."""

    def run(share: float) -> tuple[int, float]:
        machine = Machine(line(overdue_share=share), max_wait=10.0)
        machine.arrive(0.0, 9.0, 3.0)
        for second in range(400):
            if second % 2 == 0:
                for _ in range(3):
                    machine.arrive(float(second), 1.0, 3.0)
            while machine.jobs and machine.now <= second:
                machine.step()
        return machine.met, machine.done.get("0", inf)

    met, first = run(0.5)
    assert 30.0 < first <= 30.0 + (9.0 + 1.0) / 0.5 + 1.0
    never, last = run(1e-9)
    assert never > met > 100 and last == inf


# --- estimates ----------------------------------------------------------------------------------
def test_prompts_in_one_step_share_its_fixed_part() -> None:
    pace = Pace(FixedStepModel(StepCosts(0.1, 0.001, 0.0, 0.0, 0.0, 0.0)))
    assert pace.prompts([(100, 0)], 1.1) == [pytest.approx(0.2)]
    assert sum(pace.prompts([(100, 0)] * 5, 1.1)) == pytest.approx(0.6)
    assert sum(pace.prompts([(100, 0)] * 20, 1.1)) == pytest.approx(2.2)
    [long] = pace.prompts([(3000, 0)], 1.1)
    assert long == pytest.approx(3.3)
    assert pace.prompts([], 1.0) == []


def test_cached_tokens_cost_attention_only() -> None:
    pace = Pace(FixedStepModel(StepCosts(0.1, 0.001, 0.0, 0.0, 1e-6, 0.0)))
    near, far = pace.prompts([(100, 0)], 1.1)[0], pace.prompts([(100, 1000)], 1.1)[0]
    assert far - near == pytest.approx(100 * 1000 * 1e-6)


def test_estimates_follow_what_steps_take() -> None:
    pace = Pace(FixedStepModel(StepCosts(0.1, 0.001, 0.0, 0.0, 0.0, 0.0)))
    pace.observe(StepShape(decode_rows=1), 0.1, 9.0)
    assert pace.error == 1.0 and pace.latest == 0
    for _ in range(40):
        pace.observe(StepShape(prefill_tokens=100), 0.2, 0.4)
    assert pace.error == pytest.approx(2.0, rel=0.01) and pace.latest == 100
    assert pace.prompts([(100, 0)], 1.1) == [pytest.approx(0.4, rel=0.01)]
    pace.observe(StepShape(prefill_tokens=100), 0.2, 200.0)
    assert pace.error < 2.5


def test_answers_leave_the_time_until_one_of_them_is_due() -> None:
    beats = [Beat("a", 1.0, 0.1), Beat("b", 1.05, 0.1), Beat("c", 9.0, 0.1)]
    assert slack(beats, 0.0) == pytest.approx(0.85)  # b after a
    assert slack(reversed(beats), 0.9) == pytest.approx(-0.05)
    assert slack([], 5.0) == inf


def test_prompts_keep_their_share() -> None:
    share = Share(0.25)
    assert not share.covers(0.1)
    share.waited(0.3)
    assert share.covers(0.099) and not share.covers(0.101)
    share.ran(5.0)
    assert not share.covers(0.01) and share.covers(0.0)


def test_an_unknown_order_is_refused() -> None:
    assert orders.names() == ["edf", "fifo", "mh"]
    with pytest.raises(ConfigError, match="unknown order of deadlines 'lifo'; choose from edf"):
        orders.get("lifo")
