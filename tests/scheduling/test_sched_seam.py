"""The published fair policies, a few lines each, written against the seam to show that they fit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from tenfold.scheduling.base import Policy, Waiting
from tenfold.scheduling.lpm import LPM
from tenfold.scheduling.queue import QueuePolicy


class Dlpm(QueuePolicy):
    """Algorithm 1 of arXiv 2501.14312, w_e = 1, w_q = 2, matches kept by the caller."""

    blocking = False

    def __init__(self, quantum: int) -> None:
        super().__init__()
        self.quantum = quantum
        self.deficit: dict[str, int] = {}

    def rank(self, w: Waiting) -> int:
        return -w.matched

    def add(self, w: Waiting) -> None:
        self.deficit.setdefault(w.client, 0)
        super().add(w)

    def candidates(self, now: float) -> Iterator[Waiting]:
        offered: set[str] = set()
        refilled = True
        while refilled:
            refilled = False
            for w in self.queue.walk():
                if w.id in offered:
                    continue
                if not any(self.deficit[q.client] > 0 for q in self.queue.walk()):
                    self.refill()
                    refilled = True
                if self.deficit[w.client] > 0:
                    offered.add(w.id)
                    yield w

    def refill(self) -> None:
        while not any(self.deficit[q.client] > 0 for q in self.queue.walk()):
            for client, deficit in self.deficit.items():
                if deficit <= 0:
                    self.deficit[client] += self.quantum

    def admitted(self, w: Waiting, extend_tokens: int) -> None:
        super().admitted(w, extend_tokens)
        self.deficit[w.client] -= extend_tokens

    def decoded(self, counts: Mapping[str, int]) -> None:
        for client, tokens in counts.items():
            self.deficit[client] -= 2 * tokens

    def preempted(self, w: Waiting, unused: int = 0) -> None:
        super().preempted(w, unused)
        self.deficit[w.client] += unused


class Vtc(QueuePolicy):
    """The virtual token counter: the least served client with work, whatever is cached."""

    blocking = True

    def __init__(self) -> None:
        super().__init__()
        self.counter: dict[str, int] = {}

    def add(self, w: Waiting) -> None:
        queued = {q.client for q in self.queue.walk()}
        if w.client not in queued:
            floor = min((self.counter[c] for c in queued), default=0)
            self.counter[w.client] = max(self.counter.get(w.client, 0), floor)
        super().add(w)

    def candidates(self, now: float) -> Iterator[Waiting]:
        while len(self):
            w = min(self.queue.walk(), key=lambda q: (self.counter[q.client], q.order))
            yield w
            if w.id in self.queue:
                return

    def admitted(self, w: Waiting, extend_tokens: int) -> None:
        super().admitted(w, extend_tokens)
        self.counter[w.client] += w.prompt_tokens

    def decoded(self, counts: Mapping[str, int]) -> None:
        for client, tokens in counts.items():
            self.counter[client] += 2 * tokens


class Outcome(NamedTuple):
    service: Counter[str]
    drift: int
    empty_steps: int


MEMORY = 400
OUTPUT = 20
PROMPT = 100


def flood(policy: Policy, steps: int = 600) -> Outcome:
    """Two clients with endless queues; the prompts of one are mostly cached, of the other never."""
    rng = random.Random(7)
    running: list[list[object]] = []
    service: Counter[str] = Counter()
    drift = empty = order = 0
    queued: Counter[str] = Counter()
    for step in range(steps):
        for client, matched in (("hot", 90), ("cold", 0)):
            while queued[client] < 12:
                order += 1
                queued[client] += 1
                policy.add(Waiting(str(order), client, PROMPT, order=order, matched=matched))
        for w in policy.candidates(float(step)):
            extend = PROMPT - w.matched
            if sum(PROMPT + OUTPUT for _ in running) + PROMPT + OUTPUT > MEMORY:
                if policy.blocking:
                    break
                continue
            policy.admitted(w, extend)
            queued[w.client] -= 1
            service[w.client] += extend
            running.append([w, rng.randint(1, OUTPUT)])
        empty += not running
        counts = Counter(w.client for w, _ in running)  # type: ignore[attr-defined]
        policy.decoded(counts)
        for client, tokens in counts.items():
            service[client] += 2 * tokens
        for row in running:
            row[1] -= 1  # type: ignore[operator]
        for w, left in list(running):
            if not left:
                policy.finished(w.client)  # type: ignore[attr-defined]
        running = [row for row in running if row[1]]
        drift = max(drift, abs(service["hot"] - service["cold"]))
    return Outcome(service, drift, empty)


@pytest.mark.parametrize("quantum", [50, 500, 5000])
def test_dlpm_keeps_its_bound_and_never_idles(quantum: int) -> None:
    outcome = flood(Dlpm(quantum))
    assert outcome.drift <= 2 * (PROMPT + 2 * MEMORY + quantum)
    assert outcome.empty_steps == 0


def test_vtc_is_fair_by_full_prompts_and_lpm_is_not_fair() -> None:
    vtc = flood(Vtc())
    assert vtc.empty_steps == 0
    assert vtc.service["cold"] > vtc.service["hot"] > 0
    assert flood(LPM()).service["cold"] == 0


def test_what_a_preempted_request_did_not_use_comes_back() -> None:
    policy = Dlpm(1000)
    w = Waiting("a", "c", 300)
    policy.add(w)
    assert next(policy.candidates(0.0)) is w
    policy.admitted(w, 300)
    policy.preempted(w, 200)
    assert policy.deficit["c"] == 900
    policy.admitted(w, 200)
    assert policy.deficit["c"] == 700
