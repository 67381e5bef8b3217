"""Guessing a sequence's next tokens, so that one step can verify several of them.

A guess is only ever a guess: whoever verifies it keeps the tokens that the model chooses anyway.
Knows nothing of models, time, or whether a guess is worth its cost (``speculation`` decides that).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Protocol

from tenfold.kvcache.hashing import IntArray


class Drafter(Protocol):
    """Guesses for one sequence."""

    def propose(self, tokens: IntArray, most: int) -> list[int]:
        """At most ``most`` tokens that may follow ``tokens``; empty when there is no guess.

        ``tokens``: the whole sequence so far, prompt and output. From call to call it only grows.
        """
        ...


NewDrafter = Callable[[], Drafter]


class NgramDrafter:
    """Prompt lookup: what followed the last time the sequence ended like this.

    The last ``longest`` tokens are looked for in the sequence itself, then fewer, down to
    ``shortest``; of several places the latest counts. What followed there is the guess; where it
    runs into the sequence's own end it goes on with itself, so a loop is continued for as long as
    asked. (Saxena, "Prompt lookup decoding", 2023; a copy that overlaps its source is LZ77's.)

    A call costs the tokens that are new since the last one, and the guess: never a scan.
    """

    def __init__(self, longest: int = 3, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams of {shortest} to {longest} tokens")
        self._followed: dict[int, dict[tuple[int, ...], int]] = {
            n: {} for n in range(longest, shortest - 1, -1)
        }
        self._known = 0

    def propose(self, tokens: IntArray, most: int) -> list[int]:
        self._learn(tokens)
        for n, followed in self._followed.items():
            if len(tokens) > n:
                at = followed.get(tuple(tokens[-n:].tolist()))
                if at is not None:
                    return _copy(tokens, at, most)
        return []

    def _learn(self, tokens: IntArray) -> None:
        """Note, for every n-gram that has a successor, where the latest such successor is."""
        size = len(tokens)
        for n, followed in self._followed.items():
            first = max(self._known, n)  # the first successor that is not noted yet
            fresh = tokens[first - n : size - 1].tolist()
            grams = zip(*(fresh[i:] for i in range(n)), strict=False)
            followed.update(zip(grams, count(first), strict=False))
        self._known = max(self._known, size)


def _copy(tokens: IntArray, start: int, most: int) -> list[int]:
    """``most`` tokens from ``start`` on, going round where the sequence ends."""
    found: list[int] = tokens[start : start + most].tolist()
    period = len(tokens) - start
    while len(found) < most:
        found.append(found[len(found) - period])
    return found
