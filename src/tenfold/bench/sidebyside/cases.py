"""What is asked of every peer, and what the times of its tokens come to.

All peers are given the same token ids, drawn anew for every round so that no cache of an earlier
round answers. Knows nothing of processes.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Literal

from tenfold.bench.report import percentile
from tenfold.core.errors import ConfigError

Kind = Literal["run", "chat", "busy", "memory", "first"]
GROUPS = ("decode", "prefill", "streams", "chat", "busy", "memory", "first")
_VOCABULARY = (1000, 40000)
_SLACK = 16


@dataclass(frozen=True, slots=True)
class Case:
    """One case. Lengths in tokens; of a chat, ``prompt`` and ``output`` are those of a turn."""

    name: str
    kind: Kind
    streams: int
    prompt: int
    output: int
    shared: int = 0
    turns: int = 1

    @property
    def length(self) -> int:
        """Tokens that one stream comes to, with some room."""
        return self.shared + self.turns * (self.prompt + self.output) + _SLACK


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the cases are. ``capacity``: tokens of KV that every peer is given."""

    prompt: int = 128
    output: int = 128
    prefill: int = 512
    streams: tuple[int, ...] = (4, 16, 32, 64)
    shared: int = 512
    clients: int = 16
    turns: int = 4
    turn: int = 64
    crowd: int = 32
    capacity: int = 24576


QUICK = Sizes(16, 8, 32, (2,), 64, 2, 2, 8, 2, 2048)
"""Only to see that everything runs; its numbers mean nothing."""


def build_cases(sizes: Sizes, groups: tuple[str, ...] = GROUPS) -> list[Case]:
    """The cases of some groups, in the order in which they are run. One stream's throughput is the
    decode case's. Raises ConfigError for an unknown group."""
    if unknown := set(groups) - set(GROUPS):
        raise ConfigError(
            f"unknown cases {', '.join(sorted(unknown))}; choose from {', '.join(GROUPS)}"
        )
    p, o = sizes.prompt, sizes.output
    every = {
        "decode": [Case("decode", "run", 1, p, o)],
        "prefill": [Case("prefill", "run", 1, sizes.prefill, 1)],
        "streams": [Case(f"streams-{n}", "run", n, p, o) for n in sizes.streams],
        "chat": [
            Case("chat", "chat", sizes.clients, sizes.turn, sizes.turn, sizes.shared, sizes.turns)
        ],
        "busy": [Case("busy", "busy", 1, p, o)],
        "memory": [Case("memory", "memory", sizes.crowd, p, o)],
        "first": [Case("first", "first", 1, p, 8)],
    }
    return [case for group in GROUPS if group in groups for case in every[group]]


class Draws:
    """Token ids out of one seed, for one round."""

    def __init__(self, *seed: object) -> None:
        self._random = random.Random("/".join(map(str, seed)))

    def row(self, length: int) -> list[int]:
        return [self._random.randrange(*_VOCABULARY) for _ in range(length)]

    def rows(self, count: int, length: int) -> list[list[int]]:
        return [self.row(length) for _ in range(count)]


def rates(times: list[list[float]], prompt_tokens: int) -> dict[str, float]:
    """From each stream's token times (seconds): prefill, decode and output in tokens a second, and
    percentiles of the time to the first token and between tokens in seconds.

    prefill: prompt tokens until the last stream's first token. decode: what came after the last
    stream had begun, over the time that took. output: all tokens over all the time.
    """
    first = max(row[0] for row in times)
    end = max(row[-1] for row in times)
    late = sum(sum(t > first for t in row) for row in times)
    ttft = sorted(row[0] for row in times)
    found = {
        "prefill": prompt_tokens / first,
        "output": sum(len(row) for row in times) / end,
        "ttft_p50": percentile(ttft, 0.5),
        "ttft_p99": percentile(ttft, 0.99),
    }
    if end > first:
        found["decode"] = late / (end - first)
    gaps = sorted(b - a for row in times for a, b in itertools.pairwise(row))
    if gaps:
        found |= {"itl_p50": percentile(gaps, 0.5), "itl_p99": percentile(gaps, 0.99)}
    return found
