"""A Triton matrix product over ragged groups: every row times the matrix of its own expert.

Rows are pairs (token, slot) sorted by expert; one launch covers all experts, without the host
knowing how many rows each has. T tokens, R pairs, E experts, I inputs, O outputs. Not yet run on a
GPU. Knows nothing of routing, nor of where the matrices came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tenfold.kernels.triton_prefill import tile_owner


@dataclass(slots=True)
class ExpertMatrices:
    """E matrices (O, I) of one type that lie anywhere in one buffer.

    ``base`` is the first one, ``offsets_E`` (int64) where each begins, in elements from there."""

    base: Tensor
    offsets_E: Tensor
    rows: int
    cols: int


@dataclass(slots=True)
class Route:
    """Which pairs go to which expert: ``pairs_R`` (int32) sorted by expert, ``starts_E1`` (int32)
    where each expert's begin. Pair p is slot p % k of token p // k."""

    pairs_R: Tensor
    starts_E1: Tensor


def route(experts_Tk: Tensor, experts: int) -> Route:
    """Sort the pairs, on their own device and without waiting for it."""
    chosen, pairs = torch.sort(experts_Tk.reshape(-1), stable=True)
    edges = torch.arange(experts + 1, device=chosen.device, dtype=chosen.dtype)
    starts = torch.searchsorted(chosen, edges, out_int32=True)
    return Route(pairs.to(torch.int32), starts)


@triton.jit
def _experts_kernel(
    x: tl.tensor,
    weights: tl.tensor,
    offsets: tl.tensor,
    pairs: tl.tensor,
    starts: tl.tensor,
    y: tl.tensor,
    experts: int,
    repeat: int,
    rows_out: int,
    cols: int,
    x_row: int,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """y[pair] = x[pair // repeat] @ W^T for a tile of one expert's pairs and some outputs."""
    tile = tl.program_id(0)
    expert = tile_owner(starts, tile, experts, ROWS)
    begin = tl.load(starts + expert)
    last = tl.load(starts + expert + 1)
    at = begin + (tile - begin // ROWS - expert) * ROWS
    if at < last:
        r = at + tl.arange(0, ROWS)
        o = tl.program_id(1) * OUT + tl.arange(0, OUT)
        i = tl.arange(0, INNER)
        pair = tl.load(pairs + r, mask=r < last, other=0).to(tl.int64)
        rows = x + (pair // repeat)[:, None] * x_row
        matrix = weights + tl.load(offsets + expert) + o.to(tl.int64)[None, :] * cols
        total = tl.zeros((ROWS, OUT), tl.float32)
        for k in range(0, cols, INNER):
            inside = k + i < cols
            a = tl.load(
                rows + (k + i)[None, :], mask=(r < last)[:, None] & inside[None, :], other=0.0
            )
            b = tl.load(
                matrix + (k + i)[:, None], mask=inside[:, None] & (o < rows_out)[None, :], other=0.0
            )
            total = tl.dot(a, b, total, input_precision="ieee")
        to = y + pair[:, None] * rows_out + o[None, :]
        live = (r < last)[:, None] & (o < rows_out)[None, :]
        tl.store(to, total.to(y.dtype.element_ty), mask=live)


def grouped_linear(x: Tensor, matrices: ExpertMatrices, way: Route, repeat: int) -> Tensor:
    """Row p // ``repeat`` of ``x`` times the matrix of pair p's expert -> (R, O), in x's type.

    ``x`` is (R / repeat, I), dense over I, of the matrices' own type."""
    pairs, experts = way.pairs_R.numel(), matrices.offsets_E.numel()
    y = x.new_empty(pairs, matrices.rows)
    if not y.numel():
        return y
    wide = x.itemsize == 4
    mean = -(-pairs // experts)
    rows = 16 if mean <= 16 else 32 if wide or mean <= 32 else 64 if mean <= 64 else 128
    out, inner = (32, 32) if wide else (128, 64)
    _experts_kernel[(pairs // rows + experts, triton.cdiv(matrices.rows, out))](
        x, matrices.base, matrices.offsets_E, way.pairs_R, way.starts_E1, y,
        experts, repeat, matrices.rows, matrices.cols, x.stride(0),
        ROWS=rows, OUT=out, INNER=inner, num_warps=8 if rows == 128 else 4, num_stages=3,
    )  # fmt: skip
    return y
