"""Triton attention for sequences with several new tokens: tiles of tokens against the paged past.

One program holds some tokens of one sequence with all query heads of one key/value head, and walks
the positions they see in tiles that begin at multiples of the tile's size, with a running softmax
(Dao, "FlashAttention-2", 2023). A row that sees nothing of a tile is left exactly as it was, so how
a prompt was cut does not show.

H query heads share K key/value heads in groups of G. Scores are kept in base 2. Not yet run on a
GPU. Knows nothing of weights, models or who asks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def tile_owner(
    starts: tl.tensor, tile: tl.tensor, sequences: int, TOKENS: tl.constexpr
) -> tl.tensor:
    """The sequence of a tile, where sequence s begins at tile starts[s] // TOKENS + s: room for
    all its tiles, found without knowing the longest."""
    low = tile * 0
    high = low + sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) // TOKENS + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _walk(
    query: tl.tensor,
    position: tl.tensor,
    top: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    table: tl.tensor,
    begin: tl.tensor,
    stop: tl.tensor,
    end: tl.tensor,
    dim: int,
    block_tokens: int,
    c_block: int,
    c_token: int,
    window: int,
    scale: float,
    softcap: float,
    CAPPED: tl.constexpr,
    MASKED: tl.constexpr,
    TILE: tl.constexpr,
    DIM: tl.constexpr,
) -> tl.tensor:
    """Positions [begin, stop) in tiles, of which those from ``end`` on do not exist.

    MASKED: rows see different parts of a tile. What a row does not see may hold infinities, which
    a weight of 0 would not silence."""
    n = tl.arange(0, TILE)
    d = tl.arange(0, DIM)
    for at in range(begin, stop, TILE):
        p = at + n
        live = p < end
        block = tl.load(table + p // block_tokens, mask=live, other=0)
        if MASKED:
            live = live & (block >= 0)  # behind the window of every row: given back
        place = block.to(tl.int64) * c_block + (p % block_tokens) * c_token
        inside = live[:, None] & (d < dim)[None, :]
        key = tl.load(k_cache + place[:, None] + d[None, :], mask=inside, other=0.0)
        value = tl.load(v_cache + place[:, None] + d[None, :], mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(key.to(query.dtype)), input_precision="ieee") * scale
        if CAPPED:  # tanh(x) = 2 / (1 + e^-2x) - 1; the scale holds 2 log2(e) / cap
            scores = (2.0 / (1.0 + tl.exp2(-scores)) - 1.0) * softcap
        value = value.to(query.dtype)
        if MASKED:
            seen = (p[None, :] <= position[:, None]) & live[None, :]
            if window > 0:
                seen = seen & (p[None, :] > position[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        safe = higher
        if MASKED:
            safe = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2(top - safe)
        weights = tl.exp2(scores - safe[:, None])
        total = total * shrink + tl.sum(weights, axis=1)
        if MASKED:
            broken = (value != value) | (tl.abs(value) == float("inf"))
            value = tl.where(broken, 0.0, value).to(query.dtype)
            hurt = tl.dot(seen.to(query.dtype), broken.to(query.dtype), input_precision="ieee")
            out = tl.where(hurt > 0, float("nan"), out)
        mixed = tl.dot(weights.to(query.dtype), value, input_precision="ieee")
        out = out * shrink[:, None] + mixed
        top = higher
    return top, total, out


@triton.jit
def _prefill_kernel(
    q: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    table: tl.tensor,
    starts: tl.tensor,
    context: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    sequences: int,
    heads: int,
    dim: int,
    block_tokens: int,
    q_token: int,
    q_head: int,
    c_block: int,
    c_head: int,
    c_token: int,
    table_row: int,
    window: int,
    scale: float,
    softcap: float,
    GROUP: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    LSE: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """One tile of tokens and one key/value head. Sequences with one new token are left alone."""
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    s = tile_owner(starts, tile, sequences, TOKENS)
    begin = tl.load(starts + s)
    last = tl.load(starts + s + 1)
    from_token = begin + (tile - begin // TOKENS - s) * TOKENS
    if (from_token < last) & (last - begin > 1):
        r = tl.arange(0, ROWS)
        d = tl.arange(0, DIM)
        token = from_token + r // GROUP
        own_row = (r < TOKENS * GROUP) & (token < last)
        own = own_row[:, None] & (d < dim)[None, :]
        head = kv_head * GROUP + r % GROUP
        place = token.to(tl.int64)[:, None] * q_token + head[:, None] * q_head + d[None, :]
        query = tl.load(q + place, mask=own, other=0.0)

        low = tl.load(context + s) + from_token - begin  # positions of the first and last token
        high = tl.load(context + s) + tl.minimum(from_token + TOKENS, last) - 1 - begin
        position = tl.minimum(low + r // GROUP, high)  # unused rows act like the last one
        end = high + 1
        first = low * 0
        all_from = low * 0
        if window > 0:
            first = tl.maximum(low - window + 1, 0) // TILE * TILE
            all_from = tl.cdiv(tl.maximum(high - window + 1, 0), TILE) * TILE
        all_to = tl.maximum((low + 1) // TILE * TILE, first)
        all_from = tl.minimum(tl.maximum(all_from, first), all_to)
        k_head = k_cache + kv_head * c_head
        v_head = v_cache + kv_head * c_head
        own_table = table + s.to(tl.int64) * table_row
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        mixed = tl.zeros((ROWS, DIM), tl.float32)
        if window > 0:
            top, total, mixed = _walk(
                query, position, top, total, mixed, k_head, v_head, own_table,
                first, all_from, end, dim, block_tokens, c_block, c_token,
                window, scale, softcap, CAPPED, True, TILE, DIM,
            )  # fmt: skip
        top, total, mixed = _walk(
            query, position, top, total, mixed, k_head, v_head, own_table,
            all_from, all_to, end, dim, block_tokens, c_block, c_token,
            window, scale, softcap, CAPPED, False, TILE, DIM,
        )  # fmt: skip
        top, total, mixed = _walk(
            query, position, top, total, mixed, k_head, v_head, own_table,
            all_to, end, end, dim, block_tokens, c_block, c_token,
            window, scale, softcap, CAPPED, True, TILE, DIM,
        )  # fmt: skip
        if SINKS:
            sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
            higher = tl.maximum(top, sink)
            shrink = tl.exp2(top - higher)
            total = total * shrink + tl.exp2(sink - higher)
            mixed = mixed * shrink[:, None]
            top = higher
        to = token.to(tl.int64) * heads + head
        result = (mixed / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + to[:, None] * dim + d[None, :], result, mask=own)
        if LSE:
            tl.store(lse + to, (top + tl.log2(total)) * 0.6931471805599453, mask=own_row)


_ROOMY = 140 << 10
"""Bytes of shared memory that the large tiles need with heads of 128."""


class Tiling(NamedTuple):
    """Rows (tokens x heads of a group) and positions of one program's tile, and its warps."""

    rows: int
    positions: int
    warps: int
    stages: int


