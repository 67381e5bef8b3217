"""What one run of a cell says, and what its seeds say together.

Service is as clients see it: every prompt token, and twice every output token. What was not
answered by the end counts as answered then, so a policy that starves a client does not look quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tenfold.bench.estimate import Estimate
from tenfold.bench.fair.cells import WARM_UP, Cell, Rival
from tenfold.fleet.simulator.drift import Limits, worst_drift
from tenfold.fleet.workloads.outcome import Outcome, Run
from tenfold.fleet.workloads.summary import summarise


@dataclass(slots=True)
class Scores:
    """``rate``: service a second. ``jain``: over the time in which every client had something
    asked, ``contended`` seconds; ``computed_jain``: of what was computed, cached tokens left out,
    which is what DLPM makes even. ``p50`` and ``p99``: seconds that whole programs (a tree of
    thoughts; a question about a document is one by itself) took the clients that behave, each
    client's own percentile and then their mean; ``ttft``: the median to the first token of a call,
    likewise. ``drift``: the widest gap between two clients, of the policy's bound (0: none)."""

    rate: float
    jain: float
    contended: float
    hit_rate: float
    p50: float
    p99: float
    ttft: float
    drift: float
    failed: int
    computed_jain: float = 1.0


@dataclass(slots=True)
class _Span:
    began: float
    ended: float


def scores(cell: Cell, run: Run, drift: float) -> Scores:
    """Of one run."""
    warm = WARM_UP * cell.seconds
    total = summarise(run, warm)
    programs: dict[str, dict[str, _Span]] = {}
    first: dict[str, list[float]] = {}
    for one in run.calls:
        if one.client.startswith(cell.bad):
            continue
        began = one.first if one.first >= 0 else run.seconds
        first.setdefault(one.client, []).append(began - one.at)
        mine = programs.setdefault(one.client, {})
        mine.setdefault(one.program, _Span(one.at, run.seconds))
    for ended in run.programs:
        if ended.client in programs:
            programs[ended.client][ended.name].ended = ended.ended
    whole = {
        client: [span.ended - span.began for span in mine.values() if span.ended >= warm]
        for client, mine in programs.items()
    }
    return Scores(
        total.service_rate,
        total.jain,
        total.contended_seconds,
        total.hit_rate,
        _mean_percentile(whole, 50),
        _mean_percentile(whole, 99),
        _mean_percentile(first, 50),
        drift,
        total.failed,
        total.computed_jain,
    )


TRANSIT = 0.01
"""Seconds from a client to the scheduler of a worker that is busy, at most. Clients answer within
half a millisecond of a step's end, where the next pass begins, too: without this a queue that a
pass found empty would be taken for one that never was."""


def real_drift(cell: Cell, rival: Rival, run: Run, token_bytes: int) -> float:
    """The widest gap of a real run, of its bound."""
    tokens = cell.kv_bytes // token_bytes
    limits = Limits(rival.schedule(), cell.max_running, tokens, transit=TRANSIT)
    return worst_drift("here", _told(run.calls), limits, {}, run.seconds).share


def _told(calls: Sequence[Outcome]) -> list[Outcome]:
    """Those whose cached tokens are known, and those that never began."""
    return [one for one in calls if one.finished or one.first < 0]


def _mean_percentile(of: dict[str, list[float]], share: float) -> float:
    """The mean over clients of each one's percentile."""
    if not of:
        return float("nan")
    return float(np.mean([np.percentile(values, share) for values in of.values()]))


def together(runs: Sequence[Scores]) -> dict[str, Any]:
    """Means over the seeds, each with the half-width of its 95 % interval."""
    found: dict[str, Any] = {}
    for name in asdict(runs[0]):
        found[name] = Estimate.of([float(getattr(one, name)) for one in runs])._asdict()
    found["drift"]["worst"] = max(one.drift for one in runs)
    return found
