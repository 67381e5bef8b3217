"""A sampler written straight from the definitions, in float64, one row at a time.

Raises Ambiguous where rounding to float32 could decide the outcome.
"""

from __future__ import annotations

import math

import numpy as np

from tenfold.core.types import SamplingParams
from tenfold.engine.draw import uniform


class Ambiguous(Exception):
    pass


def altered(row, params: SamplingParams, prompt, output, eos: int) -> np.ndarray:
    x = np.array(row, dtype=np.float64)
    for id, bias in params.logit_bias.items():
        x[id] += bias
    for id in {*prompt, *output}:
        penalty = params.repetition_penalty
        x[id] = x[id] / penalty if x[id] > 0 else x[id] * penalty
    for id in set(output):
        x[id] -= params.frequency_penalty * list(output).count(id) + params.presence_penalty
    if len(output) < params.min_tokens:
        for id in {*params.stop_token_ids, *(() if params.ignore_eos else (eos,))}:
            x[id] = -math.inf
    return x


def _clear_of(values, edge: float) -> None:
    if np.any(np.abs(np.asarray(values) - edge) < 1e-5):
        raise Ambiguous


def _from_edge_up(p: np.ndarray, edge: float) -> np.ndarray:
    _clear_of(p[(p != edge) & (p > 0)], edge)
    return np.where(p < edge, 0, p)


def kept(x: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities after min_p, top_k and top_p."""
    p = np.exp((x - x.max()) / params.temperature)
    _clear_of(p[p < 1], params.min_p)
    p[p < params.min_p] = 0
    if params.top_k > 0:
        p = _from_edge_up(p, np.sort(p)[::-1][min(params.top_k, len(p)) - 1])
    p /= p.sum()
    if params.top_p < 1:
        ordered = np.sort(p)[::-1]
        reached = np.cumsum(ordered)
        _clear_of(reached, params.top_p)
        p = _from_edge_up(p, ordered[np.searchsorted(reached, params.top_p)])
    return p / p.sum()


def reference(row, params: SamplingParams, prompt, output, eos: int) -> int:
    x = altered(row, params, prompt, output, eos)
    if params.temperature == 0:
        _clear_of(np.sort(x)[:-1], x.max())
        return int(x.argmax())
    reached = np.cumsum(kept(x, params))
    u = uniform(params.seed or 0, len(output))
    _clear_of(reached[:-1], u)
    return int(np.searchsorted(reached, u, side="right"))
