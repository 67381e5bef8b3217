"""What a trace of many models looks like: the numbers in which published traces are described.

A model is *active* from a request to the next one while no gap between them is longer than
``ACTIVE_GAP``; the published share of active models and number of changes of the active set come
with no definition, so this one is ours. An *idle gap* is one of more than ten seconds, as the Prism
paper has it (section 2). Does not know where a trace is from.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tenfold.fleet.workloads.trace import Asked

ACTIVE_GAP = 60.0
IDLE_GAP = 10.0
FEWEST = 20
"""Gaps from which a coefficient of variation is taken."""


@dataclass(slots=True)
class ModelTraffic:
    """``cv``: of the gaps between its requests, 0 where there are too few. ``idle_gaps``: of more
    than ten seconds, an hour; ``idle``: their share of the time, the ends of the trace included."""

    requests: int = 0
    rate: float = 0.0
    cv: float = 0.0
    idle_gaps: float = 0.0
    idle: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0


@dataclass(slots=True)
class TraceStatistics:
    """``active``: the share of models active at a time, on average; ``changes``: models that become
    active or cease to, an hour. ``top`` and ``last``: shares of all requests that the most and the
    least popular model have. ``days``: the mean correlation of the models' rates between a day and
    the next; None with a single day. Lengths: median and 99th percentile, in tokens."""

    requests: int
    seconds: float
    rate: float
    active: float
    changes: float
    top: float
    last: float
    days: float | None
    prompts: tuple[float, float]
    outputs: tuple[float, float]
    models: dict[str, ModelTraffic] = field(default_factory=dict)


def describe(rows: Sequence[Asked], seconds: float = 0.0, day: float = 86_400.0) -> TraceStatistics:
    """Of a trace by time, at least one request long. ``seconds``: how long it is; 0: until the last
    request."""
    seconds = seconds or max(rows[-1].at, 1e-9)
    of: defaultdict[str, list[Asked]] = defaultdict(list)
    for row in rows:
        of[row.model].append(row)
    spans = {name: _spans([row.at for row in mine]) for name, mine in of.items()}
    active = sum(stop - start for own in spans.values() for start, stop in own)
    inner = [at for own in spans.values() for span in own for at in span if 0 < at < seconds]
    counts = sorted((len(mine) for mine in of.values()), reverse=True)
    hours = seconds / 3600
    return TraceStatistics(
        requests=len(rows),
        seconds=seconds,
        rate=len(rows) / seconds,
        active=active / seconds / len(of),
        changes=len(inner) / hours,
        top=counts[0] / len(rows),
        last=counts[-1] / len(rows),
        days=_correlation(rows, list(of), seconds, day),
        prompts=_lengths([row.prompt for row in rows]),
        outputs=_lengths([row.output for row in rows]),
        models={
            name: _traffic(of[name], seconds)
            for name in sorted(of, key=lambda name: -len(of[name]))
        },
    )


def _spans(times: Sequence[float]) -> list[tuple[float, float]]:
    """From the first to the last request of each stretch without a long gap."""
    found = [(times[0], times[0])]
    for at in times[1:]:
        if at - found[-1][1] > ACTIVE_GAP:
            found.append((at, at))
        else:
            found[-1] = (found[-1][0], at)
    return found


def _traffic(rows: Sequence[Asked], seconds: float) -> ModelTraffic:
    times = [row.at for row in rows]
    gaps = [after - before for before, after in pairwise(times)]
    around = [times[0], *gaps, seconds - times[-1]]
    idle = [gap for gap in around if gap > IDLE_GAP]
    cv = float(np.std(gaps) / np.mean(gaps)) if len(gaps) >= FEWEST else 0.0
    return ModelTraffic(
        requests=len(rows),
        rate=len(rows) / seconds,
        cv=cv,
        idle_gaps=len(idle) / (seconds / 3600),
        idle=sum(idle) / seconds,
        prompt_tokens=sum(row.prompt for row in rows) / len(rows),
        output_tokens=sum(row.output for row in rows) / len(rows),
    )


def _lengths(values: Sequence[int]) -> tuple[float, float]:
    median, high = np.percentile(values, [50, 99]).tolist()
    return median, high


def _correlation(
    rows: Sequence[Asked], names: Sequence[str], seconds: float, day: float
) -> float | None:
    """Pearson's, of the models' counts on one day and on the next, the mean over pairs of days."""
    whole = int(seconds // day)
    if whole < 2 or len(names) < 2:
        return None
    counts = Counter((int(row.at // day), row.model) for row in rows)
    table = np.array([[counts[number, name] for name in names] for number in range(whole)], float)
    found = [
        float(np.corrcoef(one, other)[0, 1])
        for one, other in pairwise(table)
        if one.std() and other.std()
    ]
    return sum(found) / len(found) if found else None
