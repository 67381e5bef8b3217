"""A log of an engine's steps: what each computed and how long it took, one JSON line a step.

Where a device has one (``device.step_log``), costs can be fitted to it (``costs.calibrated``) and
its decisions compared with a simulation's. Does not know why a step was made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

from tenfold.core.errors import ConfigError
from tenfold.costs.step import StepShape
from tenfold.engine.sequence import StepPlan


@dataclass(slots=True)
class LoggedStep:
    """One step. ``at``: when it was decided, in seconds of the engine's clock; ``seconds``: of
    computing it; ``around``: of deciding it and booking what came. ``slices``: request, first
    position and tokens of each of its parts."""

    model: str
    at: float
    seconds: float
    around: float
    shape: StepShape
    slices: list[tuple[str, int, int]]


_SHAPE = tuple(one.name for one in fields(StepShape))


class StepLog:
    """Writes steps to a file as they come. What is buffered goes out when it is closed."""

    def __init__(self, path: str | Path) -> None:
        """Raises ConfigError when the file cannot be written."""
        try:
            self._file: IO[str] = open(path, "a", encoding="utf-8", buffering=1 << 16)  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"the step log {path} cannot be written: {error}") from error

    def step(self, model: str, at: float, seconds: float, around: float, plan: StepPlan) -> None:
        shape = plan.shape
        line = {
            "model": model,
            "at": at,
            "seconds": seconds,
            "around": around,
            "shape": {name: getattr(shape, name) for name in _SHAPE},
            "slices": [(piece.seq.request.id, piece.start, piece.count) for piece in plan.slices],
        }
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


def read_steps(path: Path) -> Iterator[LoggedStep]:
    """The steps of a log. Raises ConfigError, naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"the step log {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        yield _parse(json.loads, line, f"{path}:{number}")


def _parse(loads: Callable[[str], Any], line: str, where: str) -> LoggedStep:
    try:
        body = loads(line)
        slices = [(str(id), int(start), int(count)) for id, start, count in body.pop("slices")]
        return LoggedStep(**{**body, "shape": StepShape(**body["shape"]), "slices": slices})
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{where} is not a line of a step log: {error}") from error
