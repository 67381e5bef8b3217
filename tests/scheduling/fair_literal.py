"""The published algorithms, word for word and as slow as they come: what the package's policies
are held against. Lists and sorting; no shared code with the package beyond the seam's types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tenfold.core.settings import ScheduleSettings
from tenfold.scheduling.base import Matches, Waiting


class Literal:
    """A queue that is sorted anew for every scan."""

    blocking = False

    def __init__(self, matches: Matches) -> None:
        self.matches = matches
        self.queued: list[Waiting] = []
        self.back: set[str] = set()

    def add(self, w: Waiting) -> None:
        self.queued.append(w)

    def remove(self, w: Waiting) -> None:
        if w in self.queued:
            self.queued.remove(w)
            self.back.discard(w.id)

    def rank(self, w: Waiting) -> int:
        return -self.matches.matched(w.id)

    def place(self, w: Waiting) -> tuple[int, bool, int, int]:
        return (w.priority, w.id not in self.back, self.rank(w), w.order)

    def candidates(self, now: float) -> Iterator[Waiting]:
        yield from sorted(self.queued, key=self.place)

    def admitted(self, w: Waiting, extend_tokens: int) -> None:
        self.queued.remove(w)
        self.back.discard(w.id)

    def prefilled(self, client: str, tokens: int) -> None:
        pass

    def decoded(self, counts: Mapping[str, int]) -> None:
        pass

    def finished(self, client: str, unused: int = 0) -> None:
        pass

    def shared(self, tokens: Mapping[str, float]) -> None:
        pass

    def preempted(self, w: Waiting, unused: int = 0) -> None:
        self.back.add(w.id)
        self.queued.append(w)

    def may_run(self, client: str) -> bool:
        return True

    def first(self, most: int) -> list[Waiting]:
        return sorted(self.queued, key=self.place)[:most]

    def reason(self, w: Waiting) -> str:
        return ""

    def __len__(self) -> int:
        return len(self.queued)


class LiteralLPM(Literal):
    """Longest match first, then arrival."""


class LiteralDLPM(Literal):
    """Algorithm 1 of arXiv 2501.14312.

    Its inner loop, as printed, never ends when memory is full. Here it ends after a scan that
    admitted nothing and refilled nothing; a request that did not fit is not tried again in the same
    step. A refill is repeated until some client with a queued request has credit.
    """

    def __init__(
        self, matches: Matches, settings: ScheduleSettings, weights: Mapping[str, float]
    ) -> None:
        super().__init__(matches)
        self.settings, self.weights = settings, weights
        self.q: dict[str, float] = {}
        self.refills = 0.0

    def add(self, w: Waiting) -> None:
        if w.client not in self.q:
            self.q[w.client] = 0.0
        super().add(w)

    def refill(self) -> bool:
        done = False
        while not any(self.q[w.client] > 0 for w in self.queued):
            for client in self.q:
                if self.q[client] <= 0:
                    given = self.settings.quantum * self.weights.get(client, 1.0)
                    self.q[client] += given
                    self.refills += given
            done = True
        return done

    def candidates(self, now: float) -> Iterator[Waiting]:
        tried: set[str] = set()
        going = True
        while going and self.queued:
            going = False
            for w in sorted(self.queued, key=self.place):
                if w not in self.queued:
                    continue
                if self.q[w.client] <= 0 and self.refill():
                    going = True
                if self.q[w.client] > 0 and w.id not in tried:
                    tried.add(w.id)
                    yield w
                    if w not in self.queued:
                        going = True

    def admitted(self, w: Waiting, extend_tokens: int) -> None:
        super().admitted(w, extend_tokens)
        self.q[w.client] -= self.settings.extend_weight * extend_tokens

    def decoded(self, counts: Mapping[str, int]) -> None:
        for client, tokens in counts.items():
            self.q[client] -= self.settings.output_weight * tokens

    def finished(self, client: str, unused: int = 0) -> None:
        self.q[client] += self.settings.extend_weight * unused

    def preempted(self, w: Waiting, unused: int = 0) -> None:
        super().preempted(w, unused)
        self.q[w.client] += self.settings.extend_weight * unused


class LiteralVTC(Literal):
    """Algorithm 2 of "Fairness in Serving Large Language Models", with weights. What it
    leaves open: ties between counters go by name, and an abort returns what was not computed."""

    blocking = True

    def __init__(
        self, matches: Matches, settings: ScheduleSettings, weights: Mapping[str, float]
    ) -> None:
        super().__init__(matches)
        self.settings, self.weights = settings, weights
        self.counter: dict[str, float] = {}
        self.left_last = ""

    def rank(self, w: Waiting) -> int:
        return 0

    def add(self, w: Waiting) -> None:
        self._lift(w.client)
        super().add(w)

    def _lift(self, client: str) -> None:
        others = {w.client for w in self.queued}
        if client in others:
            return
        if others:
            floor = min(self.counter[one] for one in others)
        else:
            floor = self.counter.get(self.left_last, 0.0)
        self.counter[client] = max(self.counter.get(client, 0.0), floor)

    def _leave(self, client: str) -> None:
        if not any(w.client == client for w in self.queued):
            self.left_last = client

    def remove(self, w: Waiting) -> None:
        there = w in self.queued
        super().remove(w)
        if there:
            self._leave(w.client)

    def candidates(self, now: float) -> Iterator[Waiting]:
        while self.queued:
            first: dict[str, Waiting] = {}
            for w in sorted(self.queued, key=self.place):
                first.setdefault(w.client, w)
            best = min(first.values(), key=lambda w: (self.counter[w.client], w.client))
            yield best
            if best in self.queued:
                return

    def charge(self, client: str, amount: float) -> None:
        self.counter[client] += amount / self.weights.get(client, 1.0)

    def admitted(self, w: Waiting, extend_tokens: int) -> None:
        again = w.id in self.back
        super().admitted(w, extend_tokens)
        self._leave(w.client)
        if self.settings.vtc_charge == "extend":
            self.charge(w.client, self.settings.extend_weight * extend_tokens)
        elif not again:
            self.charge(w.client, self.settings.extend_weight * w.prompt_tokens)

    def decoded(self, counts: Mapping[str, int]) -> None:
        for client, tokens in counts.items():
            self.charge(client, self.settings.output_weight * tokens)

    def preempted(self, w: Waiting, unused: int = 0) -> None:
        self._lift(w.client)
        super().preempted(w, unused)
        if self.settings.vtc_charge == "extend":
            self.charge(w.client, -self.settings.extend_weight * unused)

    def finished(self, client: str, unused: int = 0) -> None:
        self.charge(client, -self.settings.extend_weight * unused)


class LiteralKLPM(Literal):
    """After k - 1 admissions in a row that were not the oldest request's, it is his turn, and he is
    waited for; else the longest match goes first."""

    def __init__(self, matches: Matches, k: int) -> None:
        super().__init__(matches)
        self.k = k
        self.others = 0

    def oldest(self) -> Waiting:
        return min(self.queued, key=lambda w: (w.priority, w.id not in self.back, w.order))

    def candidates(self, now: float) -> Iterator[Waiting]:
        tried: set[str] = set()
        while self.queued:
            turn = self.others >= self.k - 1
            left = [w for w in self.queued if w.id not in tried]
            if not left or (turn and self.oldest() not in left):
                return
            best = self.oldest() if turn else min(left, key=self.place)
            tried.add(best.id)
            yield best

    def admitted(self, w: Waiting, extend_tokens: int) -> None:
        self.others = 0 if w is self.oldest() else self.others + 1
        super().admitted(w, extend_tokens)
