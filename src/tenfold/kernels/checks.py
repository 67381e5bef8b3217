"""Shape and type checks shared by every column of the table. Knows nothing of how they compute."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from tenfold.core.errors import TenfoldError
from tenfold.kernels.base import PackedWeight, WeightKind
from tenfold.kernels.kv_rows import KV_DTYPES, kv_dtype_of, kv_row
from tenfold.kernels.quant import raw_bytes


class ShapeError(TenfoldError, ValueError):
    """A tensor's shape, type or index does not fit the operation: a fault of the caller."""

    code = "kernel_shape_error"


def floats(name: str, x: Tensor, dims: int) -> None:
    """``x`` must be float32 on the CPU with ``dims`` dimensions."""
    if x.dtype is not torch.float32 or not x.is_cpu or x.dim() != dims:
        _refuse_type(name, x, f"float32 on the CPU with {dims} dimensions")


def indices(name: str, x: Tensor, size: int) -> Tensor:
    """``x`` must be int32 of shape (size,), or of any size where that is -1; returned dense."""
    if x.dtype is not torch.int32 or not x.is_cpu or x.dim() != 1:
        _refuse_type(name, x, "int32 on the CPU with 1 dimension")
    if size != -1 and x.numel() != size:
        raise ShapeError(f"{name} has {x.numel()} entries, needs {size}")
    return x if x.is_contiguous() else x.contiguous()


def block_table(table_SB: Tensor) -> Tensor:
    """``table`` must be int32 (S, B); returned dense over B."""
    if table_SB.dtype is not torch.int32 or not table_SB.is_cpu or table_SB.dim() != 2:
        _refuse_type("table", table_SB, "int32 on the CPU with 2 dimensions")
    return dense_rows(table_SB)


def vector(name: str, x: Tensor, size: int) -> Tensor:
    """``x`` must be float32 of this one size; returned dense."""
    floats(name, x, 1)
    if x.numel() != size:
        raise ShapeError(f"{name} has {x.numel()} values, needs {size}")
    return x if x.is_contiguous() else x.contiguous()


def dense_rows(x: Tensor) -> Tensor:
    """The same values with the last dimension contiguous; a copy only where it is not."""
    return x if x.stride()[-1] == 1 else x.contiguous()


def _refuse_type(name: str, x: Tensor, wanted: str) -> NoReturn:
    raise ShapeError(
        f"{name} must be {wanted}, not {x.dtype} on {x.device} of shape {tuple(x.shape)}"
    )


