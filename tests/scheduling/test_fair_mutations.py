"""The checks can fail: each property's sabotage of the package's policies, and who notices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import pytest
from fair_checks import (
    PassWatcher,
    largest_lag,
    p1_range,
    p2_backlogged,
    p3_nobody_overtakes,
    p5_conservation,
    p5_ledger,
    p6_never_empty,
    p7_passes_end,
    terms,
)
from fair_literal import LiteralDLPM
from fair_model import Engine, PrefixMatches, Profile, World, drain, tenfold_engine
from fair_worlds import Scene

from tenfold.core.settings import ScheduleSettings, Share
from tenfold.scheduling.accounts import Accounts
from tenfold.scheduling.base import Waiting
from tenfold.scheduling.client_queues import ClientQueues
from tenfold.scheduling.counters import Counters
from tenfold.scheduling.deficits import Account, Deficits
from tenfold.scheduling.dlpm import DLPM
from tenfold.scheduling.klpm import KLPM
from tenfold.scheduling.vtc import VTC

Patch = pytest.MonkeyPatch


# --- worlds that show a fault, and what is checked of them ---------------------------------------
HOT = Profile("hot", depth=30, shared=(40, 40), own=(10, 20), output=(5, 20))
COLD = Profile("cold", depth=30, own=(30, 60), output=(5, 20))
COME_AND_GO = Profile("guest", chance=0.4, on=10, off=20, own=(10, 60), output=(1, 20))


def scene(*profiles: Profile, quantum: float = 300.0, **more: object) -> Scene:
    rules = ScheduleSettings(quantum=quantum, admission="reserve")
    return Scene(400, rules, profiles, seed=7, **more)  # type: ignore[arg-type]


def watched(one: Scene, steps: int) -> list[str]:
    engine = one.engine(DLPM)
    watcher = PassWatcher(engine.policy.deficits.eligible)  # type: ignore[attr-defined]
    engine.watchers.append(watcher)
    one.world(engine).run(steps)
    return watcher.problems + p6_never_empty(engine) + p7_passes_end(engine)


def credit_range() -> list[str]:
    """P1, with chunks; input is dearer than output, and requests are small."""
    profile = Profile("a", depth=60, own=(5, 10), output=(1, 2))
    rules = ScheduleSettings(quantum=5.0, extend_weight=4.0, output_weight=1.0, admission="reserve")
    one = Scene(400, rules, (profile, replace(COME_AND_GO, name="b")), seed=7, chunk=20)
    engine = one.run(DLPM, 150)
    return p1_range(engine, one.terms(engine))


def savings() -> list[str]:
    """P1 of a client that pauses."""
    one = scene(HOT, COLD, COME_AND_GO)
    engine = one.run(DLPM, 200)
    return p1_range(engine, one.terms(engine))


def backlogged() -> list[str]:
    """P2."""
    one = scene(HOT, COLD)
    engine = one.run(DLPM, 500)
    return p2_backlogged(engine, one.terms(engine))


def weighted() -> list[str]:
    """P2, weighted."""
    one = scene(replace(HOT, weight=4.0), COLD)
    engine = one.run(DLPM, 500)
    return p2_backlogged(engine, one.terms(engine))


def latency() -> list[str]:
    """P4: what others get while a lone request waits."""
    one = scene(HOT, COLD, quantum=100.0)
    engine = one.engine(DLPM)
    World(engine, [HOT], seed=7).run(30)
    t = one.terms(engine)
    lone, before = engine.submit("cold", own=60, output=5), engine.promised["hot"]
    hot = World(engine, [HOT], seed=8)
    while not lone.started and engine.promised["hot"] - before <= 2 * (t.quantum + t.unit):
        hot.step()
    return [] if lone.started else ["the lone request waits for more than the bound"]


def visitors() -> list[str]:
    """P3: what a client that sends one large request at a time gets, against others with work."""
    attacker = Profile("attacker", one_at_a_time=True, own=(300, 300), output=(1, 1))
    one = scene(attacker, COLD, replace(COLD, name="other"), quantum=20.0)
    engine = one.run(DLPM, 800)
    return p3_nobody_overtakes(engine, one.terms(engine))


def books() -> list[str]:
    """P5."""
    one = scene(HOT, COLD, COME_AND_GO, aborts=0.3, chunk=30)
    engine = one.run(DLPM, 100)
    wrong = p5_conservation(engine, one.terms(engine))
    drain(engine, 2000)
    return wrong + p5_ledger(engine, one.terms(engine))


def passes() -> list[str]:
    """P6 to P8."""
    return watched(scene(HOT, COLD, replace(COLD, name="third"), quantum=15.0), 60)


def order() -> list[str]:
    """P8, where clients have credit most of the time."""
    mixed = replace(HOT, shared=(0, 40), prefixes=4)
    return watched(scene(mixed, COLD, quantum=5000.0), 60)


def groups() -> list[str]:
    """Sibling groups share evenly, however many clients they have."""
    accounts = Accounts(ScheduleSettings(quantum=100.0, admission="reserve"))
    names = [f"m{i}" for i in range(5)]
    group = Share("g", is_group=True)
    accounts.set_shares([group, *(Share(name, 1.0, "g") for name in names), Share("solo")])
    engine = tenfold_engine(DLPM, accounts.settings, 400, accounts=accounts)
    World(engine, [replace(COLD, name=name) for name in [*names, "solo"]], seed=1).run(500)
    part = engine.served["solo"] / sum(engine.served.values())
    return [] if abs(part - 0.5) < 0.05 else [f"solo got {part}"]


def algorithm() -> list[str]:
    """Algorithm 1, request by request."""
    one = scene(HOT, COLD, COME_AND_GO, quantum=40.0)
    ours = one.run(DLPM, 60)
    matches = PrefixMatches()
    theirs = Engine(LiteralDLPM(matches, one.settings, one.phi), matches, one.memory)
    one.world(theirs).run(60)
    return [] if ours.trace == theirs.trace else ["other admissions than Algorithm 1"]


def vtc_visitors() -> list[str]:
    """VTC: a client that comes back late has not saved anything up."""
    late = replace(COLD, name="late", on=300, off=300)
    one = Scene(400, ScheduleSettings(admission="reserve"), (COLD, late), seed=7)
    world = one.world(one.engine(VTC))
    for step in range(600):
        world.profiles = [COLD] if step < 300 else [COLD, replace(late, off=0)]
        world.step()
    engine = world.engine
    lag = largest_lag(engine.log, "cold", "late", terms(engine, 0.0, 60))
    bound = 4 * engine.output_weight * engine.memory
    return [] if lag <= bound else [f"cold fell {lag} behind, bound {bound}"]


def k_lpm_ages() -> list[str]:
    """k-LPM: a miss is served though hits keep coming."""
    rules = ScheduleSettings(k=4, admission="reserve")
    engine = tenfold_engine(KLPM, rules, 100)
    engine.submit("c", shared=40, own=10, prefix="hot")
    engine.step()
    miss = engine.submit("c", own=50, prefix="cold")
    for _ in range(100):
        for _ in range(4):
            engine.submit("c", shared=40, own=10, prefix="hot")
        engine.step()
    served = [id for _, id, _ in engine.trace]
    return [] if miss.id in served[:40] else ["the miss starved"]


# --- sabotage ------------------------------------------------------------------------------------
def no_lift(patch: Patch) -> None:
    patch.setattr(Counters, "_lift", lambda self: 0.0)


def full_input(patch: Patch) -> None:
    was = DLPM.admitted
    patch.setattr(DLPM, "admitted", lambda self, w, extend: was(self, w, w.prompt_tokens))


def refill_on_any(patch: Patch) -> None:
    """Whoever has no credit gets a round, whether or not somebody else has."""

    def refill(self: Deficits) -> bool:
        turn = self._next_turn(self._root)
        if turn is not None:
            self._root.rounds = max(turn, self._root.rounds)
            self._catch_up(self._root)
        return turn is not None

    patch.setattr(Deficits, "refill", refill)


def reset_on_return(patch: Patch) -> None:
    was = Deficits.queue

    def queue(self: Deficits, client: str) -> None:
        leaf = self._leaf(client)
        if not leaf.queued and not leaf.running:
            self._settle(leaf)
            leaf.q = 0.0
        was(self, client)

    patch.setattr(Deficits, "queue", queue)


def first_token_free(patch: Patch) -> None:
    admitted, decoded = DLPM.admitted, DLPM.decoded
    fresh: Counter[str] = Counter()

    def admit(self: DLPM, w: Waiting, extend_tokens: int) -> None:
        fresh[w.client] += 1
        admitted(self, w, extend_tokens)

    def decode(self: DLPM, counts: Mapping[str, int]) -> None:
        charged = {client: max(0, n - fresh[client]) for client, n in counts.items()}
        fresh.clear()
        decoded(self, charged)

    patch.setattr(DLPM, "admitted", admit)
    patch.setattr(DLPM, "decoded", decode)


def wait_for_the_first(patch: Patch) -> None:
    """Not skipping: the head of the queue holds up the others until its client has credit."""

    def candidates(self: DLPM, now: float) -> Iterator[Waiting]:
        self._refresh()
        while len(self._queues):
            self.deficits.refill()
            w = min(self._queues.all(), key=lambda w: (-w.matched, w.order))
            if not self.deficits.eligible(w.client):
                return
            yield w
            if w.id in self._queues:
                return

    patch.setattr(DLPM, "candidates", candidates)


def block_on_memory(patch: Patch) -> None:
    patch.setattr(DLPM, "blocking", True)


def no_refill_in_mid_pass(patch: Patch) -> None:
    candidates, refill = DLPM.candidates, Deficits.refill

    def once(self: DLPM, now: float) -> Iterator[Waiting]:
        refill(self.deficits)
        patch.setattr(Deficits, "refill", lambda self: False)
        yield from candidates(self, now)

    patch.setattr(DLPM, "candidates", once)


def unweighted(patch: Patch) -> None:
    was = Deficits.set_shares

    def set_shares(self: Deficits, shares: Iterable[Share]) -> None:
        was(self, [replace(share, weight=1.0) for share in shares])

    patch.setattr(Deficits, "set_shares", set_shares)


def no_pledge(patch: Patch) -> None:
    was = Deficits.charge
    patch.setattr(Deficits, "pledge", lambda self, client, amount: None)

    def charge(self: Deficits, client: str, amount: float, *, pledged: bool = False) -> None:
        was(self, client, amount)

    patch.setattr(Deficits, "charge", charge)


def one_round(patch: Patch) -> None:
    def refill(self: Deficits) -> bool:
        root = self._root
        if root.positive or self._next_turn(root) is None:
            return False
        root.rounds += 1
        self._catch_up(root)
        return bool(root.positive)

    patch.setattr(Deficits, "refill", refill)


def rounds_add_up(patch: Patch) -> None:
    """An idle client gets every round, though it has credit."""

    def settle(self: Deficits, node: Account) -> None:
        parent = node.parent
        assert parent is not None
        node.q += (parent.rounds - node.seen) * node.weight * self.quantum
        node.seen = parent.rounds

    patch.setattr(Deficits, "_settle", settle)


def first_come_first(patch: Patch) -> None:
    was = ClientQueues.__init__
    patch.setattr(ClientQueues, "__init__", lambda self, key: was(self, lambda w: 0))


def credit_of_zero(patch: Patch) -> None:
    """q >= 0 will do."""

    def eligible(self: Deficits, client: str) -> bool:
        self._settle(self._leaf(client))
        return self._leaf(client).credit >= 0

    patch.setattr(Deficits, "eligible", eligible)


def no_refund(patch: Patch) -> None:
    was = DLPM.finished
    patch.setattr(DLPM, "finished", lambda self, client, unused=0: was(self, client, 0))


def flat(patch: Patch) -> None:
    """Groups are ignored."""
    was = Deficits.set_shares

    def set_shares(self: Deficits, shares: Iterable[Share]) -> None:
        was(self, [replace(share, group="") for share in shares if not share.is_group])

    patch.setattr(Deficits, "set_shares", set_shares)


def never_the_oldest(patch: Patch) -> None:
    was = KLPM.__init__
    patch.setattr(KLPM, "__init__", lambda self, setup: was(self, setup, k=10**9))


@dataclass(frozen=True)
class Case:
    sabotage: Callable[[Patch], None]
    check: Callable[[], list[str]]


CASES = [
    Case(no_lift, vtc_visitors),
    Case(full_input, books),
    Case(refill_on_any, backlogged),
    Case(refill_on_any, latency),
    Case(reset_on_return, visitors),
    Case(first_token_free, books),
    Case(wait_for_the_first, passes),
    Case(block_on_memory, passes),
    Case(no_refill_in_mid_pass, passes),
    Case(unweighted, weighted),
    Case(no_pledge, credit_range),
    Case(one_round, passes),
    Case(rounds_add_up, savings),
    Case(first_come_first, order),
    Case(credit_of_zero, algorithm),
    Case(no_refund, books),
    Case(flat, groups),
    Case(never_the_oldest, k_lpm_ages),
]


@pytest.mark.parametrize("check", list(dict.fromkeys(case.check for case in CASES)))
def test_what_is_checked_holds(check: Callable[[], list[str]]) -> None:
    assert check() == []


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.sabotage.__name__}-{case.check.__name__}"
)
def test_sabotage_is_noticed(case: Case, monkeypatch: Patch) -> None:
    case.sabotage(monkeypatch)
    assert case.check(), f"{case.check.__name__} did not notice {case.sabotage.__name__}"
