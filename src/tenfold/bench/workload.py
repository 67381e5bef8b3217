"""What is asked of a server under test, and when: arrivals, prompts, clients, and trace files.

Everything is drawn from one seed, so two servers can be given the very same requests.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tenfold.core.errors import ConfigError

Arrivals = Literal["poisson", "gamma", "closed"]

_WORDS = [
    "river",
    "stone",
    "cloud",
    "market",
    "engine",
    "garden",
    "winter",
    "letter",
    "harbour",
    "copper",
    "silver",
    "forest",
    "window",
    "bridge",
    "candle",
    "method",
    "number",
    "circle",
    "valley",
    "summer",
    "system",
    "planet",
    "signal",
    "border",
    "record",
    "island",
    "teacher",
    "reason",
    "answer",
    "pattern",
    "distant",
    "simple",
    "quiet",
    "narrow",
    "golden",
    "ancient",
    "public",
    "private",
    "common",
]


@dataclass(slots=True)
class Ask:
    """One request of a workload. ``at``: seconds after the start (0 in a closed loop)."""

    at: float
    client: str
    prompt: str
    max_tokens: int


@dataclass(slots=True)
class Shape:
    """How a synthetic workload looks.

    ``rate``: requests a second in all (open loop); ``cv``: coefficient of variation of the gaps of
    Gamma arrivals; ``concurrency``: requests in flight (closed loop). Lengths are in words,
    roughly tokens; ``shared`` words open every prompt of a group, and clients are spread over
    ``groups`` such prefixes.
    """

    requests: int = 64
    arrivals: Arrivals = "poisson"
    rate: float = 4.0
    cv: float = 1.0
    concurrency: int = 8
    clients: int = 1
    groups: int = 1
    shared: int = 0
    prompt: int = 128
    output: int = 128
    seed: int = 0


def synthesise(shape: Shape) -> list[Ask]:
    """Requests of a shape, in order of arrival. Raises ConfigError for an impossible one."""
    if shape.requests < 1 or shape.rate <= 0 or shape.cv <= 0 or shape.concurrency < 1:
        raise ConfigError(
            f"a workload needs requests >= 1, rate > 0, cv > 0 and concurrency >= 1, got {shape}"
        )
    random_ = random.Random(shape.seed)
    prefixes = [_text(random_, shape.shared) for _ in range(max(1, shape.groups))]
    gaps = _gaps(shape, random_)
    asks = []
    at = 0.0
    for number in range(shape.requests):
        at += next(gaps)
        client = number % max(1, shape.clients)
        prompt = f"{prefixes[client % len(prefixes)]} {_text(random_, shape.prompt)}".strip()
        asks.append(Ask(at, f"client-{client}", prompt, shape.output))
    return asks


def _gaps(shape: Shape, random_: random.Random) -> Iterator[float]:
    """Seconds between arrivals, with mean 1 / rate; zeros in a closed loop."""
    while True:
        match shape.arrivals:
            case "closed":
                yield 0.0
            case "poisson":
                yield random_.expovariate(shape.rate)
            case "gamma":
                k = 1.0 / shape.cv**2
                yield random_.gammavariate(k, 1.0 / (shape.rate * k))


def _text(random_: random.Random, words: int) -> str:
    return " ".join(random_.choice(_WORDS) for _ in range(words))


def save_trace(asks: list[Ask], path: Path) -> None:
    """One JSON object a line: at, client, prompt, max_tokens."""
    path.write_text("".join(json.dumps(asdict(ask)) + "\n" for ask in asks))


def load_trace(path: Path, scale: float = 1.0) -> list[Ask]:
    """Read a trace; ``scale`` 2 replays it twice as fast. Raises ConfigError, naming the line."""
    if scale <= 0:
        raise ConfigError(f"a trace's scale must be above 0, got {scale}")
    asks = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            asks.append(
                Ask(
                    float(row["at"]) / scale,
                    str(row.get("client", "client-0")),
                    str(row["prompt"]),
                    int(row["max_tokens"]),
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number} is not a trace line: {error!r}") from error
    if not asks:
        raise ConfigError(f"{path} holds no requests")
    return sorted(asks, key=lambda ask: ask.at)
