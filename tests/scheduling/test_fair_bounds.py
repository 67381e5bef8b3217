"""The theorems of DLPM and VTC: credit, service differences, latency, conservation, exploits.

Written from arXiv 2501.14312 (Algorithm 1, Theorems 4.1-4.6) and "Fairness in Serving Large
Language Models". P1 to P5 hold for reserving admission; P12 shows what optimistic admission costs.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from fair_checks import (
    PassWatcher,
    largest_gap,
    largest_lag,
    p1_range,
    p2_backlogged,
    p3_nobody_overtakes,
    p5_conservation,
    p5_ledger,
    p6_never_empty,
    p7_passes_end,
    pair_bound,
    served,
    terms,
)
from fair_model import Engine, Job, Profile, Watcher, World, drain, tenfold_engine
from fair_worlds import CLAIM, Scene, scenes
from hypothesis import given

from tenfold.core.settings import ScheduleSettings
from tenfold.scheduling.dlpm import DLPM
from tenfold.scheduling.vtc import VTC

STEPS = 100


# --- P1: what a client may have and owe ------------------------------------------------------
@CLAIM
@given(scenes(weights=True))
def test_credit_stays_between_minus_u_and_a_quantum(scene: Scene) -> None:
    engine = scene.run(DLPM, STEPS)
    assert engine.finished
    assert p1_range(engine, scene.terms(engine)) == []


@CLAIM
@given(scenes(weights=True, chunks=True, aborts=True))
def test_chunks_and_aborts_do_not_stretch_debts(scene: Scene) -> None:
    engine = scene.run(DLPM, STEPS)
    assert p1_range(engine, scene.terms(engine)) == []


@CLAIM
@given(scenes(weights=True))
def test_drift_is_service_less_rounds_and_stays_within_u_and_q(scene: Scene) -> None:
    """Of a client whose queue has not been empty since; both are counted here."""
    engine = scene.engine(DLPM)
    t = scene.terms(engine)
    world = scene.world(engine)
    deficits = engine.policy.deficits  # type: ignore[attr-defined]
    first: dict[str, tuple[float, float]] = {}
    for _ in range(STEPS):
        step = world.step()
        first = {client: what for client, what in first.items() if client in step.busy}
        for client in step.busy:
            quantum = t.weight(client) * t.quantum
            drift = deficits.drift(client)
            assert abs(drift) < t.unit + quantum
            beyond_rounds = step.promised.get(client, 0.0) - quantum * step.rounds[client]
            start = first.setdefault(client, (drift, beyond_rounds))
            assert drift - start[0] == pytest.approx(beyond_rounds - start[1])


# --- P2: two clients that always have work -----------------------------------------------------
@CLAIM
@given(scenes(flood=True))
def test_backlogged_clients_differ_by_twice_u_and_q(scene: Scene) -> None:
    engine = scene.run(DLPM, STEPS)
    assert p2_backlogged(engine, scene.terms(engine)) == []
    assert all(len(step.busy) == len(scene.profiles) for step in engine.log)


@CLAIM
@given(scenes(flood=True, weights=True))
def test_weighted_backlogged_clients_differ_by_their_u_and_q(scene: Scene) -> None:
    engine = scene.run(DLPM, STEPS)
    assert p2_backlogged(engine, scene.terms(engine)) == []


@CLAIM
@given(scenes(flood=True, weights=True, chunks=True))
def test_chunked_prompts_keep_the_bound_as_promised(scene: Scene) -> None:
    """Of service as promised at admission. As computed, what memory holds of prompts comes on top:
    that much may be promised and not yet given."""
    engine = scene.run(DLPM, STEPS)
    t = scene.terms(engine)
    assert p2_backlogged(engine, t) == []
    pending = engine.extend_weight * engine.memory * (1 / min(scene.phi.values()))
    assert p2_backlogged(engine, t, served, 2 * pending) == []


def flooded(quantum: float, weights: tuple[float, ...], steps: int = 800) -> Engine:
    """Floods of one kind but for prefixes: the first client's prompts are mostly cached."""
    scene = Scene(
        400,
        ScheduleSettings(quantum=quantum, admission="reserve"),
        tuple(
            Profile(
                f"c{i}",
                weight=weight,
                depth=30,
                shared=(40, 40) if i == 0 else (0, 0),
                own=(10, 30) if i == 0 else (30, 60),
                output=(5, 20),
            )
            for i, weight in enumerate(weights)
        ),
        seed=1,
    )
    return scene.run(DLPM, steps)


