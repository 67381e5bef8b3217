"""What the papers claim of their policies, as checks of an engine's log: [] or what is wrong.

U = w_e L + w_q M, with L the longest prompt and M the memory; Q is the quantum of weight 1. Clients
are "busy" in a step when their queue was never empty in it, also not in the middle of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fair_model import Engine, Job, Step, Watcher

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Terms:
    """What the bounds are made of. ``phi``: the clients' weights, 1 where nothing is said."""

    quantum: float
    unit: float
    phi: Weights = field(default_factory=dict)

    def weight(self, client: str) -> float:
        return self.phi.get(client, 1.0)


def terms(engine: Engine, quantum: float, longest: int, phi: Weights | None = None) -> Terms:
    unit = engine.extend_weight * longest + engine.output_weight * engine.memory
    return Terms(quantum, unit, phi or {})


Series = Callable[[Step], Mapping[str, float]]


def promised(step: Step) -> Mapping[str, float]:
    return step.promised


def served(step: Step) -> Mapping[str, float]:
    return step.served


def runs(log: Sequence[Step], *clients: str) -> Iterator[range]:
    """The longest runs of steps in which all of these were busy."""
    start = None
    for i, step in enumerate(log):
        if all(client in step.busy for client in clients):
            start = i if start is None else start
        elif start is not None:
            yield range(start, i)
            start = None
    if start is not None:
        yield range(start, len(log))


def _curve(log: Sequence[Step], run: range, f: str, g: str, t: Terms, of: Series) -> list[float]:
    """W_g / phi_g - W_f / phi_f before the run and after each of its steps."""
    points = [dict[str, float](), *(of(log[i]) for i in run)]
    if run.start:
        points[0] = dict(of(log[run.start - 1]))
    return [p.get(g, 0.0) / t.weight(g) - p.get(f, 0.0) / t.weight(f) for p in points]


def largest_gap(log: Sequence[Step], f: str, g: str, t: Terms, of: Series = promised) -> float:
    """The largest |W_f/phi_f - W_g/phi_g| over an interval in which both are busy."""
    gaps = [0.0]
    for run in runs(log, f, g):
        curve = _curve(log, run, f, g, t, of)
        gaps.append(max(curve) - min(curve))
    return max(gaps)


def largest_lag(log: Sequence[Step], f: str, g: str, t: Terms, of: Series = promised) -> float:
    """How far f falls behind g, over an interval in which f is busy, whatever g does."""
    worst = 0.0
    for run in runs(log, f):
        least = float("inf")
        for value in _curve(log, run, f, g, t, of):
            least = min(least, value)
            worst = max(worst, value - least)
    return worst


def pair_bound(t: Terms, f: str, g: str) -> float:
    """2 (U + Q), and its weighted form."""
    return t.unit / t.weight(f) + t.unit / t.weight(g) + 2 * t.quantum


def p1_range(engine: Engine, t: Terms) -> list[str]:
    """-U < q <= phi Q at every moment. (Refunds may lift a client above.)"""
    wrong = []
    for i, step in enumerate(engine.log):
        for client, low in step.low.items():
            if low <= -t.unit:
                wrong.append(f"step {i}: {client} owes {-low}, U is {t.unit}")
        for client, high in step.high.items():
            most = t.weight(client) * t.quantum + engine.extend_weight * engine.refunded
            if high > most + 1e-6:
                wrong.append(f"step {i}: {client} has {high}, a quantum is {most}")
    return wrong


def p2_backlogged(engine: Engine, t: Terms, of: Series = promised, extra: float = 0) -> list[str]:
    clients = sorted(engine.clients)
    return [
        f"{f}, {g}: {gap} > {bound}"
        for n, f in enumerate(clients)
        for g in clients[n + 1 :]
        if (gap := largest_gap(engine.log, f, g, t, of)) > (bound := pair_bound(t, f, g) + extra)
    ]


