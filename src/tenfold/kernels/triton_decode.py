"""Triton attention for sequences with one new token: split over the past, merged in index order.

A row's past is cut at fixed lengths (256 positions; twice, four times ... that where there would be
more than 64 pieces), counted from the first position it sees. The lengths depend on that row alone,
and pieces are merged in their order, so neither the batch nor the number of programs shows in a
result. (Splitting after Dao et al., "Flash-Decoding", 2023.)

H query heads share K key/value heads in groups of G. Scores are kept in base 2. Not yet run on a
GPU. Knows nothing of weights, models or who asks.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT = 256
"""Positions of one piece, unless a row sees more than MOST_SPLITS such pieces."""
MOST_SPLITS = 64
_TILE = 64
_MERGED = 16
"""Pieces that the merge reads at a time."""


@triton.jit
def _sequence_of(starts: tl.tensor, row: tl.tensor, sequences: int) -> tl.tensor:
    """The sequence that owns ``row``: its own number in a pure decode batch, else by search."""
    guess = tl.minimum(row, sequences - 1)
    low = guess
    if (tl.load(starts + guess) > row) | (tl.load(starts + guess + 1) <= row):
        low = guess * 0
        high = low + sequences
        while high - low > 1:
            middle = (low + high) // 2
            if tl.load(starts + middle) <= row:
                low = middle
            else:
                high = middle
    return low


@triton.jit
def _slots_kernel(
    table: tl.tensor,
    starts: tl.tensor,
    context: tl.tensor,
    slots: tl.tensor,
    sequences: int,
    table_row: int,
    block_tokens: int,
) -> None:
    row = tl.program_id(0)
    s = _sequence_of(starts, row, sequences)
    position = tl.load(context + s) + row - tl.load(starts + s)
    slot = position * 0 - 1
    if position >= 0:  # a padding row has context -1
        block = tl.load(table + s.to(tl.int64) * table_row + position // block_tokens)
        slot = block * block_tokens + position % block_tokens
    tl.store(slots + row, slot)


def slots(
    table_SB: Tensor, starts_S1: Tensor, context_S: Tensor, tokens: int, block_tokens: int
) -> Tensor:
    """Where each new token is kept -> (T,) int32; -1 for padding rows."""
    out = torch.empty(tokens, dtype=torch.int32, device=table_SB.device)
    if tokens:
        _slots_kernel[(tokens,)](
            table_SB, starts_S1, context_S, out, table_SB.shape[0],
            table_SB.stride(0), block_tokens, num_warps=1,
        )  # fmt: skip
    return out


@triton.jit
def _first_seen(position: tl.tensor, window: int) -> tl.tensor:
    """The earliest position that ``position`` sees; ``window`` 0 means all of them."""
    first = position * 0
    if window > 0:
        first = tl.maximum(first, position - window + 1)
    return first


@triton.jit
def _piece_length(seen: tl.tensor, SPLIT: tl.constexpr, MOST: tl.constexpr) -> tl.tensor:
    length = seen * 0 + SPLIT
    while length * MOST < seen:
        length *= 2
    return length


@triton.jit
def _token_of(
    starts: tl.tensor,
    context: tl.tensor,
    row: tl.tensor,
    sequences: int,
    BY_TOKEN: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """A row's sequence, token and position, and whether it is to be computed.

    BY_TOKEN: rows are tokens. Else they are sequences, and those without exactly one new token are
    left alone."""
    token = row
    s = row
    wanted = row >= 0
    if BY_TOKEN:
        s = _sequence_of(starts, row, sequences)
    else:
        token = tl.load(starts + s)
        wanted = tl.load(starts + s + 1) - token == 1
    position = tl.load(context + s) + token - tl.load(starts + s)
    return s, token, position, wanted


@triton.jit
def _decode_kernel(
    q: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    table: tl.tensor,
    starts: tl.tensor,
    context: tl.tensor,
    part_out: tl.tensor,
    part_lse: tl.tensor,
    sequences: int,
    dim: int,
    block_tokens: int,
    pieces: int,
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
    BY_TOKEN: tl.constexpr,
    CAPPED: tl.constexpr,
    SPLIT: tl.constexpr,
    MOST: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """Pieces lane, lane + lanes, ... of one row and key/value head, each to part_out, part_lse.

    BY_TOKEN as ``_token_of`` takes it."""
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    lane = tl.program_id(2)
    s, token, position, wanted = _token_of(starts, context, row, sequences, BY_TOKEN)
    first = _first_seen(position, window)
    end = position + 1
    length = _piece_length(end - first, SPLIT, MOST)
    count = tl.where(wanted, tl.cdiv(tl.maximum(end - first, 0), length), 0)

    g = tl.arange(0, ROWS)
    d = tl.arange(0, DIM)
    n = tl.arange(0, TILE)
    own = (g < GROUP)[:, None] & (d < dim)[None, :]
    heads = tl.num_programs(1) * GROUP
    head = kv_head * GROUP + g
    query = tl.load(
        q + token.to(tl.int64) * q_token + head[:, None] * q_head + d[None, :], mask=own, other=0.0
    )
    for piece in range(lane, count, tl.num_programs(2)):
        begin = first + piece * length
        stop = tl.minimum(begin + length, end)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        out = tl.zeros((ROWS, DIM), tl.float32)
        for at in range(begin, stop, TILE):
            p = at + n
            live = p < stop
            block = tl.load(
                table + s.to(tl.int64) * table_row + p // block_tokens, mask=live, other=0
            )
            place = block.to(tl.int64) * c_block + kv_head * c_head + (p % block_tokens) * c_token
            inside = live[:, None] & (d < dim)[None, :]
            key = tl.load(k_cache + place[:, None] + d[None, :], mask=inside, other=0.0)
            value = tl.load(v_cache + place[:, None] + d[None, :], mask=inside, other=0.0)
            scores = tl.dot(query, tl.trans(key.to(query.dtype)), input_precision="ieee") * scale
            if CAPPED:  # tanh(x) = 2 / (1 + e^-2x) - 1; the scale holds 2 log2(e) / cap
                scores = (2.0 / (1.0 + tl.exp2(-scores)) - 1.0) * softcap
            scores = tl.where(live[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, axis=1))
            shrink = tl.exp2(top - higher)
            weights = tl.exp2(scores - higher[:, None])
            total = total * shrink + tl.sum(weights, axis=1)
            value = value.to(query.dtype)
            mixed = tl.dot(weights.to(query.dtype), value, input_precision="ieee")
            out = out * shrink[:, None] + mixed
            top = higher
        place = (row.to(tl.int64) * heads + head) * pieces + piece
        tl.store(part_out + place[:, None] * dim + d[None, :], out / total[:, None], mask=own)
        tl.store(part_lse + place, top + tl.log2(total), mask=g < GROUP)


@triton.jit
def _merge_kernel(
    part_out: tl.tensor,
    part_lse: tl.tensor,
    starts: tl.tensor,
    context: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    sequences: int,
    heads: int,
    dim: int,
    pieces: int,
    window: int,
    BY_TOKEN: tl.constexpr,
    SINKS: tl.constexpr,
    LSE: tl.constexpr,
    SPLIT: tl.constexpr,
    MOST: tl.constexpr,
    MERGED: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """One row and head: pieces weighted by their sums of exponentials. No past at all gives 0."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    _, token, position, wanted = _token_of(starts, context, row, sequences, BY_TOKEN)
    seen = tl.maximum(position + 1 - _first_seen(position, window), 0)
    count = tl.cdiv(seen, _piece_length(seen, SPLIT, MOST))

    d = tl.arange(0, DIM)
    i = tl.arange(0, MERGED)
    base = (row.to(tl.int64) * heads + head) * pieces
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    if SINKS:
        top = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        total += 1.0
    mixed = tl.zeros((DIM,), tl.float32)
    if wanted:
        for at in range(0, count, MERGED):
            live = at + i < count
            parts = tl.load(part_lse + base + at + i, mask=live, other=float("-inf"))
            higher = tl.maximum(top, tl.max(parts, axis=0))
            shrink = tl.exp2(top - higher)
            weights = tl.exp2(parts - higher)
            inside = live[:, None] & (d < dim)[None, :]
            rows = tl.load(
                part_out + (base + at + i)[:, None] * dim + d[None, :], mask=inside, other=0.0
            )
            mixed = mixed * shrink + tl.sum(rows * weights[:, None], axis=0)
            total = total * shrink + tl.sum(weights, axis=0)
            top = higher
        place = token.to(tl.int64) * heads + head
        result = mixed / tl.where(count > 0, total, 1.0)
        tl.store(out + place * dim + d, result.to(out.dtype.element_ty), mask=d < dim)
        if LSE:
            tl.store(lse + place, (top + tl.log2(total)) * 0.6931471805599453)


