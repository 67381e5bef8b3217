"""Step costs fitted to the log of a real engine, how wrong they are, and the file they live in.

    seconds = f(tokens) + row·R + read·C + attend·X

``tokens`` are all that the step computes, prompts' and decoding sequences'; f is a rising broken
line, since kernels compute eight tokens in less than eight times the time of one. R, C and X are
the step's decode rows, the tokens that they read, and chunk tokens times tokens before them. The
fit is of relative errors, so short and long steps count alike; outliers count little, and no cost
is negative. Every fifth step is kept out of it: the errors are those of steps never seen.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.core.errors import ConfigError
from tenfold.costs.formula import Formula
from tenfold.costs.step import StepShape

FORMAT = "tenfold step costs 2"

KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Numbers of tokens at which f may bend."""

LEAST = 12
"""Steps that must lie beyond a knot for f to bend there."""

KEPT_OUT = 5
"""One step in so many is for the error, not for the fit."""

CLIP = 0.1
"""A relative residual counts in full up to this."""

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Step:
    """One step of a log: its size, and the seconds until the next one could begin."""

    shape: StepShape
    seconds: float


@dataclass(slots=True)
class MeasuredCosts:
    """``curve``: tokens and seconds of f where it bends, rising; the rest in seconds a unit."""

    curve: list[tuple[int, float]]
    row: float = 0.0
    read: float = 0.0
    attend: float = 0.0


class Measured(Formula):
    """Fitted costs as a step model. Raises ValueError for a curve that does not rise."""

    def __init__(self, costs: MeasuredCosts) -> None:
        super().__init__()
        self._row, self._read, self._attend = costs.row, costs.read, costs.attend
        self._tokens = [tokens for tokens, _ in costs.curve]
        self._seconds = [seconds for _, seconds in costs.curve]
        if len(self._tokens) < 2 or not (_rising(self._tokens) and _rising(self._seconds)):
            raise ValueError(f"a curve of step costs must rise: {costs.curve}")

    def _curve(self, tokens: int) -> float:
        """Its first and last piece go on beyond its ends."""
        last = len(self._tokens) - 2
        piece = min(max(bisect_right(self._tokens, tokens) - 1, 0), last)
        low, high = self._tokens[piece], self._tokens[piece + 1]
        below, above = self._seconds[piece], self._seconds[piece + 1]
        return below + (above - below) * (tokens - low) / (high - low)

    def predict(self, shape: StepShape) -> float:
        rows = shape.decode_rows
        computed = self._curve(shape.prefill_tokens + rows + shape.draft_tokens)
        fixed = computed + self._row * rows + self._attend * shape.prefill_context
        return fixed + self._read * shape.decode_context

    def predict_decodes(self, shape: StepShape, steps: int) -> list[float]:
        rows, context = shape.decode_rows, shape.decode_context
        fixed = self._curve(rows) + self._row * rows + self._attend * 0
        last = context + rows * steps
        return [fixed + self._read * seen for seen in range(context + rows, last + 1, rows)]


def _rising(values: Sequence[float]) -> bool:
    return all(a <= b for a, b in pairwise(values))


@dataclass(slots=True)
class Calibrated:
    """Costs of one model on one machine. ``mape`` and ``median_error``: mean and median relative
    error on the steps that were kept out; ``total_error``: of their sum."""

    costs: MeasuredCosts
    model: str = ""
    machine: str = ""
    threads: int = 0
    steps: int = 0
    kept_out: int = 0
    mape: float = 0.0
    median_error: float = 0.0
    total_error: float = 0.0
    seen: dict[str, int] = field(default_factory=dict)
    """The largest step in the log, by the parts of its shape: beyond it the costs are a guess."""

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def fit_costs(log: Sequence[Step], *, model: str = "", machine: str = "") -> Calibrated:
    """Fit to four fifths of a log, and measure on the last. Raises ConfigError when it is short."""
    learnt = [step for number, step in enumerate(log) if number % KEPT_OUT]
    kept = [step for number, step in enumerate(log) if not number % KEPT_OUT]
    if len(learnt) < 3 * LEAST:
        raise ConfigError(f"{len(log)} steps are too few to fit costs to; log some hundreds")
    costs = _fit(learnt)
    predict = Measured(costs).predict
    predicted = np.array([predict(step.shape) for step in kept])
    seconds = np.array([step.seconds for step in kept])
    errors = np.abs(predicted / seconds - 1)
    names = [one.name for one in fields(StepShape)]
    return Calibrated(
        costs,
        model,
        machine,
        steps=len(log),
        kept_out=len(kept),
        mape=float(np.mean(errors)),
        median_error=float(np.median(errors)),
        total_error=float(predicted.sum() / seconds.sum() - 1),
        seen={name: max(getattr(step.shape, name) for step in log) for name in names},
    )