def p3_nobody_overtakes(engine: Engine, t: Terms, of: Series = promised) -> list[str]:
    clients = sorted(engine.clients)
    return [
        f"{f} fell {lag} behind {g}, bound {bound}"
        for f in clients
        for g in clients
        if f != g and (lag := largest_lag(engine.log, f, g, t, of)) > (bound := pair_bound(t, f, g))
    ]


def p5_conservation(engine: Engine, t: Terms) -> list[str]:
    """Between steps a client's q changes by whole quanta, at most one a round, less what it was
    promised; and by exactly one a round where it was busy."""
    wrong = []
    before = Step()
    for i, step in enumerate(engine.log):
        for client, credit in step.credit.items():
            spent = step.promised.get(client, 0.0) - before.promised.get(client, 0.0)
            got = credit - before.credit.get(client, 0.0) + spent
            quanta = got / (t.quantum * t.weight(client))
            rounds = step.rounds[client] - before.rounds.get(client, 0)
            if abs(quanta - round(quanta)) > 1e-6 or not 0 <= round(quanta) <= rounds:
                wrong.append(f"step {i}: {client} got {got} in {rounds} rounds")
            elif client in step.busy and client in before.credit and round(quanta) != rounds:
                wrong.append(f"step {i}: {client}, queued, got {quanta} quanta of {rounds}")
        before = step
    return wrong


def p5_ledger(engine: Engine, t: Terms) -> list[str]:
    """As above, between the beginning and the end alone."""
    wrong = []
    for client in engine.clients:
        got = engine.log[-1].credit[client] + engine.promised[client]
        quanta = got / (t.quantum * t.weight(client))
        if abs(quanta - round(quanta)) > 1e-6:
            wrong.append(f"{client}: credit and charges make {quanta} quanta")
    return wrong


def p6_never_empty(engine: Engine) -> list[str]:
    return [
        f"step {i}: nothing runs and {step.queued} wait"
        for i, step in enumerate(engine.log)
        if step.queued and not step.batch
    ]


def p7_passes_end(engine: Engine) -> list[str]:
    return [
        f"step {i}: {step.tried} tried of {step.queued_before}"
        for i, step in enumerate(engine.log)
        if step.tried > step.queued_before
    ]


class PassWatcher(Watcher):
    """P6 and P8, where only the middle of a pass shows them. ``eligible``: q > 0."""

    def __init__(self, eligible: Callable[[str], bool]) -> None:
        self.eligible = eligible
        self.problems: list[str] = []
        self.tried: set[str] = set()
        self.steady: set[str] = set()
        self.blocked_by_credit = 0

    def starts(self, engine: Engine) -> None:
        self.tried = set()
        self.steady = {client for client in engine.clients if self.eligible(client)}

    def tries(self, engine: Engine, job: Job, fits: bool) -> None:
        self.steady = {client for client in self.steady if self.eligible(client)}
        self.tried.add(job.id)
        if not self.eligible(job.client):
            self.problems.append(f"{job.id} was tried without credit")
        if not fits:
            return
        mine = _place(engine, job)
        for other in engine.queue.values():
            if other is job or other.id in self.tried or other.client not in self.steady:
                continue
            if _place(engine, other) < mine and engine.fits(other):
                places = f"{mine}, {_place(engine, other)}"
                self.problems.append(f"{job.id} went before {other.id}: {places}")

    def passed(self, engine: Engine) -> None:
        waiting = [job for job in engine.queue.values() if engine.fits(job)]
        with_credit = {job.client for job in engine.queue.values() if self.eligible(job.client)}
        for job in waiting:
            if job.client in with_credit:
                self.problems.append(f"{job.id} fits, has credit, and was not admitted")
            elif not with_credit:
                self.problems.append(f"{job.id} fits, and nobody queued has credit")
            else:
                self.blocked_by_credit += 1


def _place(engine: Engine, job: Job) -> tuple[int, bool, int, int]:
    w = job.waiting
    matched = min(job.shared, engine.cache.get(job.prefix, 0))
    return (w.priority, not w.preempted, -matched, w.order)