@pytest.mark.parametrize("quantum", [50.0, 500.0, 2000.0])
def test_shares_are_even_and_in_proportion_to_weights(quantum: float) -> None:
    for weights in ((1.0, 1.0, 1.0), (1.0, 2.0, 4.0)):
        engine = flooded(quantum, weights)
        total = sum(engine.served.values())
        for i, weight in enumerate(weights):
            share = engine.served[f"c{i}"] / total
            assert share == pytest.approx(weight / sum(weights), abs=0.05)


# --- P3: nobody overtakes a client with work ---------------------------------------------------
@CLAIM
@given(scenes(weights=True))
def test_a_backlogged_client_falls_behind_nobody_whatever_he_does(scene: Scene) -> None:
    engine = scene.run(DLPM, STEPS)
    assert p3_nobody_overtakes(engine, scene.terms(engine)) == []


# --- P4: how long a lone request waits -----------------------------------------------------------
class Latency(Watcher):
    """Service others are promised between the arrival of a request and its admission."""

    def __init__(self, job: Job, engine: Engine) -> None:
        self.job = job
        self.before = self.others(engine)
        self.waited: float | None = None

    def others(self, engine: Engine) -> float:
        return sum(v for c, v in engine.promised.items() if c != self.job.client)

    def tries(self, engine: Engine, job: Job, fits: bool) -> None:
        if job is self.job and fits:
            self.waited = self.others(engine) - self.before


@CLAIM
@given(scenes(flood=True, clients=(2, 4)))
def test_a_lone_request_waits_for_a_bounded_amount_of_service(scene: Scene) -> None:
    engine = scene.engine(DLPM)
    t = scene.terms(engine)
    lone, *others = scene.profiles
    world = World(engine, others, scene.seed)
    bound = 2 * len(others) * (t.quantum + t.unit)
    for gap in (40, 3, 17, 0):
        world.run(gap)
        job = world.submit(lone)
        latency = Latency(job, engine)
        engine.watchers.append(latency)
        while latency.waited is None:
            world.step()
            assert latency.others(engine) - latency.before <= 2 * bound, "not admitted"
        assert latency.waited <= bound
        while world.has_work(lone.name):
            world.step()


# --- P5: the books balance -----------------------------------------------------------------------
@CLAIM
@given(scenes(weights=True, chunks=True, aborts=True))
def test_credit_is_rounds_less_the_service_that_was_computed(scene: Scene) -> None:
    engine = scene.run(DLPM, STEPS)
    t = scene.terms(engine)
    assert p5_conservation(engine, t) == []
    drain(engine, 4000)
    assert p5_ledger(engine, t) == []
    assert engine.promised == pytest.approx(engine.served)


@CLAIM
@given(scenes(weights=True, chunks=True, aborts=True, admission="optimistic"))
def test_preempted_requests_are_billed_once(scene: Scene) -> None:
    engine = scene.run(DLPM, STEPS)
    t = scene.terms(engine)
    assert p5_conservation(engine, t) == []
    drain(engine, 4000)
    assert p5_ledger(engine, t) == []


def test_the_price_of_a_model_multiplies_what_it_bills() -> None:
    rules = ScheduleSettings(quantum=64.0)
    engine = tenfold_engine(DLPM, rules, 100, price=3.0)
    engine.submit("a", own=7, output=5)
    drain(engine, 50)
    assert engine.served["a"] == 3 * (7 + 2 * 5)
    assert p5_ledger(engine, terms(engine, 64.0, 7)) == []


