"""Prompt lookup against a plain scan, and what a call may cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.scheduling.drafting import NgramDrafter


def scan(tokens: list[int], most: int, longest: int, shortest: int) -> list[int]:
    """The definition: the latest earlier place with the longest match, copied with overlap."""
    for n in range(longest, shortest - 1, -1):
        for at in range(len(tokens) - 1, n - 1, -1):
            if tokens[at - n : at] == tokens[len(tokens) - n :]:
                grown = list(tokens)
                for i in range(most):
                    grown.append(grown[at + i])
                return grown[len(tokens) :]
    return []


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.lists(st.integers(0, 12), min_size=1, max_size=12),
    st.integers(0, 9),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_a_guess_is_what_a_scan_finds(
    tokens: list[int], pauses: list[int], most: int, longest: int, shortest: int
) -> None:
    shortest = min(longest, shortest)
    drafter = NgramDrafter(longest, shortest)
    size = 1
    for pause in pauses:
        size = min(len(tokens), size + pause)
        seen = np.array(tokens[:size], np.int32)
        assert drafter.propose(seen, most) == scan(tokens[:size], most, longest, shortest)


def test_a_loop_goes_on_for_as_long_as_asked() -> None:
    tokens = np.array([9, 1, 2, 3, 1, 2, 3, 1, 2], np.int32)
    assert NgramDrafter().propose(tokens, 7) == [3, 1, 2, 3, 1, 2, 3]


def test_of_two_places_the_latest_counts_and_a_longer_match_before_both() -> None:
    tokens = np.array([7, 1, 2, 50, 8, 1, 2, 60, 1, 2], np.int32)
    assert NgramDrafter().propose(tokens, 1) == [60]
    tokens = np.array([7, 1, 2, 50, 8, 1, 2, 60, 7, 1, 2], np.int32)
    assert NgramDrafter().propose(tokens, 1) == [50]


class Counted:
    """Tokens that count how many of them are read."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = np.array(tokens, np.int32)
        self.read = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> np.ndarray:
        found = self.tokens[part]
        self.read += len(found)
        return found


def test_a_call_reads_what_is_new_and_never_the_whole_sequence() -> None:
    tokens = [i % 50 for i in range(8000)]
    drafter = NgramDrafter()
    drafter.propose(np.array(tokens, np.int32), 8)
    for i in range(20):
        tokens.append((8000 + i) % 50)
        counted = Counted(tokens)
        assert len(drafter.propose(counted, 8)) == 8  # type: ignore[arg-type]
        assert counted.read < 40


def test_lengths_that_make_no_sense_are_refused() -> None:
    for longest, shortest in ((2, 3), (3, 0)):
        with pytest.raises(ValueError, match="n-grams"):
            NgramDrafter(longest, shortest)
