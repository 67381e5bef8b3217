"""What each client is due, Jain's index, and how far the least served one lets others get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.core.settings import Share
from tenfold.scheduling.counters import Counters
from tenfold.scheduling.fair_shares import fair_shares, jain

TREE = [
    Share("org", 3.0, is_group=True),
    Share("team", 1.0, "org", is_group=True),
    Share("ada", 2.0, "team"),
    Share("bob", 1.0, "team"),
    Share("carol", 1.0, "org"),
    Share("dave", 1.0),
]


@pytest.mark.parametrize(
    ("clients", "due"),
    [
        ([], {}),
        (["x", "y", "z", "w"], dict.fromkeys("xyzw", 0.25)),
        (
            ["ada", "bob", "carol", "dave"],
            {"ada": 1 / 4, "bob": 1 / 8, "carol": 3 / 8, "dave": 1 / 4},
        ),
        (["ada", "carol", "dave"], {"ada": 3 / 8, "carol": 3 / 8, "dave": 1 / 4}),
        (["bob", "stranger"], {"bob": 3 / 4, "stranger": 1 / 4}),
        (["org", "ada"], {"org": 1 / 4, "ada": 3 / 4}),
        (["carol", "carol"], {"carol": 1.0}),
    ],
)
def test_what_siblings_leave_goes_to_siblings(clients: list[str], due: dict[str, float]) -> None:
    assert fair_shares(TREE, clients) == pytest.approx(due)


@given(st.sets(st.sampled_from(["ada", "bob", "carol", "dave", "eve", "fay"]), min_size=1))
def test_parts_are_a_whole(clients: set[str]) -> None:
    due = fair_shares(TREE, clients)
    assert due.keys() == clients
    assert sum(due.values()) == pytest.approx(1.0)


def test_jain() -> None:
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([1.0, 3.0]) == pytest.approx(0.8)
    assert jain([5.0]) is None
    assert jain([0.0, 0.0]) is None


def test_drift_of_counters() -> None:
    counters = Counters()
    counters.set_shares([Share("bob", 2.0)])
    for client in ("ada", "bob"):
        counters.queue(client)
    assert counters.drift("ada") == counters.drift("bob") == 0.0
    counters.charge("ada", 6.0)
    assert (counters.drift("ada"), counters.drift("bob")) == (6.0, 0.0)
    counters.charge("bob", 20.0)
    assert (counters.drift("ada"), counters.drift("bob")) == (0.0, 8.0)
    counters.unqueue("ada")
    assert counters.drift("ada") == 0.0
    assert counters.drift("bob") == 0.0
