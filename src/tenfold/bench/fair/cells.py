"""What the comparison of fair policies runs: workloads, machines, and who competes.

A *cell* is a workload on a machine. Real cells are scaled down to two cores and a model of 135 M
parameters; simulated ones have the papers' lengths and an A100 per worker. The papers give neither
rates nor numbers of clients nor, for their main figure, quanta: those here are our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenfold.core.settings import RoutingSettings, ScheduleSettings
from tenfold.fleet.simulator.settings import ClusterSettings, RunSettings, Simulation
from tenfold.fleet.workloads.base import Workload
from tenfold.fleet.workloads.documents import LongContextQA
from tenfold.fleet.workloads.judge import Judge
from tenfold.fleet.workloads.trees import TreeOfThoughts

Admission = Literal["optimistic", "reserve"]

QUANTUM = 1000.0
"""Q^u of every DLPM row: the one at which the paper's Figure 1 keeps 93 % of LPM's speed."""

WORKER_QUANTUM = 4000.0
"""Q^w of every D2LPM row."""


@dataclass(slots=True, frozen=True)
class RealCell:
    """``kv_bytes``: the memory for keys and values; a token of SmolLM2-135M in float16 takes
    22.5 KiB. ``bad``: the client that misbehaves."""

    name: str
    about: str
    workload: Workload
    kv_bytes: int = 136 << 20
    max_running: int = 16
    bad: str = ""


@dataclass(slots=True, frozen=True)
class SimulatedCell:
    name: str
    about: str
    workload: Workload
    workers: int
    seconds: float
    bad: str = ""

    def simulation(self, rival: Rival, seed: int) -> Simulation:
        """The cell as ``fleet.simulator`` takes it."""
        return Simulation(
            ClusterSettings(workers=self.workers),
            ScheduleSettings(policy=rival.policy, quantum=QUANTUM, admission=rival.admission),
            RoutingSettings(policy=rival.routing, quantum=WORKER_QUANTUM),
            RunSettings(seconds=self.seconds, warm_up=0.1 * self.seconds, seed=seed),
            [self.workload],
        )


@dataclass(slots=True, frozen=True)
class Rival:
    """A policy in each worker and, over several workers, one that routes."""

    name: str
    policy: str
    routing: str = ""
    admission: Admission = "reserve"

    def schedule(self) -> ScheduleSettings:
        return ScheduleSettings(policy=self.policy, quantum=QUANTUM, admission=self.admission)


REAL_RIVALS = (
    Rival("fcfs", "fcfs"),
    Rival("lpm", "lpm"),
    Rival("k-lpm", "k-lpm"),
    Rival("vtc", "vtc"),
    Rival("dlpm", "dlpm"),
)

SIMULATED_RIVALS = (
    Rival("round robin + lpm", "lpm", "round-robin"),
    Rival("preble-like + lpm", "lpm", "preble-like"),
    Rival("cache-aware + lpm", "lpm", "cache-aware"),
    Rival("round robin + vtc", "vtc", "round-robin"),
    Rival("d2lpm + dlpm", "dlpm", "d2lpm"),
)


def real_cells() -> list[RealCell]:
    tree = TreeOfThoughts(
        clients=3, concurrent=4, scenario="requests", question=136, output=16, spread=0.2
    )
    documents = LongContextQA(
        clients=3, rate=0.0, concurrent=12, scenario="prefix", open=4, questions=12,
        document=640, question=24, output=12, longer=2.0,
    )  # fmt: skip
    judge = Judge(clients=3, concurrent=6, scenario="requests", article=384, output=16)
    return [
        RealCell(
            "tree-of-thoughts, S1",
            "3 clients with 4 trees each under way; client 0 branches by 4 (340 requests a tree), "
            "the others by 2 (30); questions of 136 tokens, thoughts of 16",
            tree,
            bad="tree-0",
        ),
        RealCell(
            "long-context QA, S2",
            "3 clients with 12 questions each under way about 4 documents of 640 tokens; those of "
            "client 0 are twice as long; answers of 12",
            documents,
            kv_bytes=180 << 20,
            bad="qa-0",
        ),
        RealCell(
            "LLM as judge, S1",
            "3 clients with 6 articles of 384 tokens each under way; client 0 judges 16 "
            "dimensions, the others 2; answers of 16",
            judge,
            bad="judge-0",
        ),
    ]


def simulated_cells() -> list[SimulatedCell]:
    return [
        SimulatedCell(
            "tree-of-thoughts, S1, 8 workers",
            "3 clients with 8 trees each under way; client 0 branches by 4, the others by 2; the "
            "paper's lengths",
            TreeOfThoughts(clients=3, concurrent=8, scenario="requests"),
            workers=8,
            seconds=240.0,
            bad="tree-0",
        ),
        SimulatedCell(
            "long-context QA, S2, 2 workers",
            "3 clients with 12 questions each under way; documents of client 0 are twice as long; "
            "the paper's lengths",
            LongContextQA(clients=3, rate=0.0, concurrent=12, scenario="prefix"),
            workers=2,
            seconds=900.0,
            bad="qa-0",
        ),
        SimulatedCell(
            "LLM as judge, S1, 8 workers",
            "3 clients with 48 articles each under way; client 0 judges 16 dimensions, the others "
            "2; the paper's lengths",
            Judge(clients=3, concurrent=48, scenario="requests"),
            workers=8,
            seconds=240.0,
            bad="judge-0",
        ),
    ]
