"""Shape and type checks of the Triton column. Values on a device are never read back for a check.

Knows nothing of how anything computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tenfold.kernels.base import PackedWeight
from tenfold.kernels.checks import ShapeError, attention_options
from tenfold.kernels.checks import gated as gated
from tenfold.kernels.checks import packing as packing
from tenfold.kernels.checks import weight_matches as weight_matches

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def matrix(name: str, x: Tensor) -> None:
    """``x`` must be floats of two dimensions."""
    if x.dtype not in FLOATS or x.dim() != 2:
        raise ShapeError(f"{name} must be a matrix of floats, not {x.dtype} {tuple(x.shape)}")


def indices(name: str, x: Tensor, size: int) -> None:
    """``x`` must be dense int32 of shape (size,), or of any size where that is -1."""
    if x.dtype is not torch.int32 or x.dim() != 1 or not x.is_contiguous():
        raise ShapeError(f"{name} must be dense int32 of one dimension, not {x.dtype}")
    if size != -1 and x.numel() != size:
        raise ShapeError(f"{name} has {x.numel()} entries, needs {size}")


def tables(table_SB: Tensor, starts_S1: Tensor, context_S: Tensor) -> None:
    """Block tables (S, B), dense over B, with starts and contexts of the same S."""
    if table_SB.dtype is not torch.int32 or table_SB.dim() != 2 or table_SB.stride(1) != 1:
        raise ShapeError(f"table must be int32 (S, B), dense over B, not {table_SB.dtype}")
    indices("starts", starts_S1, table_SB.shape[0] + 1)
    indices("context", context_S, table_SB.shape[0])


def norm(x: Tensor, weight_I: Tensor) -> None:
    """``x`` must be floats with as many features as ``weight`` has values."""
    if x.dtype not in FLOATS or x.dim() < 1:
        raise ShapeError(f"x must be floats, not {x.dtype} {tuple(x.shape)}")
    if weight_I.shape != (x.shape[-1],) or not weight_I.is_contiguous():
        raise ShapeError(f"weight has shape {tuple(weight_I.shape)}, needs ({x.shape[-1]},)")


def dense(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """``x`` must be floats of this shape, without gaps."""
    if x.dtype not in FLOATS or x.shape != shape or not x.is_contiguous():
        raise ShapeError(f"{name} must be dense floats {tuple(shape)}, not {tuple(x.shape)}")


def rope(x_THD: Tensor, cos_PD: Tensor, sin_PD: Tensor) -> None:
    """Dense float32 tables (positions, D/2); x (T, H, D) is turned in place, so dense over D."""
    if x_THD.dtype not in FLOATS or x_THD.dim() != 3 or x_THD.stride(2) != 1:
        raise ShapeError(f"x must be floats (T, H, D), dense over D, not {tuple(x_THD.shape)}")
    for name, x in (("cos", cos_PD), ("sin", sin_PD)):
        whole = x.dtype is torch.float32 and x.dim() == 2 and x.is_contiguous()
        if not whole or x.shape[1] * 2 != x_THD.shape[2] or x.shape != cos_PD.shape:
            raise ShapeError(f"{name} {tuple(x.shape)} must be dense float32 (positions, D/2)")


def cache_shape(cache: Tensor, layer: int, kv_heads: int, head_dim: int) -> None:
    """``cache`` must be (blocks, layers, 2, K, block tokens, D), dense over D, with ``layer``."""
    fits = cache.dim() == 6 and cache.dtype in FLOATS and cache.stride(5) == 1
    if not fits or cache.shape[2:4] != (2, kv_heads) or cache.shape[5] != head_dim or not kv_heads:
        raise ShapeError(
            f"cache must be floats (blocks, layers, 2, {kv_heads}, block tokens, {head_dim}), "
            f"dense over the last, not {cache.dtype} {tuple(cache.shape)}"
        )
    if not 0 <= layer < cache.shape[1]:
        raise ShapeError(f"layer {layer} is outside the cache of {cache.shape[1]} layers")


def store(k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, layer: int) -> None:
    for name, x in (("k", k_TKD), ("v", v_TKD)):
        if x.dtype not in FLOATS or x.dim() != 3 or x.stride(2) != 1:
            raise ShapeError(f"{name} must be floats (T, K, D), dense over D, not {tuple(x.shape)}")
    if k_TKD.shape != v_TKD.shape:
        raise ShapeError(f"k {tuple(k_TKD.shape)} and v {tuple(v_TKD.shape)} differ")
    cache_shape(cache, layer, k_TKD.shape[1], k_TKD.shape[2])


def attention(
    q_THD: Tensor,
    cache: Tensor,
    layer: int,
    window: int | None,
    softcap: float | None,
    sinks_H: Tensor | None,
    lse_TH: Tensor | None,
) -> None:
    if q_THD.dtype not in FLOATS or q_THD.dim() != 3:
        raise ShapeError(f"q must be floats (T, H, D), not {q_THD.dtype} {tuple(q_THD.shape)}")
    heads = q_THD.shape[1]
    kv_heads = cache.shape[3] if cache.dim() == 6 else 0
    cache_shape(cache, layer, kv_heads, q_THD.shape[2])
    attention_options(heads, kv_heads, window, softcap)
    if sinks_H is not None and (sinks_H.shape != (heads,) or not sinks_H.is_contiguous()):
        raise ShapeError(f"sinks have shape {tuple(sinks_H.shape)}, need ({heads},)")
    if lse_TH is not None:
        wanted = (q_THD.shape[0], heads)
        if lse_TH.dtype is not torch.float32:
            raise ShapeError(f"lse must be float32, not {lse_TH.dtype}")
        dense("lse", lse_TH, wanted)


def alike(weights: Sequence[PackedWeight], layout: str) -> None:
    """At least one matrix, all of one shape and of this layout, over one storage."""
    if not weights:
        raise ShapeError("no matrices")
    first = weights[0]
    for weight in weights:
        weight_matches(weight, layout, first.cols)
        apart = weight.data.untyped_storage().data_ptr() != first.data.untyped_storage().data_ptr()
        if weight.rows != first.rows or apart:
            raise ShapeError("the experts' matrices differ in shape, or lie in several buffers")