def test_the_shared_cost_of_a_prefix_moves_service_and_makes_none() -> None:
    """Who comes later pays a part of what the first one paid."""
    engine = tenfold_engine(DLPM, ScheduleSettings(quantum=64.0, extend_weight=2.0), 100)
    for client in "ab":
        engine.submit(client, own=7, output=5)
    drain(engine, 50)
    before = {client: engine.credit(client) for client in "ab"}  # type: ignore[misc]
    engine.policy.shared({"a": -3.0, "b": 3.0})
    after = {client: engine.credit(client) for client in "ab"}  # type: ignore[misc]
    assert (after["a"] - before["a"], after["b"] - before["b"]) == (6.0, -6.0)


# --- P6, P7: work conservation and the end of a pass ---------------------------------------------
@CLAIM
@given(scenes(weights=True, aborts=True))
def test_no_step_is_empty_and_passes_leave_no_one_who_fits_and_may(scene: Scene) -> None:
    engine = scene.engine(DLPM)
    deficits = engine.policy.deficits  # type: ignore[attr-defined]
    watcher = PassWatcher(deficits.eligible)
    engine.watchers.append(watcher)
    scene.world(engine).run(STEPS)
    assert watcher.problems == []
    assert p6_never_empty(engine) == []
    assert p7_passes_end(engine) == []


@CLAIM
@given(scenes(weights=True, aborts=True, admission="optimistic"))
def test_the_same_when_memory_is_taken_back(scene: Scene) -> None:
    engine = scene.engine(DLPM)
    watcher = PassWatcher(engine.policy.deficits.eligible)  # type: ignore[attr-defined]
    engine.watchers.append(watcher)
    scene.world(engine).run(STEPS)
    assert watcher.problems == []
    assert p6_never_empty(engine) == []
    assert p7_passes_end(engine) == []


# --- VTC -----------------------------------------------------------------------------------------
def vtc_gap(engine: Engine, scene: Scene, f: str, g: str) -> tuple[float, float]:
    """The largest difference and its bound, 2 max(w_p L, w_q M), in units of a weight of 1."""
    rules = scene.settings
    unit = max(rules.extend_weight * scene.longest, rules.output_weight * scene.memory)
    t = scene.terms(engine)
    return largest_gap(engine.log, f, g, t), 2 * unit / min(t.weight(f), t.weight(g))


@CLAIM
@given(scenes(flood=True, weights=True, policy="vtc", output_weight=2.0, extend_weight=1.0))
def test_vtc_keeps_its_bound(scene: Scene) -> None:
    scene = without_prefixes(scene)
    engine = scene.run(VTC, STEPS)
    names = sorted(engine.clients)
    for f, g in combinations(names, 2):
        gap, bound = vtc_gap(engine, scene, f, g)
        assert gap <= bound


@CLAIM
@given(scenes(weights=True, policy="vtc", output_weight=2.0, extend_weight=1.0))
def test_vtc_lets_nobody_overtake_by_pausing(scene: Scene) -> None:
    """For g with pauses the bound is twice as large."""
    scene = without_prefixes(scene)
    engine = scene.run(VTC, STEPS)
    names = sorted(engine.clients)
    for f in names:
        for g in names:
            _, bound = vtc_gap(engine, scene, f, g)
            assert largest_lag(engine.log, f, g, scene.terms(engine)) <= 2 * bound


@CLAIM
@given(scenes(flood=True, weights=True, policy="vtc", output_weight=2.0, extend_weight=1.0))
def test_vtc_counters_stay_within_what_one_clients_requests_in_flight_cost(scene: Scene) -> None:
    engine = scene.engine(VTC)
    world = scene.world(engine)
    t = scene.terms(engine)
    counters = engine.policy.counters  # type: ignore[attr-defined]
    for _ in range(STEPS):
        world.step()
        assert all(0 <= counters.drift(client) <= t.unit for client in engine.clients)


