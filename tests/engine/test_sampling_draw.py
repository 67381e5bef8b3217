"""The fast paths on large rows, against sorting the whole row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.engine.draw import Weights, kth_largest, largest, log_sum_exp, pick, truncate


def row_of(size: int, spread: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 511, 4096, 4097, 49152, 50001])
@pytest.mark.parametrize("k", [1, 2, 40, 255, 256, 5000])
def test_kth_largest(size, k):
    row = row_of(size, 3, size + k)
    if k <= size:
        assert kth_largest(row, k) == np.sort(row)[::-1][k - 1]


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [0, 64])
def test_nucleus_of_a_large_row(spread, top_p, top_k):
    row = row_of(49152, spread, 1)
    found = truncate(row, temperature=0.8, top_p=top_p, top_k=top_k)
    weights = np.exp((row - row.max()) * np.float32(1 / 0.8)).astype(np.float64)
    if top_k:
        weights[weights < np.sort(weights)[-top_k]] = 0
    ordered = np.sort(weights)[::-1]
    reached = np.cumsum(ordered)
    edge = ordered[np.searchsorted(reached, top_p * reached[-1])]
    assert found.ids is not None
    want = np.flatnonzero(weights >= edge)
    # Sums in another order may move the edge by a token where very many are about as likely.
    assert abs(len(found.ids) - len(want)) <= (2 if spread else 0)
    assert set(found.ids) <= set(want) or set(want) <= set(found.ids)


@given(st.integers(1, 3000), st.floats(0, 1, exclude_max=True), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_pick_agrees_with_one_running_sum(size, u, seed):
    rng = np.random.default_rng(seed)
    weights = rng.random(size, dtype=np.float32)
    weights[rng.random(size) < 0.3] = 0
    weights[rng.integers(size)] = 0.5
    got = pick(Weights(None, weights), u)
    assert weights[got] > 0
    reached = np.cumsum(weights, dtype=np.float64)
    before = reached[got] - weights[got]
    assert before - 1e-6 <= u * reached[-1] <= reached[got] + 1e-6


def test_pick_never_takes_a_token_of_no_weight():
    weights = np.zeros(1500, dtype=np.float32)
    weights[700] = 1e-30
    for u in (0.0, 0.5, 1 - 2**-53):
        assert pick(Weights(None, weights), u) == 700
    ids = np.array([3, 9])
    assert pick(Weights(ids, np.array([0, 1], dtype=np.float32)), 0.0) == 9


def test_ties_at_an_edge_are_all_kept():
    row = np.array([1, 0, 1, 0, 1], dtype=np.float32)
    for knobs in ({"top_k": 2}, {"top_p": 0.3}, {"min_p": 1.0}):
        found = truncate(row, temperature=1.0, **knobs)
        assert found.ids is not None and found.ids.tolist() == [0, 2, 4]


def test_largest_and_log_sum_exp():
    row = row_of(20000, 4, 5)
    assert largest(row, 20).tolist() == np.argsort(-row, kind="stable")[:20].tolist()
    assert largest(row, 0).tolist() == []
    assert largest(row[:5], 50).tolist() == np.argsort(-row[:5], kind="stable").tolist()
    want = np.log(np.exp(row.astype(np.float64)).sum())
    assert log_sum_exp(row) == pytest.approx(want, abs=1e-5)
