"""D2LPM's promises on a toy cluster whose workers run the real DLPM.

A step gives every running request a token; prompts are computed at admission; admission reserves
prompt and whole answer of the memory M, as the theorem needs. Everybody floods: every client always
has something queued at every worker, as the proof assumes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.core.settings import RoutingSettings, ScheduleSettings
from tenfold.kvcache.hashing import block_hashes
from tenfold.scheduling.accounts import Accounts
from tenfold.scheduling.base import PolicySetup, Waiting
from tenfold.scheduling.dlpm import DLPM
from tenfold.scheduling.routing.base import Routed
from tenfold.scheduling.routing.d2lpm import D2LPM

BLOCK = 4
MEMORY = 64
LONGEST = 24
OUTPUT = 6
UNIT = LONGEST + 2 * MEMORY
"""U of the paper: w_e L_input + w_q M."""


@dataclass
class Running:
    request: Waiting
    left: int
    held: int


@dataclass
class Worker:
    quantum: float
    cached: set[int] = field(default_factory=set)
    running: list[Running] = field(default_factory=list)
    service: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        schedule = ScheduleSettings(policy="dlpm", quantum=self.quantum)
        self.accounts = Accounts(schedule)
        self.policy = DLPM(PolicySetup(settings=schedule, accounts=self.accounts))
        self.queued: dict[str, Waiting] = {}

    def add(self, w: Waiting) -> None:
        w.matched = self.match(w)
        self.queued[w.id] = w
        self.policy.add(w)

    def match(self, w: Waiting) -> int:
        blocks = next((n for n, h in enumerate(w.hashes) if h not in self.cached), len(w.hashes))
        return min(blocks * BLOCK, w.prompt_tokens - 1)

    def step(self, now: float) -> list[Waiting]:
        """One step; the requests that ended."""
        for w in self.queued.values():
            w.matched = self.match(w)
        for w in self.policy.candidates(now):
            if sum(r.held for r in self.running) + w.prompt_tokens + OUTPUT > MEMORY:
                continue
            extend = w.prompt_tokens - self.match(w)
            self.policy.admitted(w, extend)
            self.policy.prefilled(w.client, extend)
            self.count(w.client, extend)
            self.cached.update(w.hashes)
            self.running.append(Running(w, OUTPUT, w.prompt_tokens + OUTPUT))
            del self.queued[w.id]
        decoded: dict[str, int] = {}
        for one in self.running:
            one.left -= 1
            decoded[one.request.client] = decoded.get(one.request.client, 0) + 1
        self.policy.decoded(decoded)
        for client, tokens in decoded.items():
            self.count(client, 2 * tokens)
        ended = [one.request for one in self.running if not one.left]
        self.running = [one for one in self.running if one.left]
        for w in ended:
            self.policy.finished(w.client)
        return ended

    def count(self, client: str, amount: float) -> None:
        self.service[client] = self.service.get(client, 0.0) + amount


class Cluster:
    """``prompts[client]`` makes up the client's next prompt."""

    def __init__(self, workers: int, clients: int, quantum: float, routing: float, seed: int):
        self.random = random.Random(seed)
        self.router = D2LPM(RoutingSettings(quantum=routing))
        self.workers = {f"w{n}": Worker(quantum) for n in range(workers)}
        for name in self.workers:
            self.router.join(name)
        self.clients = [f"c{n}" for n in range(clients)]
        self.quantum, self.routing = quantum, routing
        self.sent = 0
        self.totals: list[dict[str, float]] = [dict.fromkeys(self.clients, 0.0)]

    def prompt(self, client: str) -> list[int]:
        """Client 0 always begins alike, and never ends alike; the others do as they like."""
        sure = client == "c0"
        size = self.random.randint(BLOCK, LONGEST)
        start = [1] * 16 if sure else [self.random.randint(2, 9)] * self.random.choice([0, 8, 16])
        rest = [self.random.randint(10, 1 << 20) for _ in range(LONGEST)]
        return (start + rest)[: max(size, 18) if sure else size]

    def send(self, client: str, now: float) -> None:
        tokens = self.prompt(client)
        self.sent += 1
        id, hashes = f"{self.sent}", block_hashes(tokens, BLOCK)
        routed = Routed(id, client, "m", len(tokens), hashes, OUTPUT, BLOCK)
        worker = self.router.choose(routed, frozenset(self.workers), now)
        w = Waiting(id, client, len(tokens), now, order=self.sent, hashes=hashes)
        self.workers[worker].add(w)

    def run(self, steps: int, depth: int, rate: int) -> bool:
        """Whether everybody had something queued everywhere, all the time."""
        for _ in range(depth):
            for client in self.clients:
                self.send(client, 0.0)
        flooded = True
        for step in range(steps):
            for client in self.clients:
                for _ in range(rate):
                    self.send(client, step)
            for name, worker in self.workers.items():
                for w in worker.step(step):
                    self.router.finished(w.id, OUTPUT, step)
                    self.router.inserted(name, "m", 0, w.hashes)
                flooded &= len({w.client for w in worker.queued.values()}) == len(self.clients)
            self.check()
            self.totals.append(
                {c: sum(w.service.get(c, 0.0) for w in self.workers.values()) for c in self.clients}
            )
        return flooded

    def check(self) -> None:
        for client in self.clients:
            for name, worker in self.workers.items():
                assert self.router.credit(client, name) <= self.routing
                assert -UNIT < worker.accounts.deficits.credit(client) <= self.quantum

    def worst(self) -> float:
        """The largest difference of what two clients got in any interval."""
        found = 0.0
        for f, g in combinations(self.clients, 2):
            gaps = [total[f] - total[g] for total in self.totals]
            found = max(found, max(gaps) - min(gaps))
        return found

    @property
    def bound(self) -> float:
        return 2 * len(self.workers) * (UNIT + self.quantum)


@settings(max_examples=12, deadline=None)
@given(
    workers=st.integers(1, 3),
    clients=st.integers(2, 3),
    quantum=st.sampled_from([10.0, 60.0, 200.0]),
    routing=st.sampled_from([1.0, 40.0, 300.0]),
    seed=st.integers(0, 1000),
)
def test_floods_share_a_cluster_within_the_bound(
    workers: int, clients: int, quantum: float, routing: float, seed: int
) -> None:
    cluster = Cluster(workers, clients, quantum, routing, seed)
    assert cluster.run(steps=60, depth=8 * workers + 40, rate=workers)
    assert cluster.worst() <= cluster.bound


def test_without_deficits_at_workers_the_bound_breaks() -> None:
    """Q^w without end is stickiness: the client with one prefix is served by one worker only."""
    fair, sticky = Cluster(3, 2, 50.0, 100.0, 1), Cluster(3, 2, 50.0, float("inf"), 1)
    assert fair.run(steps=160, depth=60, rate=1) and fair.worst() <= fair.bound
    assert not sticky.run(steps=160, depth=60, rate=1)
    assert sticky.worst() > sticky.bound
