"""Whether guessed tokens pay: how often they have been right, and what verifying them costs.

Pure arithmetic over integers and predicted seconds. Knows nothing of models, kernels or caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace

from tenfold.kvcache.hashing import IntArray
from tenfold.scheduling.drafting import Drafter

MEMORY = 32.0
"""Guesses after which an older outcome counts 1/e."""

PRIOR = 8.0
"""How many guesses the expectation for a new sequence is worth."""


@dataclass(slots=True)
class Acceptance:
    """How often a guess was the very token that came, recent ones counting most.

    Outcomes are known for each guess, verified in a step or merely compared with what came, so that
    not drafting does not blind the rule that decides about drafting.
    """

    right: float = 0.0
    seen: float = 0.0

    def saw(self, right: bool) -> None:
        self.right += right - self.right / MEMORY
        self.seen += 1 - self.seen / MEMORY

    def rate(self, expected: float) -> float:
        """The share of right guesses, in [0, 1]; ``expected`` stands in while few were seen."""
        return (self.right + PRIOR * expected) / (self.seen + PRIOR)


@dataclass(slots=True)
class Track:
    """One sequence's guesses: what the last one said, and how good they have been."""

    drafter: Drafter
    acceptance: Acceptance = field(default_factory=Acceptance)
    expected: list[int] = field(default_factory=list)
    _at: int = 0

    def propose(self, tokens: IntArray, most: int) -> list[int]:
        """A fresh guess; the tokens that come are compared with it."""
        self.expected = self.drafter.propose(tokens, most)
        self._at = 0
        return self.expected

    def saw(self, token: int) -> bool | None:
        """The sequence's next token came: whether it was guessed. None: there was no guess."""
        if self._at >= len(self.expected):
            return None
        right = self.expected[self._at] == token
        self._at += 1
        if not right:
            self.expected = []
        self.acceptance.saw(right)
        return right


@dataclass(slots=True, frozen=True)
class Guess:
    """One sequence's guess: its length, how likely each further token is right given those before
    it, and the seconds that verifying one token takes."""

    length: int
    rate: float
    seconds: float


def draft_lengths(
    guesses: Sequence[Guess], *, tokens: int, seconds: float, room: int, limit: float
) -> list[int]:
    """How much of each guess to verify, so that tokens a second are most.

    ``tokens`` and ``seconds``: what the step brings without drafts, and takes. The j-th token of a
    guess is expected to bring rate^j tokens. A token joins while it brings more a second than the
    step has so far, the best first, which is optimal as each further one of a guess brings less
    (Dinkelbach 1967, on ratios). At most ``room`` join, and only within ``limit`` seconds in all.
    """
    taken = [0] * len(guesses)
    total = float(tokens)
    queue = [
        (-guess.rate / max(guess.seconds, 1e-12), i)
        for i, guess in enumerate(guesses)
        if guess.length and guess.rate > 0
    ]
    heapify(queue)
    while queue and room > 0:
        gain, i = -queue[0][0], queue[0][1]
        guess = guesses[i]
        cost = max(guess.seconds, 1e-12)
        if gain * seconds <= total or seconds + cost > limit:
            break
        taken[i] += 1
        total += gain * cost
        seconds += cost
        room -= 1
        following = gain * guess.rate if taken[i] < guess.length else 0.0
        heapreplace(queue, (-following, i))
    return taken


def probe(guesses: Sequence[Guess], least: float) -> list[int]:
    """The likeliest guess whole, if its tokens are right ``least`` of the time: to see what
    verifying costs where the rule has long found it too dear."""
    best = max(guesses, key=lambda guess: (guess.length > 0, guess.rate), default=None)
    if best is None or best.rate < least:
        return [0] * len(guesses)
    return [guess.length if guess is best else 0 for guess in guesses]


def share_out(lengths: Sequence[int], room: int) -> list[int]:
    """As much of each guess as ``room`` tokens allow in all, a token each in turn."""
    taken = [0] * len(lengths)
    level = 0
    while room > 0 and any(length > level for length in lengths):
        for i, length in enumerate(lengths):
            if length > level and room > 0:
                taken[i] += 1
                room -= 1
        level += 1
    return taken
