"""Sharing a device between clients, through the engine: books, shares, reservations, reasons."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.harness import PAGE, Sim
from tenfold.core.messages import AskSchedule, AskStats, ClientStats, ScheduleReport, SetShares
from tenfold.core.settings import Share
from tenfold.engine.simulated import CountingPages


def prompts(seed: int = 0) -> Iterator[list[int]]:
    """Prompts of 20 tokens that share nothing."""
    number = seed
    while True:
        number += 1
        yield [number * 100 + at for at in range(20)]


def clients(sim: Sim) -> dict[str, ClientStats]:
    sim.engine.handle(AskStats("s"))
    return {one.client: one for one in sim.heard.events[-1].clients}  # type: ignore[union-attr]


def flood(sim: Sim, client: str, model: str = "m", requests: int = 200) -> None:
    fresh = prompts(hash_of(client + model))
    for number in range(requests):
        sim.ask(f"{client}-{model}-{number}", next(fresh), 8, client=client, model=model)


def hash_of(text: str) -> int:
    return sum(ord(c) * 7919**at for at, c in enumerate(text)) % 100_000


def steps(sim: Sim, count: int) -> None:
    for _ in range(count):
        assert sim.engine.step()


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "k-lpm", "vtc", "dlpm"])
def test_books_tell_what_was_computed_under_any_policy(policy: str) -> None:
    sim = Sim(policy=policy)
    sim.add()
    shared = list(range(40))
    for turn in range(3):
        for client in ("ada", "bob"):
            sim.ask(f"{client}{turn}", [*shared, turn, len(client)], 5, client=client)
        sim.run()
    found = clients(sim)
    for one in found.values():
        computed = one.prompt_tokens - one.cached_tokens
        assert (one.prompt_tokens, one.output_tokens) == (3 * 42, 15)
        assert one.service == computed + 2 * 15
        assert one.asked_service == one.prompt_tokens + 2 * 15
        assert (one.waiting, one.running) == (0, 0)
    assert sum(one.cached_tokens for one in found.values()) >= 4 * 40


@pytest.mark.parametrize("policy", ["vtc", "dlpm"])
def test_weights_arrive_and_divide_the_device(policy: str) -> None:
    sim = Sim(policy=policy, quantum=40.0, max_running=4)
    sim.add(blocks=400)
    sim.engine.handle(SetShares([Share("ada", 3.0), Share("bob", 1.0)]))
    flood(sim, "ada")
    flood(sim, "bob")
    steps(sim, 400)
    found = clients(sim)
    assert found["ada"].waiting and found["bob"].waiting
    assert found["ada"].service / found["bob"].service == pytest.approx(3.0, rel=0.1)


def test_a_client_that_floods_four_models_gets_one_share() -> None:
    def ratio(accounts: str) -> float:
        sim = Sim(policy="dlpm", quantum=40.0, max_running=2, accounts=accounts)
        for model in "wxyz":
            sim.add(model, blocks=200)
            flood(sim, "greedy", model)
        flood(sim, "modest", "w")
        steps(sim, 1500)
        found = clients(sim)
        assert found["modest"].waiting and found["greedy"].waiting
        return found["greedy"].service / found["modest"].service

    assert ratio("device") == pytest.approx(1.0, rel=0.1)
    assert ratio("model") > 3.0


def test_a_dear_model_s_tokens_cost_more() -> None:
    sim = Sim(policy="dlpm", quantum=40.0, max_running=2)
    sim.add("small", blocks=200)
    sim.add("large", blocks=200, price=4.0)
    flood(sim, "ada", "small", 600)
    flood(sim, "bob", "large", 600)
    steps(sim, 2000)
    found = clients(sim)
    assert found["ada"].service == pytest.approx(found["bob"].service, rel=0.1)
    assert found["ada"].output_tokens > 3 * found["bob"].output_tokens


def test_a_reserved_answer_never_has_to_give_way() -> None:
    def run(admission: str) -> Sim:
        sim = Sim(policy="dlpm", admission=admission, quantum=100.0, prefix_cache=False)
        sim.add(blocks=64)
        for number, prompt in zip(range(30), prompts(), strict=False):
            sim.ask(f"r{number}", prompt, 40, client="ab"[number % 2])
        sim.run()
        assert len(sim.heard.finished) == 30
        return sim

    optimistic, reserved = run("optimistic"), run("reserve")
    assert optimistic.engine.instances["m"].stats().preemptions > 0
    assert reserved.engine.instances["m"].stats().preemptions == 0
    assert reserved.heard.tokens == optimistic.heard.tokens
    plans = reserved.recorders["m"].plans
    assert max(len(plan) for plan in plans) == 64 // 15  # blocks of 20 + 40 tokens in 4s


def test_one_answer_that_promises_more_than_there_is_runs_alone() -> None:
    sim = Sim(policy="dlpm", admission="reserve")
    sim.add(blocks=16)
    sim.ask("long", list(range(20)), 900)
    sim.ask("short", list(range(500, 520)), 4)
    sim.run()
    assert sim.heard.finished["long"] == "length" and sim.heard.finished["short"] == "length"


@pytest.mark.parametrize("admission", ["optimistic", "reserve"])
def test_drift_stays_within_the_bound_at_every_step(admission: str) -> None:
    sim = Sim(policy="dlpm", quantum=30.0, max_running=6, admission=admission)
    sim.add(blocks=48)
    for client in ("ada", "bob", "cyd"):
        flood(sim, client, requests=60)
    worst = 0.0
    while sim.engine.step():
        for one in clients(sim).values():
            worst = max(worst, abs(one.drift) / one.bound)
    assert 0.0 < worst < 1.0


def test_the_schedule_gives_reasons() -> None:
    sim = Sim(policy="dlpm", quantum=25.0, max_running=1)
    sim.add()
    flood(sim, "ada", requests=3)
    flood(sim, "bob", requests=2)
    steps(sim, 1)
    sim.engine.handle(AskSchedule("q", 3))
    report = sim.heard.events[-1]
    assert isinstance(report, ScheduleReport) and report.device == "sim:0"
    [model] = report.models
    assert (model.policy, model.waiting, len(model.next)) == ("dlpm", 4, 3)
    assert [one.request_id for one in model.chosen] == ["ada-m-0"]
    assert "credit 25 in round 1" in model.chosen[0].why
    assert [one.client for one in model.next] == ["ada", "bob", "ada"] or model.next[0].client
    assert "0 of 20 prompt tokens are cached" in model.next[0].why


def test_a_deadline_chooses_the_model_among_clients_with_credit() -> None:
    def order(policy: str = "dlpm", **fields: object) -> list[str]:
        sim = Sim(policy=policy, quantum=10.0, max_running=2)
        for model in "xyz":
            sim.add(model)
        for model, deadline in (("x", None), ("y", 900.0), ("z", 500.0)):
            sim.ask(model, list(range(8)), 4, client="c" + model, model=model, deadline=deadline)
        steps(sim, 3)
        return sim.heard.order

    assert order() == ["z", "y", "x"]


def test_a_shared_prefix_is_paid_for_by_all_who_use_it() -> None:
    def credits(share: bool) -> tuple[dict[str, ClientStats], float]:
        sim = Sim(policy="dlpm", quantum=1000.0, share_prefixes=share)
        sim.add(pages=CountingPages(400), blocks=400)
        shared = list(range(80))
        for client in ("ada", "bob", "cyd"):
            sim.ask(client, [*shared, ord(client[0])], 1, client=client)
            sim.run()
        found = clients(sim)
        charged = sum(1000.0 * one.rounds - one.credit for one in found.values())
        return found, charged

    alone, total = credits(False)
    assert alone["ada"].credit < alone["cyd"].credit - 70
    together, same = credits(True)
    assert same == pytest.approx(total)
    assert together["ada"].credit == pytest.approx(together["cyd"].credit, abs=5)
    assert together["ada"].service > 80 > together["cyd"].service  # what was computed is not moved
    assert PAGE