def dense(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """``x`` must be float32 on the CPU, contiguous, and of exactly this shape."""
    if tuple(x.shape) != shape or not x.is_contiguous() or x.dtype is not torch.float32:
        _refuse_type(name, x, f"float32 on the CPU, contiguous, of shape {shape}")


def result(out_TO: Tensor, tokens: int, rows: int) -> None:
    """``out`` must take (tokens, rows), dense over the last; rows may lie apart."""
    floats("out", out_TO, 2)
    if tuple(out_TO.shape) != (tokens, rows) or out_TO.stride()[1] != 1:
        _refuse_type("out", out_TO, f"(T, O) = ({tokens}, {rows}), dense over O")


def weight_matches(weight: PackedWeight, layout: str, cols: int | None = None) -> None:
    if weight.layout != layout:
        raise ShapeError(f"weight is packed as {weight.layout!r}; these kernels read {layout!r}")
    if cols is not None and weight.cols != cols:
        raise ShapeError(f"input has {cols} features, the weight takes {weight.cols}")


def within(name: str, values: Tensor, limit: int) -> None:
    """Every value must be in [0, limit)."""
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < limit:
        bad = values[(values < 0) | (values >= limit)][0]
        raise ShapeError(f"{name} {int(bad)} is outside [0, {limit})")


def packed_data(weight: PackedWeight, size: int) -> Tensor:
    """The packed bytes, flat; refused where there are fewer than ``size``."""
    if weight.data.nbytes < size:
        raise ShapeError(
            f"the packed matrix {weight.rows} x {weight.cols} takes {size} bytes, "
            f"its data has {weight.data.nbytes}"
        )
    return weight.data.reshape(-1)


def packing(
    kind: WeightKind,
    rows: int,
    cols: int,
    raw: Tensor,
    out: Tensor,
    packed: int,
    *,
    on_device: bool = False,
) -> None:
    """``raw`` must hold the matrix and ``out`` have room for it; both dense uint8, and on the CPU,
    where ``out`` is not ``on_device``."""
    for name, x, size in (("raw", raw, raw_bytes(kind, rows, cols)), ("out", out, packed)):
        placed = x.is_cpu or (on_device and x is out)
        if x.dtype is not torch.uint8 or not placed or not x.is_contiguous() or x.numel() != size:
            raise ShapeError(
                f"{name} of a {kind} matrix {rows} x {cols} must be {size} dense bytes (uint8), "
                f"not {x.numel()} values of {x.dtype}"
            )


def cache_shape(cache: Tensor, layer: int, kv_heads: int, head_dim: int) -> None:
    """``cache`` must be (blocks, layers, 2, K, block tokens, row) and hold ``layer``."""
    kind = kv_dtype_of(cache)
    if kind is None or not cache.is_cpu or cache.dim() != 6:
        _refuse_type("cache", cache, f"{', '.join(KV_DTYPES)} on the CPU with 6 dimensions")
    _, layers, pair, heads, _, row = cache.shape
    wanted, _ = kv_row(kind, head_dim)
    if pair != 2 or heads != kv_heads or row != wanted or not heads or cache.stride()[5] != 1:
        raise ShapeError(
            f"cache must be (blocks, layers, 2, {kv_heads}, block tokens, {wanted}), dense over "
            f"the last, not {tuple(cache.shape)} of {kind}"
        )
    if not 0 <= layer < layers:
        raise ShapeError(f"layer {layer} is outside the cache of {layers} layers")


def gated(gate_up_TI: Tensor, activation: str) -> None:
    if gate_up_TI.shape[1] % 2:
        raise ShapeError(f"gate_up has {gate_up_TI.shape[1]} features, an odd number")
    if activation not in ("silu", "gelu_tanh"):
        raise ShapeError(f"unknown activation {activation!r}; known: silu, gelu_tanh")


def rope(x_THD: Tensor, cos_PD: Tensor, sin_PD: Tensor) -> None:
    floats("x", x_THD, 3)
    floats("cos", cos_PD, 2)
    floats("sin", sin_PD, 2)
    shape = cos_PD.shape
    if shape != sin_PD.shape or shape[1] * 2 != x_THD.shape[2]:
        raise ShapeError(
            f"cos {tuple(shape)} and sin {tuple(sin_PD.shape)} must be (positions, "
            f"half the head dim) for x {tuple(x_THD.shape)}"
        )


def store(k_TKD: Tensor, v_TKD: Tensor, cache: Tensor, layer: int) -> None:
    floats("k", k_TKD, 3)
    floats("v", v_TKD, 3)
    shape = k_TKD.shape
    if shape != v_TKD.shape:
        raise ShapeError(f"k {tuple(shape)} and v {tuple(v_TKD.shape)} differ")
    cache_shape(cache, layer, shape[1], shape[2])


def attention_options(heads: int, kv_heads: int, window: int | None, softcap: float | None) -> None:
    """Heads must divide among key/value heads; a window or softcap must be positive."""
    if heads % kv_heads:
        raise ShapeError(f"{heads} query heads do not divide among {kv_heads} key/value heads")
    if window is not None and window < 1:
        raise ShapeError(f"window must be at least 1, not {window}")
    if softcap is not None and not softcap > 0:
        raise ShapeError(f"softcap must be above 0, not {softcap}")


def attention(
    q_THD: Tensor,
    cache: Tensor,
    layer: int,
    window: int | None,
    softcap: float | None,
    sinks_H: Tensor | None,
    lse_TH: Tensor | None,
) -> None:
    floats("q", q_THD, 3)
    tokens, heads, dim = q_THD.shape
    kv_heads = cache.shape[3] if cache.dim() == 6 else 0
    cache_shape(cache, layer, kv_heads, dim)
    attention_options(heads, kv_heads, window, softcap)
    if sinks_H is not None:
        vector("sinks", sinks_H, heads)
    if lse_TH is not None:
        floats("lse", lse_TH, 2)
        if lse_TH.shape != (tokens, heads) or not lse_TH.is_contiguous():
            raise ShapeError(f"lse must be ({tokens}, {heads}), dense, not {tuple(lse_TH.shape)}")
