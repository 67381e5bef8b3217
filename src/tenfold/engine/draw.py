"""One row of logits to one token id: truncation, and a draw that depends on nothing else.

Plain numpy on one float32 row of V logits, so that a row's result has no way to depend on the batch
it came in, nor on the number of threads. Knows nothing of requests, penalties or grammars.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]

_GROUPS = 512
_BLOCK = 512
_SORTED_WHOLE = 2048
_HALVINGS = 16


class Weights(NamedTuple):
    """Tokens that may be drawn: ``ids`` ascending (None: all of them), and their weights."""

    ids: NDArray[np.intp] | None
    weights: Row


def uniform(seed: int, position: int) -> float:
    """A float64 in [0, 1) that is a pure function of (seed, position).

    Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a block
    cipher of a counter: any position can be asked for without those before it.
    """
    key = seed & 0xFFFF_FFFF_FFFF_FFFF
    bits = int(np.random.Philox(key=key, counter=position).random_raw())
    return (bits >> 11) * 2.0**-53


def truncate(
    row: Row, *, temperature: float, min_p: float = 0.0, top_k: int = 0, top_p: float = 1.0
) -> Weights:
    """Softmax weights at ``temperature``, with the unlikely tokens left out.

    Three cuts, each on what the one before left (vLLM's order; Hugging Face applies min_p last):
    min_p keeps tokens at least ``min_p`` times as likely as the likeliest; top_k the ``top_k``
    likeliest (off where <= 0); top_p the fewest whose share of the remaining weight reaches
    ``top_p``. Tokens exactly as likely as the last one kept are kept too, so that the result does
    not depend on an order of equals. The row's largest value must be finite; -inf bars a token.
    """
    weights = np.exp((row - row.max()) * np.float32(1.0 / temperature))
    ids: NDArray[np.intp] | None = None
    if min_p > 0:
        ids = np.flatnonzero(weights >= np.float32(min_p))
        weights = weights[ids]
    if 0 < top_k < len(weights):
        ids, weights = _keep(ids, weights, kth_largest(weights, top_k))
    if top_p < 1:
        ids, weights = _keep(ids, weights, _nucleus_edge(weights, top_p))
    return Weights(ids, weights)


def pick(choice: Weights, u: float) -> int:
    """The token at fraction ``u`` in [0, 1) of the total weight, in the order of ids.

    Sums are float64, over blocks first: the whole running sum of a large vocabulary is not needed.
    """
    ids, weights = choice
    whole = len(weights) // _BLOCK * _BLOCK
    sums = np.add.reduce(weights[:whole].reshape(-1, _BLOCK), axis=1, dtype=np.float64)
    if whole < len(weights):
        sums = np.append(sums, np.add.reduce(weights[whole:], dtype=np.float64))
    upto = np.cumsum(sums)
    block = _first_above(upto, u * upto[-1])
    before = upto[block] - sums[block]
    start = block * _BLOCK
    inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    at = start + _first_above(inside, u * upto[-1] - before)
    return at if ids is None else int(ids[at])


def log_sum_exp(row: Row) -> float:
    """The logarithm of the sum of exponentials; sums are float64."""
    top = row.max()
    return float(top) + float(np.log(np.add.reduce(np.exp(row - top), dtype=np.float64)))


def largest(row: Row, count: int) -> NDArray[np.intp]:
    """Ids of the ``count`` largest values, largest first, equals by lowest id."""
    if count <= 0:
        return np.empty(0, dtype=np.intp)
    if count >= len(row):
        ids = np.arange(len(row))
    else:
        ids = np.flatnonzero(row >= kth_largest(row, count))
    return ids[np.argsort(-row[ids], kind="stable")][:count]


def kth_largest(row: Row, k: int) -> np.float32:
    """The k-th largest value, 1 <= k <= len(row).

    The k-th largest of some groups' maxima bounds it from below, which leaves few candidates:
    several times faster than partitioning a large vocabulary.
    """
    if 2 * k < _GROUPS and len(row) > 8 * _GROUPS:
        whole = len(row) // _GROUPS * _GROUPS
        tops = row[:whole].reshape(-1, _GROUPS).max(axis=0)
        row = row[row >= np.partition(tops, _GROUPS - k)[_GROUPS - k]]
    return np.float32(np.partition(row, len(row) - k)[len(row) - k])


def _keep(
    ids: NDArray[np.intp] | None, weights: Row, least: np.float32
) -> tuple[NDArray[np.intp], Row]:
    chosen = np.flatnonzero(weights >= least)
    return chosen if ids is None else ids[chosen], weights[chosen]


def _nucleus_edge(weights: Row, top_p: float) -> np.float32:
    """The weight of the last token of the smallest set that holds ``top_p`` of the total.

    Halving the range of weights in which it must lie leaves few to sort: most of a large vocabulary
    is either sure to be in or sure to be out.
    """
    total = float(np.add.reduce(weights, dtype=np.float64))
    needed = top_p * total
    # Tokens at or under this weight hold, all together, less than what top_p gives away, so none of
    # them is needed. (Halved against rounding.)
    low, high = (1 - top_p) * total / len(weights) / 2, float(weights.max())
    near = weights[weights > np.float32(low)]
    above = 0.0
    for _ in range(_HALVINGS):
        if len(near) <= _SORTED_WHOLE:
            break
        middle = math.sqrt(low * high)
        upper = near > np.float32(middle)
        mass = float(np.add.reduce(near[upper], dtype=np.float64))
        if above + mass >= needed:
            near, low = near[upper], middle
        else:
            near, above, high = near[~upper], above + mass, middle
    ordered = np.sort(near)[::-1]
    reached = np.cumsum(ordered, dtype=np.float64)
    last = int(np.searchsorted(reached, needed - above))
    return np.float32(ordered[min(last, len(ordered) - 1)])


def _first_above(upto: NDArray[np.float64], target: float) -> int:
    """First index whose running sum is above ``target``; rounding at the end never leads to a
    token of no weight."""
    at = int(np.searchsorted(upto, target, side="right"))
    return at if at < len(upto) else int(np.searchsorted(upto, upto[-1]))
