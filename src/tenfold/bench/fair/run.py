"""The whole comparison: every rival on every cell, seed by seed, in turn.

Rivals take turns within a seed, so that a machine whose speed drifts is unkind to all of them.
Results are handed over run by run; whoever holds them may stop and go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tenfold.bench.fair.cells import (
    QUANTUM,
    REAL_RIVALS,
    SIMULATED_RIVALS,
    Cell,
    Rival,
    real_cells,
    simulated_cells,
)
from tenfold.bench.fair.real import run_real
from tenfold.bench.fair.result import Scores, real_drift, scores, together
from tenfold.core.errors import ConfigError
from tenfold.fleet.simulator.simulate import simulate

KV_TOKEN_BYTES = 23_040
"""Keys and values of a token of SmolLM2-135M in float16."""

Progress = Callable[[str], None]

T = TypeVar("T")


@dataclass(slots=True)
class Plan:
    """``only``: parts of the names of cells to run; none: all. ``rivals`` likewise. ``seconds`` 0:
    as long as each cell says."""

    simulated: bool
    seeds: int = 3
    seconds: float = 0.0
    only: Sequence[str] = ()
    rivals: Sequence[str] = ()
    threads: int = 0

    def cells(self) -> list[Cell]:
        """Raises ConfigError where nothing is left."""
        found = simulated_cells() if self.simulated else real_cells()
        chosen = _named({one.name: one for one in found}, self.only, "cell")
        return [replace(one, seconds=self.seconds or one.seconds) for one in chosen]

    def competing(self) -> list[Rival]:
        """Raises ConfigError where nobody is left."""
        found = SIMULATED_RIVALS if self.simulated else REAL_RIVALS
        return _named({one.name: one for one in found}, self.rivals, "policy")


def _named(found: dict[str, T], wanted: Sequence[str], kind: str) -> list[T]:
    """Those that are named, or, where a name is nobody's, those that have it in theirs."""
    chosen = dict.fromkeys(
        name
        for part in wanted
        for name in ([part] if part in found else [one for one in found if part in one])
    )
    if wanted and not chosen:
        raise ConfigError(
            f"no {kind} is named like {', '.join(wanted)}; there are: {'; '.join(found)}"
        )
    return [one for name, one in found.items() if not wanted or name in chosen]


def compare(plan: Plan, path: Path | None, progress: Progress) -> Iterator[dict[str, Any]]:
    """One result a cell, when it is done. ``path``: the model of real cells."""
    rivals = plan.competing()
    for cell in plan.cells():
        runs: dict[str, list[Scores]] = {rival.name: [] for rival in rivals}
        for seed in range(plan.seeds):
            for rival in rivals:
                if seed and rival.once:
                    continue
                progress(f"{cell.name}, seed {seed + 1} of {plan.seeds}: {rival.name}")
                runs[rival.name].append(_one(plan, cell, rival, seed, path))
        yield {
            "cell": cell.name,
            "about": cell.about,
            "simulated": plan.simulated,
            "workers": cell.workers or 1,
            "seconds": cell.seconds,
            "kv_bytes": None if plan.simulated else cell.kv_bytes,
            "max_running": cell.max_running,
            "quantum": QUANTUM,
            "worker_quantum": cell.worker_quantum or None,
            "rivals": {name: together(found) for name, found in runs.items()},
            "runs": {name: [asdict(one) for one in found] for name, found in runs.items()},
        }


def _one(plan: Plan, cell: Cell, rival: Rival, seed: int, path: Path | None) -> Scores:
    if plan.simulated:
        result = simulate(cell.simulation(rival, seed))
        return scores(cell, result.run, max(one.share for one in result.drift))
    assert path is not None
    run = asyncio.run(run_real(path, cell, rival, seed, plan.threads))
    return scores(cell, run, real_drift(cell, rival, run, KV_TOKEN_BYTES))


ROWS = (
    ("service/s", "rate", "{:,.0f}"),
    ("Jain", "jain", "{:.3f}"),
    ("of computed", "computed_jain", "{:.3f}"),
    ("hit rate", "hit_rate", "{:.2f}"),
    ("program p50, s", "p50", "{:.2f}"),
    ("program p99, s", "p99", "{:.2f}"),
    ("first token p50, s", "ttft", "{:.2f}"),
)


def table(found: dict[str, Any]) -> list[list[str]]:
    """A row a rival: mean ± half of the 95 % interval (of one run alone: what it was), and the
    worst drift of its bound."""
    rows = []
    for name, one in found["rivals"].items():
        many = len(found["runs"][name]) > 1
        cells = [
            form.format(one[key]["mean"]) + (f" ± {form.format(one[key]['half'])}" if many else "")
            for _, key, form in ROWS
        ]
        worst = one["drift"]["worst"]
        rows.append([name, *cells, f"{worst:.3f}" if worst else "-"])
    return rows


COLUMNS = ("", *(title for title, _, _ in ROWS), "drift / bound")
