"""Whom fair policies admit, and when: the published algorithms as oracles, order, blocking."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fair_checks import PassWatcher, Terms, largest_lag
from fair_literal import Literal, LiteralDLPM, LiteralKLPM, LiteralLPM, LiteralVTC
from fair_model import Engine, PrefixMatches, Profile, tenfold_engine
from fair_worlds import Scene

from tenfold.core.settings import ScheduleSettings
from tenfold.scheduling.accounts import Accounts
from tenfold.scheduling.base import Policy, PolicyFactory, PolicySetup, Waiting
from tenfold.scheduling.dlpm import DLPM
from tenfold.scheduling.klpm import KLPM
from tenfold.scheduling.lpm import LPM
from tenfold.scheduling.vtc import VTC


# --- oracles ---------------------------------------------------------------------------------
def scene_of(seed: int, **settings: Any) -> Scene:
    """A small random world: every feature that a policy can be told of, in some of them."""
    rng = random.Random(seed)
    memory = rng.choice([20, 40, 80])
    prices = rng.choice([(1.0, 2.0), (1.0, 1.0), (2.0, 1.0), (0.5, 4.0)])
    values: dict[str, Any] = {
        "quantum": float(rng.choice([1, 5, 16, 40, 200, 10000])),
        "extend_weight": prices[0],
        "output_weight": prices[1],
        "admission": rng.choice(["reserve", "optimistic"]),
    }
    profiles = []
    for i in range(rng.randint(1, 5)):
        how: dict[str, Any] = rng.choice(
            [{"depth": rng.randint(1, 6)}, {"chance": 0.4}, {"one_at_a_time": True}]
        )
        shared = rng.choice([0, memory // 5])
        profiles.append(
            Profile(
                f"c{i}",
                weight=rng.choice([1.0, 1.0, 2.0, 0.5]),
                on=rng.choice([1, 6]),
                off=rng.choice([0, 4]),
                prefixes=rng.randint(1, 4),
                shared=(shared // 2, shared),
                own=(1, memory // 5),
                output=(1, rng.choice([1, memory // 5])),
                spare=rng.choice([0, 3]),
                priorities=rng.choice([1, 1, 3]),
                **how,
            )
        )
    return Scene(
        memory,
        ScheduleSettings(**{**values, **settings}),
        tuple(profiles),
        seed,
        chunk=rng.choice([0, 0, 3, 30]),
        aborts=rng.choice([0.0, 0.3]),
        evictions=rng.choice([0.0, 0.2]),
    )


def traces(
    scene: Scene, factory: PolicyFactory, oracle: Callable[[PrefixMatches], Policy], steps: int
) -> tuple[list[tuple[int, str, int]], list[tuple[int, str, int]]]:
    """Admissions (step, request, match) of a policy of the package and of the oracle."""
    ours = scene.run(factory, steps)
    matches = PrefixMatches()
    rules = scene.settings
    weights = (rules.extend_weight, rules.output_weight)
    theirs = Engine(
        oracle(matches),
        matches,
        scene.memory,
        admission=rules.admission,
        chunk=scene.chunk,
        weights=weights,
        step_seconds=0.01,
    )
    scene.world(theirs).run(steps)
    return ours.trace, theirs.trace


def agree(
    seeds: range,
    factory: PolicyFactory,
    oracle: Callable[[Scene], Callable[[PrefixMatches], Policy]],
    steps: int = 14,
    **settings: Any,
) -> int:
    admissions = 0
    for seed in seeds:
        scene = scene_of(seed, **settings)
        ours, theirs = traces(scene, factory, oracle(scene), steps)
        assert ours == theirs, f"seed {seed}: {scene}"
        admissions += len(ours)
    return admissions


def literal_dlpm(scene: Scene) -> Callable[[PrefixMatches], Literal]:
    return lambda matches: LiteralDLPM(matches, scene.settings, scene.phi)


def literal_vtc(scene: Scene) -> Callable[[PrefixMatches], Literal]:
    return lambda matches: LiteralVTC(matches, scene.settings, scene.phi)


def test_dlpm_is_algorithm_1() -> None:
    assert agree(range(600), DLPM, literal_dlpm) > 8000


@pytest.mark.parametrize("charge", ["input", "extend"])
def test_vtc_is_algorithm_2(charge: str) -> None:
    assert agree(range(300), VTC, literal_vtc, vtc_charge=charge) > 4000


def test_k_lpm_is_its_rule() -> None:
    for k in (1, 2, 4, 100):
        seeds = range(k * 1000, k * 1000 + 60)
        oracle = lambda scene, k=k: lambda matches: LiteralKLPM(matches, k)  # noqa: E731
        assert agree(seeds, KLPM, oracle, k=k) > 500


def test_lpm_is_sorting() -> None:
    assert agree(range(100), LPM, lambda scene: LiteralLPM) > 1000


@pytest.mark.slow
def test_the_oracles_agree_on_thousands_of_runs() -> None:
    agree(range(10_000, 14_000), DLPM, literal_dlpm, steps=40)
    agree(range(10_000, 12_000), VTC, literal_vtc, steps=40)
    agree(range(10_000, 12_000), VTC, literal_vtc, steps=40, vtc_charge="extend")


def test_vtc_lifts_to_what_the_last_to_leave_has_been_charged_by_now() -> None:
    """He left the queue with 0, and his prompt was charged just after."""
    rules = ScheduleSettings(policy="vtc")
    accounts = Accounts(rules)
    policy = VTC(PolicySetup(None, rules, accounts))
    first = Waiting("1", "a", 100, order=1)
    policy.add(first)
    policy.admitted(first, 100)
    policy.add(Waiting("2", "b", 100, order=2))
    assert accounts.counters.value("b") == accounts.counters.value("a") == 100


# --- P9: the ends of the scale ---------------------------------------------------------------
def test_with_a_huge_quantum_dlpm_is_lpm() -> None:
    """Once everybody has credit, which a first round that all are present at gives them."""
    admissions = 0
    for seed in range(100):
        scene = scene_of(seed, quantum=1e12)
        scene = replace(
            scene,
            aborts=0.0,
            profiles=tuple(
                replace(p, depth=max(p.depth, 2), on=1, off=0, weight=1.0) for p in scene.profiles
            ),
        )
        ours, theirs = traces(scene, DLPM, LiteralLPM, 20)
        assert ours == theirs, f"seed {seed}"
        admissions += len(ours)
    assert admissions > 1200


def test_with_one_client_dlpm_is_lpm() -> None:
    admissions = 0
    for seed in range(100):
        scene = scene_of(seed)
        scene = replace(scene, profiles=(replace(scene.profiles[0], depth=4),))
        ours, theirs = traces(scene, DLPM, LiteralLPM, 20)
        assert ours == theirs, f"seed {seed}"
        admissions += len(ours)
    assert admissions > 900


# --- P8: order, with priorities and preemption -----------------------------------------------
def test_no_request_that_fits_and_may_run_is_overtaken() -> None:
    """By one with a shorter match or a lower priority, unless a refill came between."""
    for seed in range(120):
        scene = scene_of(seed)
        engine = scene.engine(DLPM)
        watcher = PassWatcher(engine.policy.deficits.eligible)  # type: ignore[attr-defined]
        engine.watchers.append(watcher)
        scene.world(engine).run(20)
        assert watcher.problems == [], f"seed {seed}"


def test_priority_cannot_buy_credit() -> None:
    """What is urgent goes first among those who have credit, and its client pays as ever."""
    rules = ScheduleSettings(quantum=100.0, admission="reserve")
    scene = Scene(
        200,
        rules,
        (
            Profile("urgent", depth=20, own=(10, 30), output=(1, 10)),
            Profile("patient", depth=20, own=(10, 30), output=(1, 10)),
        ),
        seed=5,
    )
    engine = scene.engine(DLPM)
    world = scene.world(engine)
    submit = engine.submit
    engine.submit = lambda client, **kw: submit(  # type: ignore[method-assign]
        client, **{**kw, "priority": 0 if client == "urgent" else 5}
    )
    world.run(400)
    share = engine.served["urgent"] / sum(engine.served.values())
    assert share == pytest.approx(0.5, abs=0.03)


# --- the 1.4-7 case: credit that does not fit ------------------------------------------------
def blocked_engine(escape_seconds: float) -> Engine:
    """ "big" has credit and does not fit beside what "first" runs; "small" would fit, and has none.
    A step takes a second."""
    rules = ScheduleSettings(quantum=10.0, admission="reserve", escape_seconds=escape_seconds)
    engine = tenfold_engine(DLPM, rules, 1000, step_seconds=1.0)
    for client in ("first", "small", "big"):
        engine.submit(client, own=1, output=1)
    engine.step()
    engine.step()
    deficits = engine.policy.deficits  # type: ignore[attr-defined]
    assert {deficits.credit(c) for c in ("first", "small", "big")} == {7.0}
    engine.submit("first", own=300, output=100)
    engine.submit("small", own=20, output=1)
    engine.step()
    assert deficits.credit("small") < 0 and len(engine.running) == 1
    engine.submit("big", own=700, output=10)
    engine.submit("small", own=20, output=1)
    return engine


def admitted_at(engine: Engine, client: str) -> int:
    return next(step for step, id, _ in reversed(engine.trace) if id.startswith(client))


def test_credit_that_does_not_fit_keeps_the_others_waiting_as_published() -> None:
    engine = blocked_engine(0.0)
    for _ in range(150):
        engine.step()
    assert admitted_at(engine, "small") >= admitted_at(engine, "big") > 90


def test_escape_seconds_let_the_others_have_a_round() -> None:
    engine = blocked_engine(5.0)
    start = len(engine.log)
    for _ in range(150):
        engine.step()
    waits = admitted_at(engine, "small") - start
    assert 5 <= waits <= 6
    assert admitted_at(engine, "big") > 90


@pytest.mark.parametrize("quantum", [100.0, 1000.0])
def test_escapes_do_not_starve_what_they_pass_by(quantum: float) -> None:
    """Small requests that always fit, and a client whose requests need nine tenths of the memory.
    It is passed by once for each of its admissions: then the others may be given Q, and U that they
    owe."""
    rules = ScheduleSettings(quantum=quantum, admission="reserve", escape_seconds=5.0)
    small = Profile("s", depth=40, own=(10, 40), output=(5, 20))
    big = Profile("big", depth=2, own=(850, 900), output=(1, 10))
    scene = Scene(1000, rules, (small, replace(small, name="t"), big), seed=1)
    accounts = Accounts(rules)
    engine = tenfold_engine(DLPM, rules, 1000, accounts=accounts, step_seconds=1.0)
    scene.world(engine).run(500)
    admissions = sum(id.startswith("big") for _, id, _ in engine.trace)
    lag = largest_lag(engine.log, "big", "s", Terms(quantum, 0.0))
    bound = (admissions + 3) * (900 + 2 * 1000 + quantum)
    assert admissions >= 5
    assert lag <= bound


def test_nobody_escapes_from_what_is_no_longer_there() -> None:
    """The blocked request is aborted. Another that is blocked much later has only just begun to be
    in the way of the others."""
    engine = blocked_engine(5.0)
    engine.step()
    for job in [*engine.queue.values(), *engine.running]:
        engine.abort(job)
    assert not engine.queue and not engine.running
    rounds = engine.rounds("small")  # type: ignore[misc]
    engine.now += 50.0
    engine.submit("big", own=1, output=2, limit=600)
    engine.submit("big", own=600, output=1)
    engine.submit("small", own=1, output=1)
    engine.step()
    assert len(engine.running) == 1 and len(engine.queue) == 2
    assert engine.rounds("small") == rounds  # type: ignore[misc]


# --- matches that change between passes ------------------------------------------------------
@pytest.mark.parametrize("factory", [LPM, DLPM])
def test_the_order_that_is_kept_up_to_date_is_the_sorted_one(factory: PolicyFactory) -> None:
    """Prefixes come, grow and go between passes; requests come, go and run."""
    for seed in range(40):
        rng = random.Random(seed)
        matches = PrefixMatches()
        rules = ScheduleSettings(quantum=1e9)
        policy = factory(PolicySetup(matches, rules, Accounts(rules)))
        queued: dict[str, Waiting] = {}
        for i in range(40):
            for _ in range(rng.randint(0, 4)):
                w = Waiting(f"{i}.{len(queued)}.{rng.random()}", "c", 9, order=rng.randrange(10**6))
                matches.put(w.id, rng.randint(0, 6))
                policy.add(w)
                queued[w.id] = w
            for id in rng.sample(sorted(queued), rng.randint(0, len(queued))):
                matches.put(id, rng.randint(0, 6))
            if queued and rng.random() < 0.3:
                gone = queued.pop(rng.choice(sorted(queued)))
                matches.drop(gone.id)
                policy.remove(gone)
            expected = sorted(queued, key=lambda id: (-matches.values[id], queued[id].order))
            seen = []
            for w in policy.candidates(float(i)):
                seen.append(w.id)
                if rng.random() < 0.1:
                    matches.drop(w.id)
                    policy.admitted(queued.pop(w.id), 1)
            assert seen == expected


@pytest.mark.parametrize("factory", [LPM, DLPM, KLPM])
def test_siblings_wait_for_each_other_and_none_is_lost(factory: PolicyFactory) -> None:
    """Families of requests whose prefix nobody has computed, under eviction and aborts."""
    for seed in range(40):
        rng = random.Random(seed)
        rules = ScheduleSettings(quantum=50.0, admission=rng.choice(["reserve", "optimistic"]))
        engine = tenfold_engine(factory, rules, 400, chunk=rng.choice([0, 16, 40]))
        jobs = []
        for i in range(30):
            family = rng.randrange(4)
            hashes = [family * 1000 + n for n in range(12)] + [10**6 + i]
            jobs.append(
                engine.submit(
                    f"c{rng.randrange(3)}",
                    shared=48,
                    own=4,
                    output=rng.randint(1, 6),
                    prefix=str(family),
                    hashes=hashes,
                )
            )
        steps = 0
        while engine.queue or engine.running:
            engine.step()
            steps += 1
            assert steps < 400, f"seed {seed}: {len(engine.queue)} lost"
            if rng.random() < 0.2 and engine.cache:
                engine.evict(rng.choice(sorted(engine.cache)))
            if rng.random() < 0.1:
                engine.abort(rng.choice(jobs))
        assert all(step.batch for step in engine.log if step.queued)


def test_siblings_cost_their_prefix_once_for_each_client() -> None:
    """Thirty requests of one family arrive at once: without deferral, all would compute it."""
    rules = ScheduleSettings(quantum=1000.0, admission="reserve")
    engine = tenfold_engine(DLPM, rules, 4000)
    for i in range(30):
        engine.submit("c", shared=48, own=4, hashes=[*range(12), 100 + i])
    while engine.queue:
        engine.step()
    assert engine.served["c"] == 48 + 30 * (4 + 2) - 2 * len(engine.running)


# --- looking changes nothing -----------------------------------------------------------------
def test_looking_at_the_queue_changes_nothing() -> None:
    for factory in (DLPM, VTC, KLPM, LPM):
        for seed in range(40):
            scene = scene_of(seed)
            plain = scene.run(factory, 14).trace
            engine = scene.engine(factory)
            world = scene.world(engine)
            for _ in range(14):
                world.step()
                rows = engine.policy.first(5)
                assert all(engine.policy.reason(w) for w in rows)
            assert engine.trace == plain


# --- k-LPM: the promise ----------------------------------------------------------------------
@pytest.mark.parametrize("k", [1, 2, 5])
def test_k_lpm_serves_within_k_admissions_for_each_that_was_before(k: int) -> None:
    rules = ScheduleSettings(k=k, admission="reserve")
    for seed in range(30):
        rng = random.Random(seed)
        engine = tenfold_engine(KLPM, rules, 100)
        ahead: dict[str, tuple[int, int]] = {}
        for _ in range(60):
            for _ in range(rng.randint(0, 3)):
                queued, done = len(engine.queue), len(engine.trace)
                shared = rng.choice([0, 0, 16])
                job = engine.submit("c", shared=shared, own=rng.randint(1, 20), output=3)
                ahead[job.id] = (queued, done)
            engine.step()
        for n, (_, id, _) in enumerate(engine.trace):
            queued, done = ahead[id]
            assert n - done <= k * (queued + 1)
