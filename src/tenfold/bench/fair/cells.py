"""What the comparison of fair policies runs: workloads, machines, and who competes.

A *cell* is a set of workloads on a machine. Real cells are scaled down to two cores and a model of
135 M parameters; simulated ones have the papers' lengths and an A100 for each worker. The papers
give neither rates nor numbers of clients nor, for their main figure, quanta: those here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenfold.core.settings import RoutingSettings, ScheduleSettings
from tenfold.fleet.simulator.settings import ClusterSettings, RunSettings, Simulation
from tenfold.fleet.workloads.base import Scenario, Workload
from tenfold.fleet.workloads.documents import LongContextQA
from tenfold.fleet.workloads.judge import Judge
from tenfold.fleet.workloads.trees import TreeOfThoughts

Admission = Literal["optimistic", "reserve"]

QUANTUM = 4000.0
"""Q^u of every DLPM row: the one at which the paper's Figure 1 keeps 93 % of LPM's speed."""

TREES = 384
"""Trees of thoughts that a client has under way in simulated cells: four times what the paper's
service rates and medians give, multiplied (Little's law). With a quarter of them caches hold most
of what VTC brings together again, and it loses less."""

MAX_RUNNING = 1024
"""Of a simulated worker: memory is what bounds it."""


@dataclass(slots=True, frozen=True)
class Rival:
    """A policy in each worker and, over several workers, one that routes. ``once``: one seed is
    enough, as nothing is asked of it."""

    name: str
    policy: str
    routing: str = ""
    admission: Admission = "reserve"
    once: bool = False

    def schedule(self) -> ScheduleSettings:
        return ScheduleSettings(policy=self.policy, quantum=QUANTUM, admission=self.admission)


@dataclass(slots=True, frozen=True)
class Cell:
    """``bad``: what the names of clients that misbehave begin with. ``workers`` 0: this machine,
    with ``kv_bytes`` for keys and values (a token of SmolLM2-135M takes 22.5 KiB in float16);
    else so many simulated ones, for so many ``seconds``. ``worker_quantum``: Q^w of D2LPM, some
    sixty of the cell's prompts; with a few only, it keeps moving them away from their prefixes."""

    name: str
    about: str
    workloads: tuple[Workload, ...]
    bad: str
    workers: int = 0
    seconds: float = 40.0
    kv_bytes: int = 90 << 20
    max_running: int = 8
    worker_quantum: float = 0.0

    def simulation(self, rival: Rival, seed: int) -> Simulation:
        """The cell as ``fleet.simulator`` takes it."""
        return Simulation(
            ClusterSettings(workers=self.workers, max_running=self.max_running),
            rival.schedule(),
            RoutingSettings(policy=rival.routing, quantum=self.worker_quantum),
            RunSettings(seconds=self.seconds, warm_up=WARM_UP * self.seconds, seed=seed),
            list(self.workloads),
        )


WARM_UP = 0.1
"""Of a run's time, that counts for nothing."""

REAL_RIVALS = (
    Rival("fcfs", "fcfs", once=True),
    Rival("lpm", "lpm"),
    Rival("k-lpm", "k-lpm", once=True),
    Rival("vtc", "vtc"),
    Rival("dlpm", "dlpm"),
    Rival("dlpm, optimistic", "dlpm", admission="optimistic"),
)

SIMULATED_RIVALS = (
    Rival("round robin + lpm", "lpm", "round-robin"),
    Rival("preble-like + lpm", "lpm", "preble-like"),
    Rival("cache-aware + lpm", "lpm", "cache-aware", once=True),
    Rival("round robin + vtc", "vtc", "round-robin"),
    Rival("d2lpm + dlpm", "dlpm", "d2lpm"),
)


def _documents(scenario: Scenario) -> LongContextQA:
    """Four open documents a client, of 536 tokens: a fortieth of the paper's. Answers of 15 tokens
    as there. Open loop, as there; more is asked than can be answered, by every client."""
    return LongContextQA(
        scenario=scenario, rate=6.0, open=4, questions=12, document=536, question=24
    )


def real_cells() -> list[Cell]:
    """One misbehaving client beside two others; all of them ask for more than their share."""
    return [
        Cell(
            "long-context QA, S1",
            "3 clients in an open loop (Poisson), 6 questions a second of each and 24 of client 0, "
            "which is more than can be answered; each about 4 documents of 536 tokens, a fortieth "
            "of the paper's; answers of 15, the paper's; memory holds 7 documents",
            (_documents("requests"),),
            "qa-0",
        ),
        Cell(
            "long-context QA, S2",
            "3 clients in an open loop (Poisson), 6 questions a second of each; documents of 536 "
            "tokens, those of client 0 twice as long; else as S1",
            (_documents("prefix"),),
            "qa-0",
        ),
        Cell(
            "tree-of-thoughts, S1",
            "3 clients with 4 trees each under way; client 0 branches by 4 (340 requests a tree), "
            "the others by 2 (30); questions of 68 tokens and thoughts of 32, an eighth of the "
            "paper's",
            (TreeOfThoughts(clients=3, concurrent=4, scenario="requests", question=68, output=32),),
            "tree-0",
        ),
        Cell(
            "tree-of-thoughts, S2",
            "3 clients with 4 trees each under way, branches by 2; questions of 68 tokens, those "
            "of client 0 ten times as long; thoughts of 32: an eighth of the paper's",
            (TreeOfThoughts(clients=3, concurrent=4, scenario="prefix", question=68, output=32),),
            "tree-0",
            kv_bytes=120 << 20,
        ),
    ]


def simulated_cells() -> list[Cell]:
    """The papers' lengths on 8 and 2 workers. Where D2LPM should win, and where it does not."""
    return [
        Cell(
            "tree-of-thoughts, S1, 8 workers",
            f"3 clients with {TREES} trees each under way; client 0 branches by 4, the others by 2",
            (TreeOfThoughts(clients=3, concurrent=TREES, scenario="requests"),),
            "tree-0",
            workers=8,
            seconds=200.0,
            max_running=MAX_RUNNING,
            worker_quantum=160_000.0,
        ),
        Cell(
            "tree-of-thoughts, S2, 8 workers",
            f"3 clients with {TREES} trees each under way, branches by 2; questions of client 0 "
            "ten times as long",
            (TreeOfThoughts(clients=3, concurrent=TREES, scenario="prefix"),),
            "tree-0",
            workers=8,
            seconds=200.0,
            max_running=MAX_RUNNING,
            worker_quantum=160_000.0,
        ),
        Cell(
            "LLM as judge, S1, 8 workers",
            "3 clients with 256 articles each under way; client 0 judges 16 dimensions, others 2",
            (Judge(clients=3, concurrent=256, scenario="requests"),),
            "judge-0",
            workers=8,
            seconds=150.0,
            max_running=MAX_RUNNING,
            worker_quantum=160_000.0,
        ),
        Cell(
            "long-context QA, S1, 8 workers",
            "3 clients in an open loop (Poisson), 4 questions a second of each and 16 of client 0, "
            "each about 8 documents",
            (LongContextQA(clients=3, rate=4.0, open=8, scenario="requests"),),
            "qa-0",
            workers=8,
            seconds=300.0,
            max_running=MAX_RUNNING,
            worker_quantum=1_280_000.0,
        ),
        Cell(
            "long-context QA, S2, 2 workers",
            "3 clients in an open loop (Poisson), a question a second of each about 8 documents; "
            "those of client 0 are twice as long",
            (LongContextQA(clients=3, rate=1.0, open=8, scenario="prefix"),),
            "qa-0",
            workers=2,
            seconds=1200.0,
            max_running=MAX_RUNNING,
            worker_quantum=1_280_000.0,
        ),
    ]
