"""Shares of groups and clients: nested deficits, live changes, one client on several models."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

import pytest
from fair_checks import Terms, largest_gap, terms
from fair_model import Engine, Profile, Step, World, tenfold_engine
from fair_worlds import CLAIM
from hypothesis import given
from hypothesis import strategies as st

from tenfold.core.settings import ScheduleSettings, Share
from tenfold.scheduling.accounts import Accounts
from tenfold.scheduling.deficits import Deficits
from tenfold.scheduling.dlpm import DLPM
from tenfold.scheduling.vtc import VTC

MEMORY = 200
RULES = ScheduleSettings(quantum=100.0, admission="reserve")
LONGEST = 40
"""Of the prompts below."""


def group(name: str, weight: float = 1.0, inside: str = "") -> Share:
    return Share(name, weight, inside, is_group=True)


def flood(name: str) -> Profile:
    return Profile(name, depth=MEMORY // 12 + 2, own=(10, LONGEST), output=(2, 12))


def tenants(
    shares: Iterable[Share], profiles: Iterable[Profile], seed: int = 1, quantum: float = 100.0
) -> World:
    rules = ScheduleSettings(quantum=quantum, admission="reserve")
    accounts = Accounts(rules)
    accounts.set_shares(shares)
    return World(tenfold_engine(DLPM, rules, MEMORY, accounts=accounts), profiles, seed)


def portions(engine: Engine) -> dict[str, float]:
    total = sum(engine.served.values())
    return {client: value / total for client, value in engine.served.items()}


TREE = [
    group("acme"),
    group("labs", 3.0, "acme"),
    Share("ann", 2.0, "labs"),
    Share("ben", 1.0, "labs"),
    Share("sue", 1.0, "acme"),
    Share("solo", 1.0),
]
"""acme and solo half each; in acme labs three quarters, and of those ann two thirds."""


# --- who gets what --------------------------------------------------------------------------------
def test_weights_hold_on_every_level() -> None:
    engine = tenants(TREE, [flood(name) for name in ("ann", "ben", "sue", "solo")]).run(700).engine
    expected = {"ann": 1 / 4, "ben": 1 / 8, "sue": 1 / 8, "solo": 1 / 2}
    assert portions(engine) == pytest.approx(expected, abs=0.03)


def test_what_a_client_leaves_unused_goes_to_its_siblings_first() -> None:
    """Without ben, ann has all of labs; without labs, sue has all of acme; solo gains nothing."""
    cases: list[tuple[set[str], dict[str, float]]] = [
        ({"ann", "sue", "solo"}, {"ann": 3 / 8, "sue": 1 / 8, "solo": 1 / 2}),
        ({"sue", "solo"}, {"sue": 1 / 2, "solo": 1 / 2}),
        ({"ann", "ben", "sue"}, {"ann": 1 / 2, "ben": 1 / 4, "sue": 1 / 4}),
    ]
    for active, expected in cases:
        engine = tenants(TREE, [flood(name) for name in sorted(active)]).run(700).engine
        assert portions(engine) == pytest.approx(expected, abs=0.03)


def test_the_weight_of_a_group_limits_its_clients_together() -> None:
    """However many they are."""
    shares = [group("crowd"), *(Share(f"m{i}", 1.0, "crowd") for i in range(8)), Share("solo")]
    profiles = [flood("solo"), *(flood(f"m{i}") for i in range(8))]
    got = portions(tenants(shares, profiles).run(900).engine)
    assert got["solo"] == pytest.approx(0.5, abs=0.03)
    for i in range(8):
        assert got[f"m{i}"] == pytest.approx(1 / 16, abs=0.02)


def test_a_group_repays_what_its_clients_overdrew_though_others_ask() -> None:
    """One client spends, another comes in his place: the group's debt is not his alone."""
    shares = [
        group("ring"),
        *(Share(f"m{i}", 1.0, "ring") for i in range(40)),
        Share("solo"),
        Share("other"),
    ]
    world = tenants(shares, [flood("solo"), flood("other")], quantum=20.0)
    engine = world.engine
    for step in range(700):
        running = any(job.client.startswith("m") for job in engine.running)
        if not running and not any(job.client.startswith("m") for job in engine.queue.values()):
            engine.submit(f"m{step % 40}", own=100, output=1)
        world.step()
    ring = sum(v for client, v in engine.served.items() if client.startswith("m"))
    assert ring / sum(engine.served.values()) <= 0.35


@pytest.mark.parametrize("active", [("ann", "ben", "sue", "solo"), ("ann", "solo"), ("ben", "sue")])
def test_what_accounts_say_is_due_is_what_is_given(active: tuple[str, ...]) -> None:
    accounts = Accounts(RULES)
    accounts.set_shares(TREE)
    engine = tenants(TREE, [flood(name) for name in active]).run(700).engine
    assert portions(engine) == pytest.approx(accounts.fair(active), abs=0.03)


