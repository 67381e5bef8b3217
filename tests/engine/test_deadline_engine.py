"""Targets through the engine: whose prompts come first, what late ones get, and what is counted."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.harness import Sim
from engine.test_fair_engine import clients, flood, steps
from tenfold.core.messages import Abort, ModelStats
from tenfold.core.settings import DeadlineSettings


def sim_with(order: str = "mh", *, models: str = "m", blocks: int = 400, **fields: Any) -> Sim:
    names = ("margin", "max_wait", "overdue_share", "answer_share", "ttft", "tpot")
    mine = {name: fields.pop(name) for name in names if name in fields}
    sim = Sim(deadlines=DeadlineSettings(order=order, **mine), **fields)  # type: ignore[arg-type]
    for name in models:
        sim.add(name, blocks=blocks)
    return sim


def stats(sim: Sim, name: str = "m") -> ModelStats:
    return sim.engine.instances[name].stats()


def prompt(seed: int, tokens: int) -> list[int]:
    return [seed * 1000 + at for at in range(tokens)]


def serve(sim: Sim, arrivals: list[tuple[float, str, int]], output: int = 1) -> None:
    """Requests as (when, model, prompt tokens), each sent when its time has come."""
    number = 0
    while number < len(arrivals) or sim.engine.has_work:
        while number < len(arrivals) and arrivals[number][0] <= sim.clock.now():
            at, model, tokens = arrivals[number]
            sim.ask(str(number), prompt(number, tokens), output, model=model, arrival=at)
            number += 1
        if not sim.engine.step() and number < len(arrivals):
            sim.clock.move_to(max(sim.clock.now(), arrivals[number][0]))


def overload(load: float, seconds: float = 20.0, seed: int = 1) -> list[tuple[float, str, int]]:
    """Prompts of all lengths for three models; a load of 1 is a second of prompts a second."""
    rng = random.Random(seed)
    found, at = [], 0.0
    while at < seconds:
        at += rng.expovariate(load / 0.07)
        tokens = max(4, min(900, int(36 * rng.lognormvariate(0, 1))))
        found.append((at, rng.choice("xyz"), tokens))
    return found


def attained(order: str, **fields: Any) -> float:
    sim = sim_with(order, models="xyz", ttft=0.6, prefix_cache=False, blocks=2000, **fields)
    serve(sim, overload(1.3))
    found = [stats(sim, name) for name in "xyz"]
    met, missed = sum(s.ttft_met for s in found), sum(s.ttft_missed for s in found)
    assert met + missed == len(sim.heard.finished)
    return met / (met + missed)


def test_under_overload_moore_hodgson_keeps_most_targets_and_the_others_hardly_any() -> None:
    by = {order: attained(order) for order in ("fifo", "edf", "mh")}
    assert by["mh"] > 0.7
    assert by["edf"] < 0.25 and by["fifo"] < 0.25


def test_an_estimate_s_margin_decides_what_is_called_late() -> None:
    def deferred(margin: float) -> int:
        sim = sim_with(margin=margin, ttft=0.2)
        for number in range(4):
            sim.ask(str(number), prompt(number, 40), 2)
        sim.engine.step()
        return stats(sim).deferred

    # A step of all four takes 170 ms; it holds 50 ms, a quarter of the target.
    assert [deferred(margin) for margin in (0.5, 1.0, 2.0)] == [0, 0, 2]


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "vtc", "dlpm"])
def test_a_short_request_passes_a_long_one_that_is_late_anyway(policy: str) -> None:
    sim = sim_with(ttft=0.3, policy=policy, prefix_cache=False)
    sim.ask("long", prompt(1, 600), 1)
    sim.ask("short", prompt(2, 30), 1)
    sim.ask("free", prompt(3, 30), 1, ttft_target=0.0)
    sim.run()
    assert list(sim.heard.tokens) == ["short", "long", "free"] or policy == "dlpm"
    assert next(iter(sim.heard.tokens)) == "short"
    found = stats(sim)
    assert (found.ttft_met, found.ttft_missed, found.deferred) == (1, 1, 0)


def test_a_late_request_is_served_while_others_come_without_end() -> None:
    """Requests that can be on time take all there is; the late one has its share from 10 x 0.4 s
    on, and its 0.6 s of work take at most 4 times as long with that."""
    sim = sim_with(models="xy", ttft=0.4, overdue_share=0.25, prefix_cache=False)
    arrivals = [(0.001, "x", 500)] + [(number * 0.035, "y", 30) for number in range(1, 400)]
    serve(sim, arrivals)
    ends = {o.request_id: e.at for e in sim.heard.events for o in getattr(e, "outputs", [])}
    assert 4.0 < ends["0"] < 4.0 + 0.6 / 0.25 + 0.2
    assert stats(sim, "y").ttft_met > 200


def test_a_client_in_debt_does_not_overtake_with_a_tight_target() -> None:
    def order(quantum: float) -> list[str]:
        sim = sim_with(models="xy", policy="dlpm", quantum=quantum, ttft=2.0)
        sim.ask("spent", prompt(1, 60), 4, model="x", client="deep")
        sim.run()
        sim.ask("tight", prompt(2, 20), 4, model="x", client="deep", ttft_target=0.05)
        sim.ask("loose", prompt(3, 20), 4, model="y", client="ada", ttft_target=5.0)
        sim.engine.step()
        jobs = {job.id for job in sim.engine.arbiter.line.jobs()}
        assert ("tight" in jobs) is (quantum > 60)  # nor does it count against the others
        sim.run()
        return sim.heard.order[1:]

    assert order(quantum=10.0) == ["loose", "tight"]
    assert order(quantum=1000.0) == ["tight", "loose"]


def test_credit_that_one_step_spends_buys_nothing_more_in_it() -> None:
    sim = sim_with(policy="dlpm", quantum=30.0, margin=1.0, itl_target=0.4)
    for number in range(2):
        sim.ask(f"tight{number}", prompt(number, 40), 1, client="deep", ttft_target=0.14)
    sim.ask("loose", prompt(2, 40), 1, client="ada", ttft_target=9.0)
    sim.engine.step()
    assert sim.heard.order[:2] == ["tight0", "loose"]


def test_a_client_that_floods_four_models_gets_one_share_with_targets_too() -> None:
    sim = sim_with(models="wxyz", policy="dlpm", quantum=40.0, max_running=2, ttft=1.0, blocks=200)
    for model in "wxyz":
        flood(sim, "greedy", model)
    flood(sim, "modest", "w")
    steps(sim, 1500)
    found = clients(sim)
    assert found["modest"].waiting and found["greedy"].waiting
    assert found["greedy"].service / found["modest"].service == pytest.approx(1.0, rel=0.1)


def test_only_the_least_served_client_of_a_queue_may_be_chosen() -> None:
    sim = sim_with(policy="vtc", max_running=1)
    sim.ask("much", prompt(1, 60), 8, client="deep")
    sim.engine.step()
    sim.ask("tight", prompt(2, 20), 4, client="deep", ttft_target=0.2)
    sim.ask("loose", prompt(3, 20), 4, client="ada", ttft_target=5.0)
    sim.engine.step()
    policy = _instances(sim)[0].batcher.policy
    assert policy.may_run("ada") and not policy.may_run("deep")
    sim.run()
    assert sim.heard.order[-2:] == ["loose", "tight"]


def test_a_model_without_memory_keeps_nobody_waiting() -> None:
    """x is due first and cannot begin; y is not due for long, and does not wait for that."""
    sim = sim_with(models="x", ttft=3.0, blocks=30)
    sim.add("y", blocks=400)
    sim.ask("holds", prompt(1, 60), 50, model="x")
    while not sim.heard.tokens["holds"]:
        sim.engine.step()
    sim.ask("large", prompt(2, 90), 1, model="x")
    sim.ask("small", prompt(3, 200), 1, model="y", ttft_target=5.0)
    began = sim.clock.now()
    while not sim.heard.tokens["small"]:
        sim.engine.step()
    assert sim.clock.now() - began < 0.4 and len(sim.heard.tokens["holds"]) < 30
    sim.run()
    assert len(sim.heard.finished) == 3


def test_a_step_ends_before_another_model_s_request_would_be_late_for_it() -> None:
    sim = sim_with(models="xy", margin=1.0)
    sim.ask("x", prompt(1, 30), 1, model="x", ttft_target=1.2)
    sim.ask("y", prompt(2, 900), 1, model="y", ttft_target=1.4)
    arbiter = sim.engine.arbiter
    assert arbiter.order(["x", "y"], 0.0) == ["x", "y"]
    [_, job] = arbiter.line.schedule.on_time
    seconds = _instances(sim)[0].batcher.turn.seconds
    assert seconds == pytest.approx(1.4 - job.seconds)
    assert 0.1 < seconds < 0.25 * 1.2  # the longest there is here


def test_without_targets_nothing_changes() -> None:
    def plans(order: str) -> list[Any]:
        sim = sim_with(order, models="xyz", policy="lpm")
        serve(sim, overload(1.2, 5.0), output=6)
        assert not sim.engine.arbiter.line.schedule
        return [recorder.plans for recorder in sim.recorders.values()]

    assert plans("mh") == plans("fifo")


def test_no_answer_changes_with_the_order() -> None:
    def tokens(order: str) -> dict[str, list[int]]:
        sim = sim_with(order, models="xyz", ttft=0.3, blocks=300)
        serve(sim, overload(1.3, 6.0), output=5)
        return dict(sim.heard.tokens)

    assert tokens("mh") == tokens("edf") == tokens("fifo")


def test_answers_go_on_while_prompts_of_other_models_flood() -> None:
    """Steps of 100 ms at most between two tokens of the answer, however many prompts wait, while
    none of them is at risk; and else a share of the time."""

    def gaps(ttft: float = 99.0, **fields: Any) -> tuple[float, float]:
        sim = sim_with(models="xy", ttft=ttft, itl_target=0.1, **fields)
        sim.ask("answer", prompt(0, 8), 60, model="x")
        sim.engine.step()
        sim.heard.events.clear()
        serve(sim, [(sim.clock.now() + 0.01 * at, "y", 60) for at in range(150)])
        times = [
            event.at
            for event in sim.heard.events
            for output in getattr(event, "outputs", [])
            if output.request_id == "answer"
        ]
        between = [b - a for a, b in pairwise(times)]
        return max(between), sum(between) / len(between)

    worst, mean = gaps()
    assert worst <= 0.1 + 1e-6
    assert mean > 0.03  # and prompts have the time between
    assert gaps(tpot=0.05)[1] <= 0.05 + 0.02
    assert 0.1 < gaps(ttft=1.0)[0] <= 2 * (0.1 + 0.011 / 0.05)  # its steps take 11 ms
    assert gaps(ttft=1.0, answer_share=0.5)[0] <= 0.1 + 1e-6


def test_prompts_keep_a_share_where_answers_alone_fill_the_time() -> None:
    sim = sim_with(models="xyz", ttft=1.0, itl_target=0.02, prefill_share=0.25)
    for model in "xy":
        for number in range(8):
            sim.ask(f"{model}{number}", prompt(number, 4), 400, model=model)
    for _ in range(200):
        sim.engine.step()
    began = sim.clock.now()
    sim.ask("new", prompt(99, 100), 1, model="z")
    while "new" not in sim.heard.finished:
        sim.engine.step()
    assert sim.clock.now() - began < 100e-3 * 3 / 0.25


def test_a_timeout_is_a_deadline_too() -> None:
    sim = sim_with(models="xyz", ttft=5.0)
    sim.ask("late", prompt(1, 20), 2, model="z")
    sim.ask("soon", prompt(2, 20), 2, model="y", deadline=sim.clock.now() + 0.5)
    sim.ask("free", prompt(3, 20), 2, model="x", ttft_target=0.0, deadline=0.4)
    sim.run()
    assert list(sim.heard.tokens) == ["free", "soon", "late"]


def test_a_model_that_wakes_is_reckoned_with_and_does_not_lead() -> None:
    sim = sim_with(models="xy", ttft=0.5)
    ready = {"x": 0.3, "y": -1.0}
    arbiter = sim.engine.arbiter
    arbiter.ready_at = ready.__getitem__
    sim.ask("x", prompt(1, 20), 2, model="x")
    sim.ask("y", prompt(2, 20), 2, model="y")
    assert arbiter.order(["y"], 0.0) == ["y"]
    assert [job.id for job in arbiter.line.schedule.on_time] == ["x", "y"]
    ready["x"] = 0.6
    arbiter.order(["y"], 0.1)
    assert [job.id for job in arbiter.line.schedule.late] == ["x"]


# --- what is counted ----------------------------------------------------------------------------
def test_attainment_counts_what_the_worker_saw() -> None:
    sim = sim_with(ttft=0.1, tpot=0.02)
    sim.ask("good", prompt(1, 20), 5)  # 31 ms, then 11 ms a token
    sim.run()
    sim.ask("one", prompt(1, 20), 1, itl_target=1e-9)  # no second token: nothing to count
    sim.run()
    sim.ask("slow", prompt(2, 20), 5, itl_target=0.005, ttft_target=1e-3)
    sim.run()
    sim.ask("free", prompt(3, 20), 5, itl_target=0.0, ttft_target=0.0)
    sim.run()
    found = stats(sim)
    assert (found.ttft_met, found.ttft_missed) == (2, 1)
    assert (found.tpot_met, found.tpot_missed, found.both_met) == (1, 1, 2)


def test_an_answer_that_began_elsewhere_has_had_its_first_token() -> None:
    sim = sim_with(ttft=0.1, tpot=0.02)
    sim.ask("new", prompt(1, 20), 5)
    sim.ask("moved", prompt(2, 20), 12, continued=8, arrival=-9.0)
    assert _instances(sim)[0].batcher.goals.unanswered == 1
    sim.run()
    found = stats(sim)
    assert (found.ttft_met, found.ttft_missed, found.tpot_met) == (1, 0, 2)


def test_who_gets_no_answer_has_missed_his_target() -> None:
    sim = sim_with(ttft=0.1, tpot=1.0)
    sim.ask("dies", prompt(1, 20), 500, deadline=0.3)
    sim.ask("never", prompt(2, 300), 5, deadline=0.05)
    sim.ask("gone", prompt(3, 300), 5)
    sim.ask("early", prompt(4, 300), 5, arrival=sim.clock.now() + 90)
    sim.engine.step()
    sim.engine.handle(Abort("early"))
    while "dies" not in sim.heard.failed:
        sim.engine.step()
    sim.engine.handle(Abort("gone"))
    assert sim.heard.failed.keys() == {"dies", "never"}
    found = stats(sim)
    assert (found.ttft_met, found.ttft_missed, found.tpot_missed) == (1, 2, 1)
    assert _instances(sim)[0].batcher.goals.unanswered == 0


def test_the_model_s_target_bounds_its_steps() -> None:
    def longest(**fields: Any) -> int:
        sim = sim_with(**fields)
        sim.ask("runs", prompt(1, 4), 40)
        sim.engine.step()
        sim.ask("long", prompt(2, 300), 1)
        sim.run()
        return max(count for plan in sim.recorders["m"].plans for _, _, count in plan)

    assert longest() > 150
    assert longest(tpot=0.05) < 50
    assert longest(tpot=5.0) > 150


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from("xyz"),
        st.integers(1, 120),
        st.integers(1, 12),
        st.sampled_from([None, 0.0, 0.05, 0.4, 3.0]),
        st.sampled_from("ab"),
        st.integers(0, 4),
        st.sampled_from([-1, 0, 0, 0]),
    ),
    min_size=1,
    max_size=25,
)


@given(
    REQUESTS,
    st.sampled_from(["fcfs", "lpm", "k-lpm", "vtc", "dlpm"]),
    st.sampled_from(["mh", "edf"]),
    st.sampled_from(["optimistic", "reserve"]),
)
@settings(max_examples=50, deadline=None)
def test_everything_ends_whatever_is_wished_for(
    rows: list[tuple[str, int, int, float | None, str, int, int]],
    policy: str,
    order: str,
    admission: str,
) -> None:
    """Little memory, four that may run: nobody waits for ever, and everything is in its place."""
    fields = {"max_running": 4, "quantum": 50.0, "policy": policy, "admission": admission}
    sim = sim_with(order, models="xyz", ttft=0.2, blocks=40, **fields)
    for number, (model, tokens, output, target, client, after, priority) in enumerate(rows):
        for _ in range(after):
            sim.engine.step()
        sim.ask(
            str(number),
            prompt(number % 3, tokens),
            output,
            model=model,
            client=client,
            ttft_target=target,
            priority=priority,
        )
    sim.run(3000)
    assert len(sim.heard.finished) == len(rows)
    counted = [stats(sim, name) for name in "xyz"]
    wished = sum(row[3] != 0.0 for row in rows)
    assert sum(one.ttft_met + one.ttft_missed for one in counted) == wished
    assert all(instance.batcher.turn is None for instance in _instances(sim))
    assert all(one.deferred == 0 for one in counted)


def _instances(sim: Sim) -> list[Any]:
    return list(sim.engine.instances.values())
