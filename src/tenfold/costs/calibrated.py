"""Step costs fitted to the log of a real engine, how wrong they are, and the file they live in.

The fit is of relative errors, so short and long steps count alike; outliers count little, and no
cost is negative. Every fifth step is kept out of it: the errors are those of steps never seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.core.errors import ConfigError
from tenfold.costs.step import FixedStepModel, StepCosts, StepShape

FORMAT = "tenfold step costs 1"

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
class Calibrated:
    """Costs of one model on one machine. ``mape`` and ``median_error``: mean and median relative
    error on the steps that were kept out; ``total_error``: of their sum."""

    costs: StepCosts
    model: str = ""
    machine: str = ""
    threads: int = 0
    steps: int = 0
    kept_out: int = 0
    mape: float = 0.0
    median_error: float = 0.0
    total_error: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def fit_costs(log: Sequence[Step], *, model: str = "", machine: str = "") -> Calibrated:
    """Fit to four fifths of a log, and measure on the last. Raises ConfigError when it is short."""
    learnt = [step for number, step in enumerate(log) if number % KEPT_OUT]
    kept = [step for number, step in enumerate(log) if not number % KEPT_OUT]
    if len(kept) < 4:
        raise ConfigError(f"{len(log)} steps are too few to fit costs to; log at least {20}")
    costs = _fit(learnt)
    predict = FixedStepModel(costs).predict
    predicted = np.array([predict(step.shape) for step in kept])
    seconds = np.array([step.seconds for step in kept])
    errors = np.abs(predicted / seconds - 1)
    return Calibrated(
        costs,
        model,
        machine,
        steps=len(log),
        kept_out=len(kept),
        mape=float(np.mean(errors)),
        median_error=float(np.median(errors)),
        total_error=float(predicted.sum() / seconds.sum() - 1),
    )


def _fit(log: Sequence[Step]) -> StepCosts:
    rows = np.array([_row(step.shape) for step in log])
    seconds = np.array([step.seconds for step in log])
    seen = rows.max(axis=0) > 0
    # Costs of what the log never shows stay what they are by default.
    found = np.array(astuple(StepCosts()))
    scaled = rows[:, seen] / seconds[:, None]
    size = np.linalg.norm(scaled, axis=0)
    weights = np.ones(len(seconds))
    answer = np.zeros(int(seen.sum()))
    for _ in range(20):
        answer = _nonnegative(scaled / size * weights[:, None], weights, answer)
        residual = np.abs(scaled / size @ answer - 1)
        weights = np.sqrt(np.minimum(1.0, CLIP / np.maximum(residual, 1e-12)))
    found[seen] = answer / size
    return StepCosts(*found.tolist())


def _nonnegative(rows: Floats, target: Floats, start: Floats) -> Floats:
    """The least squares solution with nothing negative, by coordinate descent."""
    gram, right = rows.T @ rows, rows.T @ target
    answer = start.copy()
    for _ in range(5000):
        before = answer.copy()
        for i in range(len(answer)):
            answer[i] = max(0.0, answer[i] + (right[i] - gram[i] @ answer) / gram[i, i])
        if np.abs(answer - before).max() <= 1e-10 * max(1.0, np.abs(answer).max()):
            break
    return answer


def _row(shape: StepShape) -> list[float]:
    return [
        1.0,
        shape.prefill_tokens,
        shape.decode_rows,
        shape.decode_context,
        shape.prefill_context,
        shape.draft_tokens,
    ]


def save_costs(found: Calibrated, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found.to_json(), indent=2) + "\n")


def load_costs(path: Path) -> Calibrated:
    """Raises ConfigError for a file that ``save_costs`` did not write."""
    try:
        body = json.loads(path.read_text())
        if body.pop("format", "") != FORMAT:
            raise ConfigError(
                f"{path} holds no step costs; `tenfold doctor --calibrate` writes them"
            )
        known = {one.name for one in fields(Calibrated)}
        values = {name: value for name, value in body.items() if name in known}
        return Calibrated(**{**values, "costs": StepCosts(**values["costs"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read as step costs: {error}") from error