# --- bounds of the nested form --------------------------------------------------------------------
def sums(groups: Mapping[str, set[str]]) -> object:
    """Service of groups, as a series."""

    def of(step: Step) -> Mapping[str, float]:
        return {
            name: sum(step.promised.get(client, 0.0) for client in members)
            for name, members in groups.items()
        }

    return of


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[Share], dict[str, set[str]], dict[str, float]]:
    """Two levels of groups over 4 to 8 clients; whose clients are whose; weights by name."""
    weights = st.sampled_from([0.5, 1.0, 2.0, 4.0])
    shares = [group("g0", draw(weights)), group("g1", draw(weights))]
    shares += [group("h0", draw(weights), "g0"), group("h1", draw(weights), "g0")]
    for i in range(draw(st.integers(4, 8))):
        inside = ["h0", "h1", "g1", ""][i] if i < 4 else draw(st.sampled_from(["h0", "h1", "g1"]))
        shares.append(Share(f"c{i}", draw(weights), inside))
    members: dict[str, set[str]] = {one.name: set() for one in shares if one.is_group}
    inside_of = {one.name: one.group for one in shares}
    for one in shares:
        up = one.name if not one.is_group else ""
        while up and (up := inside_of[up]):
            members[up].add(one.name)
    draw(st.randoms(use_true_random=False)).shuffle(shares)
    return shares, members, {one.name: one.weight for one in shares}


@CLAIM
@given(trees(), st.integers(0, 1000), st.sampled_from([10.0, 100.0, 1000.0]))
def test_sibling_groups_and_siblings_in_groups_keep_the_bound(
    tree: tuple[list[Share], dict[str, set[str]], dict[str, float]], seed: int, quantum: float
) -> None:
    """Each level is DLPM by itself: |W_f/phi_f - W_g/phi_g| <= U/phi_f + U/phi_g + 2Q."""
    shares, members, phi = tree
    clients = [one.name for one in shares if not one.is_group]
    engine = tenants(shares, [flood(name) for name in clients], seed, quantum).run(100).engine
    t = terms(engine, quantum, LONGEST, phi)
    sets = members | {client: {client} for client in clients}
    busy = [{name for name, those in sets.items() if those & step.busy} for step in engine.log]
    for step, names in zip(engine.log, busy, strict=True):
        step.busy = names
    inside_of = {one.name: one.group for one in shares}
    for f in sets:
        for g in sets:
            if f < g and inside_of[f] == inside_of[g]:
                gap = largest_gap(engine.log, f, g, t, sums(sets))  # type: ignore[arg-type]
                assert gap <= t.unit / phi[f] + t.unit / phi[g] + 2 * quantum, (f, g)


@CLAIM
@given(trees(), st.integers(0, 1000))
def test_a_batch_is_never_empty_with_groups(
    tree: tuple[list[Share], dict[str, set[str]], dict[str, float]], seed: int
) -> None:
    shares = tree[0]
    rng = random.Random(seed)
    profiles = [
        Profile(one.name, chance=rng.choice([0.02, 0.3, 1.0]), own=(5, 40), output=(1, 12))
        for one in shares
        if not one.is_group
    ]
    engine = tenants(shares, profiles, seed, 30.0).run(100).engine
    assert all(step.batch for step in engine.log if step.queued or step.admitted)


# --- live changes ---------------------------------------------------------------------------------
def test_a_new_tree_leaves_everybody_what_he_owes() -> None:
    rng = random.Random(2)
    names = [f"c{i}" for i in range(5)]
    for seed in range(20):
        world = tenants([], [flood(name) for name in names], seed)
        engine = world.engine
        deficits = engine.policy.deficits  # type: ignore[attr-defined]
        for _ in range(25):
            world.run(rng.randint(0, 3))
            before = {name: deficits.credit(name) for name in names}
            shares = [group("g", rng.choice([1.0, 3.0])), group("h", 2.0, rng.choice(["", "g"]))]
            shares += [Share(n, rng.choice([0.5, 1, 2]), rng.choice(["", "g", "h"])) for n in names]
            rng.shuffle(shares)
            deficits.set_shares(shares)
            assert {name: deficits.credit(name) for name in names} == before
        engine.step()
        assert all(step.batch for step in engine.log)


def test_shares_follow_a_change_of_weights() -> None:
    world = tenants([Share("a", 1.0), Share("b", 1.0)], [flood("a"), flood("b")])
    world.run(400)
    assert portions(world.engine)["a"] == pytest.approx(0.5, abs=0.05)
    world.engine.policy.deficits.set_shares([Share("a", 4.0)])  # type: ignore[attr-defined]
    before = dict(world.engine.served)
    world.run(500)
    a, b = (world.engine.served[c] - before[c] for c in "ab")
    assert a / (a + b) == pytest.approx(0.8, abs=0.03)


