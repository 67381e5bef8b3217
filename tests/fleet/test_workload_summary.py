"""Numbers of a run, against ones counted by hand or by brute force."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from tenfold.core.settings import ScheduleSettings
from tenfold.fleet.simulator.drift import Limits, worst_drift
from tenfold.fleet.workloads.outcome import Outcome, ProgramOutcome, Run, Spread
from tenfold.fleet.workloads.summary import series, summarise
from tenfold.scheduling.fair_shares import jain


def outcome(
    client: str, at: float, first: float, last: float, prompt: int, output: int, **more: object
) -> Outcome:
    values = {"started": at, "finished": True, **more}
    made = Outcome(f"{client}{at}", client, client, at, prompt)
    made.first, made.last, made.output_tokens = first, last, output
    for name, value in values.items():
        setattr(made, name, value)
    return made


def test_service_flows_evenly_from_the_first_token_to_the_last() -> None:
    run = Run(10.0, [outcome("a", 0.0, 2.0, 6.0, 100, 40)])
    line = series(run, bins=10)
    assert line.service["a"].tolist() == pytest.approx([0, 100, 20, 20, 20, 20, 0, 0, 0, 0])
    assert line.busy["a"].tolist() == [True] * 6 + [False] * 4


def test_service_over_time_against_brute_force() -> None:
    rng = random.Random(3)
    calls = []
    for _ in range(60):
        at = rng.uniform(0, 9)
        first = at + rng.uniform(0, 1)
        last = first + rng.choice((0.0, rng.uniform(0, 2)))
        calls.append(
            outcome(rng.choice("ab"), at, first, last, rng.randrange(90), rng.randrange(9))
        )
    run = Run(10.0, calls)
    line = series(run, warm_up=1.0, bins=7)
    edges = np.linspace(1, 10, 8)

    def until(client: str, t: float) -> float:
        total = 0.0
        for one in calls:
            if one.client == client and one.first <= t:
                part = 1.0 if t >= one.last else (t - one.first) / (one.last - one.first)
                total += one.prompt_tokens + 2 * one.output_tokens * part
        return total

    for client in "ab":
        wanted = np.diff([until(client, t) for t in edges])
        assert line.service[client] == pytest.approx(wanted)


def test_only_the_time_in_which_everybody_is_busy_is_contended() -> None:
    a = [outcome("a", 0.0, 1.0, 5.0, 10, 50), outcome("a", 5.0, 5.1, 10.0, 10, 50)]
    b = [outcome("b", 4.0, 4.1, 8.0, 20, 10)]
    total = summarise(Run(10.0, a + b))
    assert total.contended_seconds == pytest.approx(4.0, abs=0.2)
    assert total.clients["b"].contended_service == pytest.approx(40, abs=3)
    assert total.clients["a"].contended_service == pytest.approx(25 + 10 + 60, abs=3)
    shares = [one.contended_service for one in total.clients.values()]
    assert total.jain == pytest.approx(jain(shares))


def test_what_is_computed_may_be_even_where_service_is_not() -> None:
    a = outcome("a", 0.0, 1.0, 10.0, 200, 20, cached_tokens=150)
    b = outcome("b", 0.0, 1.0, 10.0, 50, 20)
    total = summarise(Run(10.0, [a, b]))
    assert total.clients["a"].contended_computed == pytest.approx(50 + 40)
    assert total.computed_jain == pytest.approx(1.0)
    assert total.jain == pytest.approx(330**2 / (2 * (240**2 + 90**2)))
    alone = summarise(Run(10.0, [a]))
    assert alone.jain == alone.computed_jain == 1.0


def test_a_summary_counts_what_came_after_the_warm_up() -> None:
    calls = [
        outcome("a", 0.0, 1.0, 2.0, 100, 10, cached_tokens=50),
        outcome("a", 5.0, 6.0, 9.0, 100, 10, cached_tokens=80),
        outcome("a", 9.5, -1.0, -1.0, 100, 0, finished=False, error="overloaded"),
    ]
    programs = [ProgramOutcome("a", "a", 5.0, 9.0)]
    total = summarise(Run(10.0, calls, programs), warm_up=4.0)
    assert (total.requests, total.finished, total.failed) == (2, 1, 1)
    assert total.hit_rate == 0.8 and total.ttft.p50 == 1.0 and total.latency.p50 == 4.0
    assert total.program_latency == Spread(1, 4.0, 4.0, 4.0, 4.0, 4.0)
    assert total.clients["a"].service == pytest.approx(120)
    assert total.clients["a"].computed == pytest.approx(40)
    assert total.request_rate == pytest.approx(1 / 6)


def test_the_widest_gap_is_found_while_both_wait() -> None:
    """a is served 100 of prompt while b waits; what it gets while b has nothing does not count."""
    calls = [
        outcome("a", 0.0, 1.0, 2.0, 500, 10, started=0.5),
        outcome("a", 3.0, 7.0, 8.0, 100, 10, started=6.0),
        outcome("a", 4.0, 12.0, 12.0, 30, 1, started=11.0),
        outcome("b", 5.0, 11.0, 11.0, 70, 1, started=10.0),
    ]
    schedule = ScheduleSettings(policy="dlpm", quantum=50.0)
    limits = Limits(schedule, max_running=2, memory_tokens=1000)
    found = worst_drift("w", calls, limits, {}, end=20.0)
    assert found.clients == ("a", "b") and found.gap == pytest.approx(120.0)
    assert found.bound == 2 * (500 + 2 * 2 * 10 + 50)
    assert worst_drift("w", calls, limits, {"a": 2.0}, 20.0).gap == pytest.approx(60.0)


def test_a_client_whose_last_waiting_request_began_waits_anew() -> None:
    """b's next call comes as its first one begins: in between a may be given what it likes."""
    calls = [
        outcome("a", 0.0, 3.0, 3.0, 100, 1, started=2.0),
        outcome("a", 0.0, 6.0, 6.0, 100, 1, started=5.0),
        outcome("a", 0.0, 9.0, 9.0, 10, 1, started=9.0),
        outcome("b", 0.0, 5.0, 5.0, 10, 1, started=4.0),
        outcome("b", 4.0, 9.0, 9.0, 10, 1, started=8.0),
    ]
    limits = Limits(ScheduleSettings(policy="dlpm", quantum=50.0), 2, 1000)
    assert worst_drift("w", calls, limits, {}, 20.0).gap == pytest.approx(102.0, abs=0.1)
    calls[4].at = 3.9  # it was there in time: both have waited all along
    assert worst_drift("w", calls, limits, {}, 20.0).gap > 190.0
    slow = replace(limits, transit=0.2)  # it was sent in time, and came too late
    assert worst_drift("w", calls, slow, {}, 20.0).gap == pytest.approx(102.0, abs=0.1)


def test_over_several_workers_only_clients_that_wait_at_all_of_them_are_compared() -> None:
    def waits(client: str, worker: str, until: float, prompt: int) -> Outcome:
        return outcome(client, 0.0, until + 1, until + 1, prompt, 1, started=until, worker=worker)

    limits = Limits(ScheduleSettings(policy="dlpm", quantum=50.0), 2, 1000, workers=2)
    calls = [waits("a", "v", 4.0, 100), waits("a", "w", 9.0, 10), waits("b", "v", 9.0, 10)]
    assert worst_drift("all", calls, limits, {}, 20.0).gap == 0.0
    calls.append(waits("b", "w", 6.0, 70))  # both wait at both until 4, where a gets its 100
    assert worst_drift("all", calls, limits, {}, 20.0).gap == pytest.approx(0.0, abs=1e-3)
    calls.append(waits("a", "v", 5.0, 70))
    assert worst_drift("all", calls, limits, {}, 20.0).gap == pytest.approx(100.0)
