"""What one run of a cell says, and what its seeds say together.

Service is as clients see it: every prompt token, and twice every output token. A call that was not
answered by the end counts as answered then, so a policy that starves a client does not look quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np

from tenfold.bench.fair.cells import WARM_UP, Cell, Rival
from tenfold.fleet.simulator.drift import Limits, worst_drift
from tenfold.fleet.workloads.outcome import Outcome, Run
from tenfold.fleet.workloads.summary import summarise

STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Student's t, two-sided, 95 %, by the number of values."""


@dataclass(slots=True)
class Scores:
    """``rate``: service a second. ``jain``: over the time in which every client had something
    asked, ``contended`` seconds. ``p50`` and ``p99``: seconds from asked to answered of the clients
    that behave, each client's own and then their mean, so that one who starves and asks little
    counts as much as the others; ``ttft``: the median to the first token, likewise. ``drift``: the
    widest gap between two clients, of the policy's bound (0: none)."""

    rate: float
    jain: float
    contended: float
    hit_rate: float
    p50: float
    p99: float
    ttft: float
    drift: float
    failed: int


def scores(cell: Cell, run: Run, drift: float) -> Scores:
    """Of one run."""
    warm = WARM_UP * cell.seconds
    total = summarise(run, warm)
    whole: dict[str, list[float]] = {}
    first: dict[str, list[float]] = {}
    for one in run.calls:
        if not one.client.startswith(cell.bad):
            ended = one.last if one.finished else run.seconds
            began = one.first if one.first >= 0 else run.seconds
            if ended >= warm:
                whole.setdefault(one.client, []).append(ended - one.at)
                first.setdefault(one.client, []).append(began - one.at)
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
    )


def real_drift(cell: Cell, rival: Rival, run: Run, token_bytes: int) -> float:
    """The widest gap of a real run, of its bound."""
    limits = Limits(rival.schedule(), cell.max_running, cell.kv_bytes // token_bytes)
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
        values = np.array([getattr(one, name) for one in runs], dtype=float)
        half = 0.0
        if len(values) > 1:
            student = STUDENT.get(len(values), 1.96)
            half = student * float(values.std(ddof=1)) / sqrt(len(values))
        found[name] = {"mean": float(values.mean()), "half": half}
    found["drift"]["worst"] = max(one.drift for one in runs)
    return found
