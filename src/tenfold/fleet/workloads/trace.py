"""Traces: what was asked of which model and when, as rows of a file; scaled, and asked again.

A trace has lengths and no words: tokens are made up when it is replayed, the same ones each time,
and requests of one prefix group begin alike. JSON Lines, one request a line:

    {"at": 12.5, "model": "a", "client": "c-3", "prompt": 87, "output": 140,
     "group": "a/2", "shared": 64}

``at``: seconds after the trace began; ``prompt`` and ``output``: tokens. ``client``, ``group`` and
``shared`` (how many tokens, at the start of the prompt, the requests of a group have in common) may
be left out. A first line with the key ``trace`` says where the trace is from. Does not know who
answers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tenfold.core.errors import ConfigError
from tenfold.fleet.workloads.base import Call, Program, check_positive
from tenfold.fleet.workloads.prompt import Prompt, Words


@dataclass(slots=True)
class Asked:
    """One request of a trace; the fields are those of a line."""

    at: float
    model: str
    client: str
    prompt: int
    output: int
    group: str = ""
    shared: int = 0


def save_trace(path: Path, rows: Iterable[Asked], about: dict[str, Any] | None = None) -> int:
    """Write a trace, with ``about`` (plain values) in its first line; gives the number of rows."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        if about is not None:
            file.write(json.dumps({"trace": about}) + "\n")
        for row in rows:
            file.write(json.dumps(asdict(row)) + "\n")
            count += 1
    return count


def load_trace(path: Path) -> list[Asked]:
    """The rows of a trace, by time. Raises ConfigError, naming the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            if number == 1 and "trace" in found:
                continue
            rows.append(_row(found))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{path}:{number} is not a request of a trace: {reason}") from error
    if not rows:
        raise ConfigError(f"the trace {path} holds no requests")
    return sorted(rows, key=lambda row: row.at)


def _row(found: dict[str, Any]) -> Asked:
    row = Asked(
        float(found["at"]),
        str(found["model"]),
        str(found.get("client", "client-0")),
        int(found["prompt"]),
        int(found["output"]),
        str(found.get("group", "")),
        int(found.get("shared", 0)),
    )
    if not (row.at >= 0 and row.prompt >= 1 and row.output >= 1 and row.shared >= 0):
        raise ValueError("at and shared must be at least 0, prompt and output at least 1")
    return row


def about_trace(path: Path) -> dict[str, Any]:
    """What the first line says of a trace's origin; empty where it says nothing."""
    with path.open(encoding="utf-8") as file:
        try:
            first = json.loads(file.readline())
        except ValueError:
            return {}
    found = first.get("trace", {}) if isinstance(first, dict) else {}
    return found if isinstance(found, dict) else {}


# --- scaling ------------------------------------------------------------------------------------
def replicate(
    rows: Iterable[Asked], factor: float, seed: int = 0, jitter: float = 1.0
) -> list[Asked]:
    """``factor`` times the requests, each asked again by itself: the way the Prism paper scales its
    traces (section 7.1). What is left of a factor that is not whole is drawn, so 1.5 copies every
    second request on average, and 0.5 keeps half. Copies come up to ``jitter`` seconds later.

    Who is active when, and for how long, stays as it was. Raises ConfigError for a factor that is
    not above 0."""
    check_positive("trace", factor=factor)
    drawn = random.Random(f"{seed}/replicate")
    found = []
    for row in rows:
        copies = int(factor) + (drawn.random() < factor - int(factor))
        for number in range(copies):
            later = drawn.random() * jitter if number else 0.0
            found.append(replace(row, at=row.at + later))
    return sorted(found, key=lambda row: row.at)


def compress(rows: Iterable[Asked], speed: float) -> list[Asked]:
    """The same requests ``speed`` times as fast. Idle times shrink with the others, so a model is
    active as often, for a shorter time. Raises ConfigError for a speed that is not above 0."""
    check_positive("trace", speed=speed)
    return [replace(row, at=row.at / speed) for row in rows]


def rescale_lengths(rows: Iterable[Asked], prompts: float, outputs: float) -> list[Asked]:
    """Every length times a factor, at least 1."""
    check_positive("trace", prompts=prompts, outputs=outputs)

    def scaled(row: Asked) -> Asked:
        shared = round(row.shared * prompts)
        prompt = max(1, round(row.prompt * prompts))
        return replace(
            row, prompt=prompt, shared=shared, output=max(1, round(row.output * outputs))
        )

    return [scaled(row) for row in rows]


# --- asking again -------------------------------------------------------------------------------
class Speaker:
    """Makes requests of rows: the same seed gives the same tokens to the same rows in order."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._groups: dict[tuple[str, str], Prompt] = {}
        self._words = Words(random.Random(f"{seed}/own").getrandbits(63))
        self._calls = 0

    def call(self, row: Asked) -> Call:
        self._calls += 1
        shared = min(row.shared, row.prompt - 1) if row.group else 0
        own = self._words.tokens(row.prompt - shared)
        prompt = self._prefix(row, shared).plus(own) if shared else Prompt(own)
        program = Program(f"{row.client}/{self._calls}", row.client)
        return Call(row.client, prompt, row.output, row.at, program, model=row.model)

    def _prefix(self, row: Asked, length: int) -> Prompt:
        """The group's text, as far as it is shared; a longer one is drawn anew and begins alike."""
        known = self._groups.get((row.model, row.group))
        if known is None or len(known) < length:
            drawn = random.Random(f"{self._seed}/{row.model}/{row.group}").getrandbits(63)
            known = Prompt(Words(drawn).tokens(max(length, 4096))[:length].copy())
            self._groups[row.model, row.group] = known
        return known if len(known) == length else Prompt(known[:length])


@dataclass(slots=True)
class Replay:
    """A trace from a file. ``load`` replicates requests and ``speed`` replays it faster; ``scale``
    shortens every length. ``start``: seconds of the trace that are left out at its beginning.
    ``model``: sent to this one in place of the models that the trace names."""

    path: str = ""
    name: str = "trace"
    load: float = 1.0
    speed: float = 1.0
    scale: float = 1.0
    start: float = 0.0
    jitter: float = 1.0
    model: str = ""

    def calls(self, seed: int, seconds: float) -> Iterator[Call]:
        rows = self.rows(seed)
        speaker = Speaker(seed)
        return (speaker.call(row) for row in rows if row.at < seconds)

    def rows(self, seed: int = 0) -> list[Asked]:
        """The scaled trace. Raises ConfigError."""
        if not self.path:
            raise ConfigError(
                "workload trace: path must name a trace, as tenfold trace make writes"
            )
        rows = [replace(row, at=row.at - self.start) for row in load_trace(Path(self.path))]
        rows = [row for row in rows if row.at >= 0]
        if self.model:
            rows = [replace(row, model=self.model) for row in rows]
        rows = compress(rescale_lengths(rows, self.scale, self.scale), self.speed)
        return rows if self.load == 1 else replicate(rows, self.load, seed, self.jitter)
