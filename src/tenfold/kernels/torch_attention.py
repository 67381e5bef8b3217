"""Attention of one sequence's new tokens over its blocks, in exact sums (see ``exact``).

Scores: keys on grids of 24 bits, queries split in two parts. Weights: exp(score - max), a number
in [0, 1]; a value vector's own power of two moves into its weight, so that values lie on one fixed
grid while each row of weights has its own. Every grid depends only on what the row itself sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.kernels import exact
from tenfold.kernels.checks import ShapeError
from tenfold.kernels.kv_rows import decode

POSITION_BITS = 17
"""Sums over positions are exact up to 2^17 of them."""
KEY_BITS = 24
VALUE_BITS = 23


@dataclass(slots=True, frozen=True)
class Options:
    """What a layer fixes for all of its attention, as in ``Kernels.paged_attention``."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None


def attend_sequence(
    q_THD: Tensor,
    cache: Tensor,
    layer: int,
    table: list[int],
    context: int,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Rows of one sequence, the first at position ``context`` -> (T, H, D) and (T, H) float32."""
    tokens, heads, _ = q_THD.shape
    window = options.window
    end = context + tokens
    if end > 1 << POSITION_BITS:
        raise ShapeError(
            f"{end} positions; the torch kernels attend over at most {1 << POSITION_BITS}"
        )
    first = max(0, context - window + 1) if window else 0
    past = _prepare(*_gather(cache, layer, table, first, end))
    step = max(1, exact.CACHED // (heads * (end - first)))
    out_THD, lse_TH = q_THD.new_empty(q_THD.shape), q_THD.new_empty(tokens, heads)
    for at in range(0, tokens, step):
        rows = q_THD[at : at + step]
        positions = torch.arange(context + at, context + at + rows.shape[0])[:, None]
        # Positions after the last row, or before the first row's window, are not worth computing.
        start = max(first, context + at - window + 1) if window else first
        stop = context + at + rows.shape[0]
        columns = torch.arange(start, stop)[None, :]
        seen = columns <= positions
        if window:
            seen &= columns > positions - window
        part = slice(start - first, stop - first)
        results = _attend(rows, past, part, seen, options)
        out_THD[at : at + step], lse_TH[at : at + step] = results
    return out_THD, lse_TH


def _gather(
    cache: Tensor, layer: int, table: list[int], first: int, end: int
) -> tuple[Tensor, Tensor]:
    """Keys and values (K, P, D) float64 of positions [first, end); no entry before them is read."""
    block_tokens = cache.shape[4]
    begin, stop = first // block_tokens, (end - 1) // block_tokens + 1
    blocks = table[begin:stop]
    if len(blocks) < stop - begin or not all(0 <= b < cache.shape[0] for b in blocks):
        raise ShapeError(
            f"positions {first} to {end} need {stop} blocks within [0, {cache.shape[0]}); "
            f"the table holds {table[begin:]} from {begin} on"
        )
    pages = cache[torch.tensor(blocks), layer]  # (blocks, 2, K, block tokens, row)
    flat = pages.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, first - begin * block_tokens :]
    keys, values = decode(flat[:, :, : end - first]).unbind(0)
    return keys, values


@dataclass(slots=True)
class _Past:
    """One sequence's positions, on their grids."""

    keys_KDP: Tensor
    values_KPD: Tensor
    """Each vector divided by its power of two; zero where it is not finite."""
    power_K1P: Tensor
    broken_K1P: Tensor
    """Whether the value vector holds an infinity or NaN."""


def _prepare(keys_KPD: Tensor, values_KPD: Tensor) -> _Past:
    keys = exact.on_grid(keys_KPD, exact.exponent_of(keys_KPD, 2), KEY_BITS)
    broken = ~torch.isfinite(values_KPD).all(-1)
    exponent = exact.exponent_of(values_KPD, 2)
    power = exact.power_of_two(exponent)
    values = exact.on_grid(values_KPD / power, 0, VALUE_BITS)
    values.masked_fill_(broken[:, :, None], 0.0)
    return _Past(keys.transpose(1, 2), values, power.transpose(1, 2), broken[:, None, :])


def _attend(
    q_THD: Tensor, past: _Past, part: slice, seen_TP: Tensor, options: Options
) -> tuple[Tensor, Tensor]:
    tokens, heads, dim = q_THD.shape
    keys, values = past.keys_KDP[:, :, part], past.values_KPD[:, part]
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    q_KRD = q_THD.double().view(tokens, kv_heads, group, dim).transpose(0, 1).flatten(1, 2)
    hidden = ~seen_TP.repeat_interleave(group, dim=0)  # rows: token by token, its heads together

    bits = exact.MANTISSA - KEY_BITS - exact.count_bits(dim)
    first, second = exact.split(q_KRD, 2, bits)
    scores = (first @ keys).add_(second @ keys).mul_(options.scale)
    if options.softcap is not None:
        scores = exact.tanh(scores / options.softcap).mul_(options.softcap)
    scores.masked_fill_(hidden, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    if options.sinks_H is not None:
        sinks_K1G = options.sinks_H.double().view(kv_heads, 1, group)
        sink = sinks_K1G.expand(-1, tokens, -1).reshape(kv_heads, -1, 1)
        top = torch.maximum(top, sink)
    weights = exact.exp(scores.sub_(top)).masked_fill_(hidden, 0.0)

    # Weights are at most 1, so their sum is exact on one fixed grid.
    total = exact.on_grid(weights, 0, exact.MANTISSA - POSITION_BITS - 1).sum(-1, keepdim=True)
    if options.sinks_H is not None:
        total = total + exact.exp(sink - top)
    weights.mul_(past.power_K1P[:, :, part])
    first, second = exact.split(weights, 2, exact.MANTISSA - POSITION_BITS - VALUE_BITS)
    out = (first @ values).add_(second @ values).div_(total)
    broken = past.broken_K1P[:, :, part]
    if bool(broken.any()):
        out.masked_fill_((~hidden & broken).any(-1, keepdim=True), torch.nan)
    lse = top + exact.log(total)
    rows = torch.cat([out, lse], -1).float().view(kv_heads, tokens, group, dim + 1)
    rows = rows.transpose(0, 1).reshape(tokens, heads, dim + 1)
    return rows[..., :dim], rows[..., dim]
