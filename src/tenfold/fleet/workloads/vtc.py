"""The synthetic suites of the VTC paper ("Fairness in Serving Large Language Models", OSDI 2024),
with the parameters and, for seed 42, the very arrival times of its published artifact.

Arrivals are even, or Gamma with cv 1 where a suite is called poisson; two to eight clients; lengths
256/256 unless the suite says otherwise. The artifact asks "Hello " so many times and caches no
prefixes; here prompts share nothing, which costs a server with a prefix cache the same, or
(``alike``) are all the start of the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tenfold.core.errors import ConfigError
from tenfold.fleet.workloads.base import Call, Program, check_positive
from tenfold.fleet.workloads.prompt import Prompt, Words

Mode = Literal["even", "poisson", "short-long", "swapped", "increase", "shift"]


class Suite(NamedTuple):
    """Rates are requests a second of each client. ``pause``: client 0 is on and off by turns for so
    many seconds. ``low`` and ``high``: lengths of prompt and output, the latter exclusive."""

    rates: tuple[float, ...]
    seconds: float = 600.0
    mode: Mode = "even"
    pause: float = 0.0
    prompt: tuple[int, int] = (256, 257)
    output: tuple[int, int] = (256, 257)


def _suites() -> dict[str, Suite]:
    found = {
        "overload": Suite((1.5, 3), 360),
        "overload-multi": Suite((0.4, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6), 360),
        "overload-weighted": Suite((0.8, 0.8, 1.2, 1.6), 360),
        "proportional": Suite((0.25, 0.5, 1.5)),
        "increase": Suite((0.5, 2), mode="increase"),
        "on-off-less": Suite((0.5, 2), pause=60),
        "on-off-overload": Suite((2, 3), pause=60),
        "poisson-on-off": Suite((0.5, 2), mode="poisson", pause=60, prompt=(16, 512),
                                output=(16, 512)),
        "poisson-short-long": Suite((8, 1.5), mode="short-long"),
        "poisson-short-long-2": Suite((8, 1.5), mode="swapped", prompt=(32, 33),
                                      output=(512, 513)),
        "dist-shift": Suite((0.5, 2), 900, mode="shift"),
    }  # fmt: skip
    for length, rate in ((128, 6.0), (256, 3.0), (512, 1.5), (768, 1.0)):
        lengths = (length, length + 1)
        found[f"overload-{length}"] = Suite((rate, 2 * rate), prompt=lengths, output=lengths)
    return found


class _Arrival(NamedTuple):
    at: float
    client: int
    prompt: int
    output: int


@dataclass(slots=True)
class VTC:
    """``suite``: one of the published ones, which ends after its own time or with the run.
    ``rate_scale`` multiplies every rate (so the suite is over sooner) and ``scale`` every length,
    for machines of another size. ``artifact_seed``: 42 draws what the artifact draws."""

    suite: str = "overload"
    name: str = "vtc"
    rate_scale: float = 1.0
    scale: float = 1.0
    alike: bool = False
    artifact_seed: int = 42

    def calls(self, seed: int, seconds: float) -> Iterator[Call]:
        check_positive(self.name, rate_scale=self.rate_scale, scale=self.scale)
        suites = _suites()
        if self.suite not in suites:
            raise ConfigError(f"unknown VTC suite {self.suite!r}; choose from {', '.join(suites)}")
        words = Words(seed)
        same = words.tokens(2048)
        for number, one in enumerate(arrivals(suites[self.suite], self.artifact_seed)):
            at = one.at / self.rate_scale
            if at >= seconds:
                return
            length = max(1, round(one.prompt * self.scale))
            text = Prompt(same[:length]) if self.alike else words.prompt(length)
            output = max(1, round(one.output * self.scale))
            client = f"{self.name}-{one.client}"
            yield Call(client, text, output, at, Program(f"{client}/{number}", client))


def arrivals(suite: Suite, seed: int = 42) -> list[_Arrival]:
    """What the suite asks, by time: drawn from numpy's old generator, in the artifact's order."""
    random = np.random.RandomState(seed)
    match suite.mode:
        case "even":
            found = _even(suite, suite.rates, suite.seconds, 0.0, suite.pause, random)
        case "increase":
            found = _increase(suite, random)
        case "shift":
            third = suite.seconds / 3
            found = _even(suite, suite.rates, third, 0.0, 60, random)
            found += _even(suite, (1, 1), third, third, 0, random)
            found += _even(suite, (0.5, 1.5), third, 2 * third, 0, random)
        case _:
            found = _poisson(suite, random)
    return sorted(found, key=lambda one: one.at)


def _lengths(
    suite: Suite, count: int, random: np.random.RandomState
) -> tuple[list[int], list[int]]:
    prompts: list[int] = random.randint(*suite.prompt, count).tolist()
    outputs: list[int] = random.randint(*suite.output, count).tolist()
    return prompts, outputs


def _off(at: float, client: int, pause: float) -> bool:
    return bool(pause) and client == 0 and int(at // pause) % 2 == 1


def _even(
    suite: Suite,
    rates: Sequence[float],
    seconds: float,
    start: float,
    pause: float,
    random: np.random.RandomState,
) -> list[_Arrival]:
    found = []
    for client, rate in enumerate(rates):
        count = int(rate * seconds)
        prompts, outputs = _lengths(suite, count, random)
        at = start + random.rand() / rate
        for prompt, output in zip(prompts, outputs, strict=True):
            at += 1 / rate
            if not _off(at, client, pause):
                found.append(_Arrival(at, client, prompt, output))
    return found


def _increase(suite: Suite, random: np.random.RandomState) -> list[_Arrival]:
    """Client 0 keeps its rate; client 1 goes from 0.2 a second to its own."""
    steady, last = suite.rates
    prompts, outputs = _lengths(suite, int(steady * suite.seconds), random)
    found = [
        _Arrival((i + 1) / steady, 0, *pair)
        for i, pair in enumerate(zip(prompts, outputs, strict=True))
    ]
    first, at = 0.2, 0.0
    prompts, outputs = _lengths(suite, int(0.5 * (first + last) * suite.seconds), random)
    for prompt, output in zip(prompts, outputs, strict=True):
        at += 1 / (first + (last - first) * at / suite.seconds)
        found.append(_Arrival(at, 1, prompt, output))
    return found


def _poisson(suite: Suite, random: np.random.RandomState) -> list[_Arrival]:
    total = sum(suite.rates)
    count = int(total * suite.seconds)
    clients = (random.rand(count) > suite.rates[0] / total).astype(int).tolist()
    prompts, outputs = _lengths(suite, count, random)
    found, at = [], 0.0
    gaps = random.gamma(1.0, 1 / total, count).tolist()
    for client, prompt, output, gap in zip(clients, prompts, outputs, gaps, strict=True):
        at += gap
        if _off(at, client, suite.pause):
            continue
        if client == 0 and suite.mode == "short-long":
            prompt, output = prompt // 4, output // 4
        elif client == 0 and suite.mode == "swapped":
            prompt, output = output, prompt
        found.append(_Arrival(at, client, prompt, output))
    return found