def decode(
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
    processors: int,
) -> None:
    """Attention into ``out`` (and ``lse``), for all tokens where there are as many as sequences,
    else for the sequences with one new token.

    ``window`` and ``softcap`` 0 mean none; ``processors`` of the device bound the programs."""
    tokens, heads, dim = q_THD.shape
    sequences, columns = table_SB.shape
    by_token = tokens == sequences
    rows = tokens if by_token else sequences
    kv_heads, block_tokens = cache.shape[3], cache.shape[4]
    group = heads // kv_heads
    pieces = max(1, min(MOST_SPLITS, -(-columns * block_tokens // SPLIT)))
    lanes = max(1, min(pieces, -(-4 * processors // (rows * kv_heads))))
    device = q_THD.device
    part_out = torch.empty(rows, heads, pieces, dim, dtype=torch.float32, device=device)
    part_lse = torch.empty(rows, heads, pieces, dtype=torch.float32, device=device)
    c_block, _, _, c_head, c_token, _ = cache.stride()
    log2e = 1.0 / math.log(2.0)
    factor = 2.0 * scale * log2e / softcap if softcap else scale * log2e
    DIM = max(16, triton.next_power_of_2(dim))
    _decode_kernel[(rows, kv_heads, lanes)](
        q_THD, cache[:, layer, 0], cache[:, layer, 1], table_SB, starts_S1, context_S,
        part_out, part_lse, sequences, dim, block_tokens, pieces,
        q_THD.stride(0), q_THD.stride(1), c_block, c_head, c_token, table_SB.stride(0),
        window, factor, softcap * log2e,
        GROUP=group, BY_TOKEN=by_token, CAPPED=softcap > 0, SPLIT=SPLIT, MOST=MOST_SPLITS,
        ROWS=max(16, triton.next_power_of_2(group)), TILE=_TILE if DIM <= 128 else _TILE // 2,
        DIM=DIM, num_warps=4,
    )  # fmt: skip
    _merge_kernel[(rows, heads)](
        part_out, part_lse, starts_S1, context_S, sinks_H, out_THD, lse_TH,
        sequences, heads, dim, pieces, window,
        BY_TOKEN=by_token, SINKS=sinks_H is not None, LSE=lse_TH is not None,
        SPLIT=SPLIT, MOST=MOST_SPLITS, MERGED=_MERGED, DIM=DIM, num_warps=4 if DIM > 64 else 2,
    )  # fmt: skip