def test_debts_survive_a_new_tree_so_changing_it_pays_nobody() -> None:
    world = tenants([], [flood("a"), flood("b")], quantum=20.0)
    rng = random.Random(4)
    for _ in range(500):
        world.step()
        inside = rng.choice(["", "g"])
        world.engine.policy.deficits.set_shares(  # type: ignore[attr-defined]
            [group("g"), Share("a", 1.0, inside), Share("b", 1.0, inside)]
        )
    assert portions(world.engine)["a"] == pytest.approx(0.5, abs=0.05)


def test_groups_may_change_places() -> None:
    """The one inside the other, the other way round, in whichever order they are named."""
    for flip in (False, True):
        deficits = Deficits(10.0)
        deficits.set_shares([group("a"), group("b", 1.0, "a"), Share("c", 1.0, "b")])
        deficits.queue("c")
        new = [group("a", 1.0, "b"), group("b")]
        deficits.set_shares([*(reversed(new) if flip else new), Share("c", 1.0, "a")])
        deficits.refill()
        assert deficits.eligible("c")


@pytest.mark.parametrize(
    "shares",
    [
        [Share("a", 0.0)],
        [Share("a", -1.0)],
        [Share("a", float("nan"))],
        [Share("a", 1.0, "nowhere")],
        [Share("a", 1.0, "b"), Share("b")],
        [group("g", 1.0, "g")],
        [group("g", 1.0, "h"), group("h", 1.0, "g")],
        [group("g", 0.0)],
    ],
)
def test_a_tree_that_is_none_changes_nothing(shares: list[Share]) -> None:
    world = tenants(TREE, [flood("ann"), flood("solo")])
    world.run(50)
    accounts = Accounts(RULES)
    accounts.set_shares(TREE)
    deficits = world.engine.policy.deficits  # type: ignore[attr-defined]
    before = [(name, deficits.credit(name), deficits.share(name)) for name in deficits.clients()]
    for one in (deficits, accounts):
        with pytest.raises(ValueError):
            one.set_shares(shares)
    assert [(n, deficits.credit(n), deficits.share(n)) for n in deficits.clients()] == before
    assert accounts.deficits.share("ann") == 2 * RULES.quantum


# --- several models -------------------------------------------------------------------------------
def device(
    rules: ScheduleSettings, policy: type[DLPM] | type[VTC], models: int
) -> dict[str, float]:
    """One client floods all models of a device, which take turns; each has a client of its own
    besides. Returns the part of all service that each client got."""
    accounts = Accounts(rules)
    worlds = []
    for i in range(models):
        books = accounts.of_model(f"model{i}")
        engine = tenfold_engine(policy, rules, MEMORY, accounts=books)
        worlds.append(World(engine, [flood("many"), flood(f"one{i}")], seed=i))
    for _ in range(500):
        for world in worlds:
            world.step()
    total: dict[str, float] = {}
    for world in worlds:
        for client, service in world.engine.served.items():
            total[client] = total.get(client, 0.0) + service
    return {client: service / sum(total.values()) for client, service in total.items()}


@pytest.mark.parametrize("policy", [DLPM, VTC])
def test_a_client_of_four_models_gets_one_share_of_the_device(
    policy: type[DLPM] | type[VTC],
) -> None:
    got = device(RULES, policy, 4)
    assert got == pytest.approx(dict.fromkeys(got, 0.2), abs=0.03)


@pytest.mark.parametrize("policy", [DLPM, VTC])
def test_with_accounts_of_models_he_gets_one_in_each(policy: type[DLPM] | type[VTC]) -> None:
    rules = ScheduleSettings(quantum=100.0, admission="reserve", accounts="model")
    got = device(rules, policy, 4)
    assert got["many"] == pytest.approx(4 / 8, abs=0.03)
    assert got["one2"] == pytest.approx(1 / 8, abs=0.03)


def test_no_model_stands_still_while_its_queue_waits_for_another_forever() -> None:
    """Credit of a client on one model holds up rounds on all, but only until he has spent it."""
    accounts = Accounts(RULES)
    one = tenfold_engine(DLPM, RULES, MEMORY, accounts=accounts)
    two = tenfold_engine(DLPM, RULES, MEMORY, accounts=accounts)
    slow = World(one, [Profile("slow", depth=2, own=(5, 10), output=(60, 90))], seed=1)
    fast = World(two, [flood("fast")], seed=2)
    for _ in range(600):
        slow.step()
        fast.step()
    assert not any(a.queued and not a.batch for a in one.log)
    idle = sum(1 for a, b in zip(one.log, two.log, strict=True) if not a.batch and not b.batch)
    assert idle == 0
    t = Terms(100.0, LONGEST + 2.0 * 2 * MEMORY)
    ahead = abs(one.served["slow"] - two.served["fast"])
    assert ahead <= 2 * (t.unit + t.quantum)