def _fit(log: Sequence[Step]) -> MeasuredCosts:
    shapes = [step.shape for step in log]
    seconds = np.array([step.seconds for step in log])
    tokens = np.array([s.prefill_tokens + s.decode_rows + s.draft_tokens for s in shapes])
    knots = [knot for knot in KNOTS if np.count_nonzero(tokens > knot) >= LEAST]
    knots = knots or [KNOTS[0]]
    rest = np.array([[s.decode_rows, s.decode_context, s.prefill_context] for s in shapes], float)
    rows = np.column_stack([np.ones(len(log)), _pieces(tokens, knots), rest])
    found = _robust(rows / seconds[:, None])
    base, rises = found[0], found[1 : 1 + len(knots)]
    curve = [(knots[0], float(base + rises[0] * knots[0]))]
    ends = [*knots[1:], 2 * knots[-1]]
    for low, high, rise in zip(knots, ends, [*rises[1:], rises[-1]], strict=False):
        curve.append((high, curve[-1][1] + float(rise) * (high - low)))
    return MeasuredCosts(curve, *(float(cost) for cost in found[1 + len(knots) :]))


def _pieces(tokens: NDArray[np.int_], knots: Sequence[int]) -> Floats:
    """Of each step, how many of its tokens lie before the first knot, before the second, …; the
    last piece has no end."""
    starts, ends = np.array([0, *knots[:-1]]), np.array([*knots[:-1], np.iinfo(np.int64).max])
    found: Floats = np.clip(tokens[:, None], starts, ends).astype(float) - starts
    return found


def _robust(rows: Floats) -> Floats:
    """Costs >= 0 with rows · costs as near to 1 as can be, outliers weighed down."""
    size = np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    scaled = rows / size
    weights = np.ones(len(rows))
    answer = np.zeros(rows.shape[1])
    for _ in range(12):
        answer = _nonnegative(scaled * weights[:, None], weights, answer)
        residual = np.abs(scaled @ answer - 1)
        weights = np.sqrt(np.minimum(1.0, CLIP / np.maximum(residual, 1e-12)))
    costs: Floats = answer / size
    return costs


def _nonnegative(rows: Floats, target: Floats, start: Floats) -> Floats:
    """The least squares solution with nothing negative, by coordinate descent."""
    gram, right = (rows.T @ rows).tolist(), (rows.T @ target).tolist()
    answer = start.tolist()
    for _ in range(20_000):
        moved = 0.0
        for i, line in enumerate(gram):
            if line[i] <= 0:
                continue  # nothing in the log has any of it
            slope = right[i] - sum(a * b for a, b in zip(line, answer, strict=True))
            value = max(0.0, answer[i] + slope / line[i])
            moved = max(moved, abs(value - answer[i]))
            answer[i] = value
        if moved <= 1e-9 * max(1.0, *answer):
            break
    return np.array(answer)


def save_costs(found: Calibrated, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found.to_json(), indent=2) + "\n")


def load_costs(path: Path) -> Calibrated:
    """Raises ConfigError for a file that ``save_costs`` did not write."""
    try:
        body = json.loads(path.read_text())
        if body.pop("format", "") != FORMAT:
            raise ConfigError(
                f"{path} holds no step costs; `tenfold doctor --calibrate` writes some"
            )
        costs = body.pop("costs")
        curve = [(int(tokens), float(seconds)) for tokens, seconds in costs.pop("curve")]
        return Calibrated(MeasuredCosts(curve, **costs), **body)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read as step costs: {error}") from error
