"""Triton kernels over rows: norms, gates, rotary positions, and writing keys and values.

One program works on one row (or a stretch of one), in float32 whatever the tensors hold, so a row's
result depends on nothing but the row. Shape letters as in base.py. The functions that launch expect
shapes that were checked. Not yet run on a GPU. Knows nothing of models or of weights' layouts.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

_STRETCH = 1024
"""Elements of one program where a row is cut."""
_HEADS = 16
"""Heads that one program of ``rope`` turns."""


@triton.jit
def _scaled_norm(x: tl.tensor, weight: tl.tensor, at: tl.tensor, n: int, eps: float) -> tl.tensor:
    """x / sqrt(mean(x^2) + eps) * weight of one row, whose places from n on hold 0."""
    factor = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / n + eps)
    return x * factor * tl.load(weight + at, mask=at < n, other=0.0).to(tl.float32)


@triton.jit
def _rms_norm_kernel(
    x: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    delta_weight: tl.tensor,
    y: tl.tensor,
    heads: int,
    n: int,
    x_token: int,
    x_head: int,
    eps: float,
    ADD: tl.constexpr,
    SANDWICH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row of y = norm(x) * weight. With ADD, x += delta first, and is kept; with SANDWICH,
    delta is normed with its own weight before that. delta and y are dense."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    live = at < n
    start = x + (row // heads) * x_token + (row % heads) * x_head
    values = tl.load(start + at, mask=live, other=0.0).to(tl.float32)
    if ADD:
        change = tl.load(delta + row * n + at, mask=live, other=0.0).to(tl.float32)
        if SANDWICH:
            change = _scaled_norm(change, delta_weight, at, n, eps)
        values += change
        tl.store(start + at, values.to(x.dtype.element_ty), mask=live)
    scaled = _scaled_norm(values, weight, at, n, eps)
    tl.store(y + row * n + at, scaled.to(y.dtype.element_ty), mask=live)


def rms_norm(x_TI: Tensor, weight_I: Tensor, eps: float, out: torch.dtype) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last of two or three dimensions, in ``out``."""
    tokens, heads, n = x_TI.shape if x_TI.dim() == 3 else (x_TI.shape[0], 1, x_TI.shape[1])
    y = torch.empty(x_TI.shape, dtype=out, device=x_TI.device)
    if y.numel():
        block = triton.next_power_of_2(n)
        _rms_norm_kernel[(tokens * heads,)](
            x_TI, x_TI, weight_I, weight_I, y, heads, n, x_TI.stride(0), x_TI.stride(-2), eps,
            ADD=False, SANDWICH=False, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return y


def add_rms_norm(
    x_TI: Tensor,
    delta_TI: Tensor,
    weight_I: Tensor,
    eps: float,
    delta_weight_I: Tensor | None,
    out_TI: Tensor,
) -> None:
    """x += delta (or its norm), in place; then the norm of x into ``out``, which may be delta."""
    tokens, n = x_TI.shape
    if not x_TI.numel():
        return
    block = triton.next_power_of_2(n)
    _rms_norm_kernel[(tokens,)](
        x_TI, delta_TI, weight_I, weight_I if delta_weight_I is None else delta_weight_I, out_TI,
        1, n, x_TI.stride(0), 0, eps,
        ADD=True, SANDWICH=delta_weight_I is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip


@triton.jit
def _gated_kernel(
    x: tl.tensor, y: tl.tensor, x_token: int, width: int, GELU: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < width
    gate = tl.load(x + row * x_token + at, mask=live, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_token + width + at, mask=live, other=0.0).to(tl.float32)
    t = gate
    if GELU:  # x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)) is the tanh form
        t = (gate * gate * 0.044715 + 1.0) * gate * 1.5957691216057308
    result = gate / (1.0 + tl.exp(-t)) * up
    tl.store(y + row * width + at, result.to(y.dtype.element_ty), mask=live)


def gated(gate_up_TI: Tensor, activation: Literal["silu", "gelu_tanh"]) -> Tensor:
    """act(first half) * second half of the last dimension -> (T, I/2), in the input's type."""
    tokens, both = gate_up_TI.shape
    y = gate_up_TI.new_empty(tokens, both // 2)
    if y.numel():
        _gated_kernel[(tokens, triton.cdiv(both // 2, _STRETCH))](
            gate_up_TI, y, gate_up_TI.stride(0), both // 2,
            GELU=activation == "gelu_tanh", BLOCK=_STRETCH,
        )  # fmt: skip
    return y


@triton.jit
def _rope_kernel(
    x: tl.tensor,
    positions: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    heads: int,
    half: int,
    x_token: int,
    x_head: int,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, HALF)[None, :]
    live = (head < heads) & (at < half)
    position = tl.maximum(tl.load(positions + token), 0).to(tl.int64)  # padding rows have -1
    c = tl.load(cos + position * half + at, mask=at < half, other=0.0)
    s = tl.load(sin + position * half + at, mask=at < half, other=0.0)
    start = x + token * x_token + head * x_head + at
    a = tl.load(start, mask=live, other=0.0).to(tl.float32)
    b = tl.load(start + half, mask=live, other=0.0).to(tl.float32)
    tl.store(start, (a * c - b * s).to(x.dtype.element_ty), mask=live)
    tl.store(start + half, (b * c + a * s).to(x.dtype.element_ty), mask=live)


def rope(x_THD: Tensor, positions_T: Tensor, cos_PD: Tensor, sin_PD: Tensor) -> None:
    """Rotate in place, halves paired; tables are float32 (positions, D/2), dense."""
    tokens, heads, dim = x_THD.shape
    if not x_THD.numel():
        return
    _rope_kernel[(tokens, triton.cdiv(heads, _HEADS))](
        x_THD, positions_T, cos_PD, sin_PD, heads, dim // 2, x_THD.stride(0), x_THD.stride(1),
        HEADS=_HEADS, HALF=triton.next_power_of_2(dim // 2),
    )  # fmt: skip


@triton.jit
def _store_kv_kernel(
    k: tl.tensor,
    v: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    slots: tl.tensor,
    heads: int,
    dim: int,
    block_tokens: int,
    k_token: int,
    k_head: int,
    v_token: int,
    v_head: int,
    c_block: int,
    c_head: int,
    c_token: int,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, DIM)[None, :]
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:  # a padding row has slot -1
        live = (head < heads) & (at < dim)
        to = (slot // block_tokens) * c_block + head * c_head + (slot % block_tokens) * c_token + at
        key = tl.load(k + token * k_token + head * k_head + at, mask=live, other=0.0)
        value = tl.load(v + token * v_token + head * v_head + at, mask=live, other=0.0)
        tl.store(k_cache + to, key.to(k_cache.dtype.element_ty), mask=live)
        tl.store(v_cache + to, value.to(v_cache.dtype.element_ty), mask=live)


def store_kv(k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, layer: int, slots_T: Tensor) -> None:
    """Write keys and values at ``slots`` of one layer; a slot below 0 is a padding row: nothing."""
    tokens, heads, dim = k_TKD.shape
    if not k_TKD.numel():
        return
    c_block, _, _, c_head, c_token, _ = cache.stride()
    block = min(_HEADS, triton.next_power_of_2(heads))
    _store_kv_kernel[(tokens, triton.cdiv(heads, block))](
        k_TKD, v_TKD, cache[:, layer, 0], cache[:, layer, 1], slots_T, heads, dim, cache.shape[4],
        k_TKD.stride(0), k_TKD.stride(1), v_TKD.stride(0), v_TKD.stride(1),
        c_block, c_head, c_token,
        HEADS=block, DIM=triton.next_power_of_2(dim),
    )  # fmt: skip


def _warps(block: int) -> int:
    return 4 if block <= 2048 else 8
