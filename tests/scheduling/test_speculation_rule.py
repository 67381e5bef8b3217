"""The rule that says how much of each guess to verify: pure numbers in, lengths out."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.scheduling.speculation import (
    Acceptance,
    Guess,
    Track,
    draft_lengths,
    probe,
    share_out,
)

guesses_st = st.lists(
    st.builds(Guess, st.integers(0, 4), st.floats(0, 1), st.floats(1e-5, 0.1)),
    min_size=1,
    max_size=4,
)


def brings(guesses: list[Guess], taken: tuple[int, ...] | list[int], seconds: float) -> float:
    """Expected tokens a second."""
    tokens = len(guesses) + sum(
        guess.rate**j for guess, n in zip(guesses, taken, strict=True) for j in range(1, n + 1)
    )
    return tokens / (seconds + sum(g.seconds * n for g, n in zip(guesses, taken, strict=True)))


@settings(deadline=None)
@given(guesses_st, st.floats(1e-3, 0.2))
def test_nothing_else_would_bring_more_tokens_a_second(
    guesses: list[Guess], seconds: float
) -> None:
    taken = draft_lengths(guesses, tokens=len(guesses), seconds=seconds, room=999, limit=inf)
    assert all(0 <= n <= guess.length for n, guess in zip(taken, guesses, strict=True))
    every = product(*(range(guess.length + 1) for guess in guesses))
    best = max(brings(guesses, choice, seconds) for choice in every)
    assert brings(guesses, taken, seconds) == pytest.approx(best)


@given(guesses_st, st.floats(1e-3, 0.2), st.integers(0, 8), st.floats(0, 0.3))
def test_room_and_limit_are_kept(
    guesses: list[Guess], seconds: float, room: int, limit: float
) -> None:
    taken = draft_lengths(guesses, tokens=len(guesses), seconds=seconds, room=room, limit=limit)
    assert sum(taken) <= room
    spent = sum(guess.seconds * n for guess, n in zip(guesses, taken, strict=True))
    assert not any(taken) or seconds + spent <= limit + 1e-9


def test_cheap_rows_are_drafted_and_dear_ones_not() -> None:
    """One stream: eight more rows are nearly free. Sixteen: each costs what a stream does."""
    one = [Guess(8, 0.6, 0.0004)]
    assert draft_lengths(one, tokens=1, seconds=0.008, room=99, limit=inf)[0] >= 4
    many = [Guess(8, 0.6, 0.0015)] * 16
    assert not any(draft_lengths(many, tokens=16, seconds=0.03, room=99, limit=inf))
    many[3] = Guess(8, 0.97, 0.0015)
    taken = draft_lengths(many, tokens=16, seconds=0.03, room=99, limit=inf)
    assert taken[3] > 0 and sum(taken) == taken[3]


def test_guesses_that_are_never_right_are_not_drafted_though_free() -> None:
    assert draft_lengths([Guess(8, 0.0, 0.0)], tokens=1, seconds=0.01, room=9, limit=inf) == [0]


def test_a_probe_takes_the_likeliest_guess_if_any_is_likely() -> None:
    guesses = [Guess(3, 0.4, 1), Guess(0, 0.9, 1), Guess(5, 0.6, 1)]
    assert probe(guesses, 0.3) == [0, 0, 5]
    assert probe(guesses, 0.7) == [0, 0, 0]
    assert probe([], 0.3) == []


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 30))
def test_room_is_shared_out_evenly(lengths: list[int], room: int) -> None:
    taken = share_out(lengths, room)
    assert sum(taken) == min(room, sum(lengths))
    assert all(n <= length for n, length in zip(taken, lengths, strict=True))
    for n, length in zip(taken, lengths, strict=True):
        assert n == length or n >= max(taken) - 1


def test_acceptance_starts_as_expected_learns_and_forgets() -> None:
    found = Acceptance()
    assert found.rate(0.4) == pytest.approx(0.4)
    for _ in range(100):
        found.saw(True)
    assert found.rate(0.4) > 0.85
    for _ in range(100):
        found.saw(False)
    assert found.rate(0.4) < 0.15


class Says:
    def __init__(self, guess: list[int]) -> None:
        self.guess = guess

    def propose(self, tokens: object, most: int) -> list[int]:
        return self.guess[:most]


def test_a_track_compares_what_came_until_the_first_wrong_token() -> None:
    track = Track(Says([5, 6, 7, 8]))
    assert track.saw(5) is None
    track.propose(np.array([1], np.int32), 3)
    assert [track.saw(token) for token in (5, 6, 9, 7)] == [True, True, False, None]
    track.propose(np.array([1], np.int32), 1)
    assert [track.saw(token) for token in (5, 6)] == [True, None]
    assert track.acceptance.seen > 3.5