def tiling(dim: int, group: int, itemsize: int, shared: int) -> Tiling:
    """Sizes that fit a multiprocessor with ``shared`` bytes of memory. ``dim``: padded."""
    if itemsize == 4:
        return Tiling(64 if dim <= 128 else 32, 32, 4, 1)
    if dim > 128 or (dim > 64 and shared < _ROOMY):
        return Tiling(64, 32, 4, 2)
    return Tiling(128, 64, 8, 2)


def prefill(
    q_THD: Tensor,
    cache: Tensor,
    layer: int,
    table_SB: Tensor,
    starts_S1: Tensor,
    context_S: Tensor,
    out_THD: Tensor,
    lse_TH: Tensor | None,
    sinks_H: Tensor | None,
    *,
    scale: float,
    window: int,
    softcap: float,
    shared: int,
) -> None:
    """Attention into ``out`` (and ``lse``) for the sequences with more than one new token.

    ``window`` and ``softcap`` 0 mean none; ``shared``: bytes of shared memory a program may have.
    """
    tokens, heads, dim = q_THD.shape
    sequences = table_SB.shape[0]
    kv_heads, block_tokens = cache.shape[3], cache.shape[4]
    group = heads // kv_heads
    c_block, _, _, c_head, c_token, _ = cache.stride()
    DIM = max(16, triton.next_power_of_2(dim))
    size = tiling(DIM, group, q_THD.itemsize, shared)
    per_tile = max(1, size.rows // group)
    log2e = 1.0 / math.log(2.0)
    factor = 2.0 * scale * log2e / softcap if softcap else scale * log2e
    _prefill_kernel[(tokens // per_tile + sequences, kv_heads)](
        q_THD, cache[:, layer, 0], cache[:, layer, 1], table_SB, starts_S1, context_S,
        sinks_H, out_THD, lse_TH, sequences, heads, dim, block_tokens,
        q_THD.stride(0), q_THD.stride(1), c_block, c_head, c_token, table_SB.stride(0),
        window, factor, softcap * log2e,
        GROUP=group, CAPPED=softcap > 0, SINKS=sinks_H is not None, LSE=lse_TH is not None,
        TOKENS=per_tile, ROWS=size.rows, TILE=size.positions, DIM=DIM,
        num_warps=size.warps, num_stages=size.stages,
    )  # fmt: skip