def without_prefixes(scene: Scene) -> Scene:
    """The same with nothing cached, so that prompts are computed whole."""
    own = [(p.own[0] + p.shared[0], p.own[1] + p.shared[1]) for p in scene.profiles]
    pairs = zip(scene.profiles, own, strict=True)
    return replace(scene, profiles=tuple(replace(p, shared=(0, 0), own=o) for p, o in pairs))


# --- P11: pausing does not pay -------------------------------------------------------------------
def attackers_share(idle_debt: str) -> float:
    """Of a client that sends one uncached request of 3000 tokens at a time, against three that
    always have work. A fair share is a quarter."""
    scene = Scene(
        8000,
        ScheduleSettings(quantum=300.0, admission="reserve", idle_debt=idle_debt),  # type: ignore[arg-type]
        (
            Profile("attacker", one_at_a_time=True, own=(3000, 3000), output=(1, 1)),
            *(
                Profile(f"c{i}", depth=30, shared=(200, 200), own=(50, 100), output=(10, 30))
                for i in range(3)
            ),
        ),
        seed=3,
    )
    engine = scene.run(DLPM, 600)
    return engine.served["attacker"] / sum(engine.served.values())


def test_debt_kept_over_a_pause_leaves_the_attacker_his_share() -> None:
    assert attackers_share("keep") <= 0.26


def test_debt_forgotten_over_a_pause_is_an_exploit() -> None:
    assert attackers_share("forget") >= 0.40


def test_debt_outlives_any_pause() -> None:
    """Nobody else works meanwhile, so no round repays it."""
    engine = tenfold_engine(DLPM, ScheduleSettings(quantum=10.0), 1000)
    engine.submit("a", own=500, output=1)
    drain(engine, 10)
    engine.now += 1e7
    for name in ("b", "a"):
        engine.submit(name, own=5, output=1)
    deficits = engine.policy.deficits  # type: ignore[attr-defined]
    owed = deficits.credit("a")
    assert owed < -400
    engine.step()
    assert [id.split("/")[0] for _, id, _ in engine.trace[1:]] == ["b", "a"]
    assert deficits.credit("a") >= owed


# --- P12: what the constant U needs --------------------------------------------------------------
def harmonic(admission: str) -> tuple[Engine, float, float]:
    """A client whose requests end staggered: the j-th of them has M / j output tokens, so all fit
    as long as memory is not kept for what they have not written yet. Its least q, and U."""
    memory = 1000
    rules = ScheduleSettings(quantum=1000.0, admission=admission)  # type: ignore[arg-type]
    engine = tenfold_engine(DLPM, rules, memory)
    for j in range(2, 150):
        engine.submit("f", own=1, output=(memory - 300) // j)
    engine.submit("g", own=1, output=1)
    for _ in range(600):
        engine.step()
    t = terms(engine, 1000.0, 1)
    return engine, min(step.low["f"] for step in engine.log), t.unit


def test_optimistic_admission_may_exceed_u_but_not_what_was_in_flight() -> None:
    engine, low, unit = harmonic("optimistic")
    assert low < -2 * unit
    assert low > -(1.0 + 2.0 * engine.most_output["f"])


def test_reserving_admission_keeps_u_in_the_same_case() -> None:
    engine, low, unit = harmonic("reserve")
    assert -unit < low
    drain(engine, 20000)


@CLAIM
@given(scenes(flood=True, admission="optimistic"))
def test_optimistic_admission_keeps_the_bounds_of_its_own_u(scene: Scene) -> None:
    """U' = w_e L + w_q (running requests times the longest answer)."""
    engine = scene.run(DLPM, STEPS)
    longest_answer = max(p.output[1] for p in scene.profiles)
    most = max(step.batch for step in engine.log) + 1
    t = terms(engine, scene.settings.quantum, scene.longest)
    unit = engine.extend_weight * scene.longest + engine.output_weight * most * longest_answer
    own = type(t)(t.quantum, max(unit, t.unit), t.phi)
    assert p1_range(engine, own) == []
    assert p2_backlogged(engine, own) == []
    assert pair_bound(own, "c0", "c1") == 2 * (own.unit + own.quantum)
