"""Many models asked in bursts: a trace with the statistics that the Prism paper publishes of four
production traces (arXiv 2505.04021, sections 2 and 3), none of which is public.

What is matched, and by what: popularity has a long tail (quantiles of a lognormal); a quarter to a
half of the models is active at a time, in groups that come and go, so the active set changes some
hundred times an hour; gaps between a model's requests vary more than a Poisson process's, with idle
times above 10 s within bursts and long ones between them; and every day popularity is dealt anew,
so yesterday's rates say nothing. Lengths are lognormals through the median and the 99th percentile
of the trace that the authors put in place of theirs (prompts 40 and 929 tokens, answers 211 and
785). Everything else here is our own choice. Knows nothing of who answers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import NormalDist

from tenfold.core.errors import ConfigError
from tenfold.fleet.workloads.arrivals import times
from tenfold.fleet.workloads.base import Call, check_positive
from tenfold.fleet.workloads.trace import Asked, Speaker

PROMPT_TOKENS = (40.0, 929.0)
OUTPUT_TOKENS = (211.0, 785.0)
"""Median and 99th percentile."""

OFTEN, MUCH = 0.5, 0.7
"""A popular model is active more often and asked more while it is: powers of its popularity. They
come to more than 1 because a model that is active cannot become so."""


@dataclass(slots=True)
class Bursty:
    """``rate``: requests a second of all models together, on average. ``models``: how many, named
    ``name-0`` and on, or ``named``, these. ``day``: seconds after which popularity is dealt anew.

    ``tail``: spread of the logarithm of popularity. ``active``: the share of models that is active
    at a time. ``burst``: seconds that a model stays active, on average, and ``group``: how many
    become active together. ``cv``: of the gaps within a burst. ``prefixes``: groups of requests of
    a model that begin alike, with ``prefix`` tokens; ``prompts`` and ``outputs`` multiply lengths,
    ``scale`` both of them; none is longer than ``longest``.
    """

    name: str = "model"
    models: int = 24
    named: tuple[str, ...] = ()
    rate: float = 2.5
    day: float = 86_400.0
    tail: float = 1.25
    active: float = 0.35
    burst: float = 120.0
    group: float = 3.0
    cv: float = 2.0
    clients: int = 8
    prefixes: int = 0
    prefix: int = 64
    prompts: float = 1.0
    outputs: float = 1.0
    scale: float = 1.0
    longest: int = 8192

    def calls(self, seed: int, seconds: float) -> Iterator[Call]:
        speaker = Speaker(seed)
        return (speaker.call(row) for row in self.rows(seed, seconds))

    def rows(self, seed: int, seconds: float) -> list[Asked]:
        """The trace, by time. Raises ConfigError for settings that mean nothing."""
        self._check()
        rows: list[Asked] = []
        began, number = 0.0, 0
        while began < seconds:
            drawn = random.Random(f"{seed}/day/{number}")
            rows += self._day(drawn, began, min(self.day, seconds - began))
            began, number = began + self.day, number + 1
        rows.sort(key=lambda row: row.at)
        return rows

    def names(self) -> list[str]:
        return list(self.named) or [f"{self.name}-{n}" for n in range(self.models)]

    def _check(self) -> None:
        check_positive(self.name, models=self.models, rate=self.rate, day=self.day)
        check_positive(self.name, burst=self.burst, group=self.group, clients=self.clients)
        check_positive(self.name, prompts=self.prompts, outputs=self.outputs, scale=self.scale)
        if not 0 < self.active < 1 or self.tail < 0 or self.cv < 0 or self.prefixes < 0:
            raise ConfigError(
                f"workload {self.name}: active is {self.active:g} and must lie between 0 and 1; "
                f"tail {self.tail:g}, cv {self.cv:g} and prefixes {self.prefixes} must not be "
                "below 0"
            )

    def _day(self, drawn: random.Random, began: float, seconds: float) -> list[Asked]:
        """One day's requests. A burst that lasts into the next day ends with this one."""
        names = self.names()
        popular = popularity(len(names), self.tail)
        drawn.shuffle(popular)
        spans = self._spans(drawn, [weight**OFTEN for weight in popular], seconds)
        paces = [weight**MUCH for weight in popular]
        lengths = [sum(stop - start for start, stop in own) for own in spans]
        whole = sum(pace * length for pace, length in zip(paces, lengths, strict=True))
        rows: list[Asked] = []
        for name, pace, own in zip(names, paces, spans, strict=True):
            rate = self.rate * seconds * pace / whole if whole else 0.0
            for start, stop in own:
                for at in times(rate, self.cv, stop - start, drawn):
                    rows.append(self._asked(drawn, name, began + start + at))
        return rows

    def _spans(
        self, drawn: random.Random, weights: Sequence[float], seconds: float
    ) -> list[list[tuple[float, float]]]:
        """When each model is active: groups become so together, and each member stays as long as
        it stays."""
        count = len(weights)
        pause = self.group * self.burst / (self.active * count)
        until = [0.0] * count
        spans: list[list[tuple[float, float]]] = [[] for _ in weights]
        # As many as are active on average begin active, part of their burst behind them.
        wanted, now = self.active * count, 0.0
        while now < seconds:
            idle = [n for n in range(count) if until[n] <= now]
            size = round(wanted) if now == 0 else 1 + _poisson(drawn, self.group - 1)
            for n in _choose(drawn, idle, weights, size):
                until[n] = now + drawn.expovariate(1 / self.burst)
                spans[n].append((now, min(until[n], seconds)))
            now += drawn.expovariate(1 / pause)
        return spans

    def _asked(self, drawn: random.Random, name: str, at: float) -> Asked:
        prompt = self._length(drawn, PROMPT_TOKENS, self.prompts)
        output = self._length(drawn, OUTPUT_TOKENS, self.outputs)
        client = f"client-{drawn.randrange(self.clients)}"
        if not self.prefixes:
            return Asked(at, name, client, prompt, output)
        shared = max(1, round(self.prefix * self.prompts * self.scale))
        group = f"{name}/{drawn.randrange(self.prefixes)}"
        return Asked(at, name, client, min(self.longest, prompt + shared), output, group, shared)

    def _length(self, drawn: random.Random, published: tuple[float, float], factor: float) -> int:
        median, high = published
        spread = log(high / median) / NormalDist().inv_cdf(0.99)
        length = median * exp(spread * drawn.gauss(0, 1)) * factor * self.scale
        return min(self.longest, max(1, round(length)))


def popularity(count: int, tail: float) -> list[float]:
    """Shares of all requests, largest first: quantiles of a lognormal whose logarithm has the
    spread ``tail``. At 1.25, of 27 models the first gets 25 % and the last 0.13 %; in the authors'
    stand-in it is 20 % and 0.07 %."""
    normal = NormalDist()
    weights = [exp(tail * normal.inv_cdf((place + 0.5) / count)) for place in range(count)][::-1]
    return [weight / sum(weights) for weight in weights]


def _choose(
    drawn: random.Random, among: list[int], weights: Sequence[float], size: int
) -> list[int]:
    """So many different ones, each as likely as its weight says (Efraimidis and Spirakis)."""
    keys = {n: drawn.random() ** (1 / weights[n]) for n in among}
    return sorted(among, key=lambda n: -keys[n])[:size]


def _poisson(drawn: random.Random, mean: float) -> int:
    """Counted by exponential gaps: means are small here."""
    count, left = 0, mean - drawn.expovariate(1.0)
    while left > 0:
        count, left = count + 1, left - drawn.expovariate(1.0)
    return count
