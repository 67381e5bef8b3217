"""How a key or value row of D float32 numbers lies in a cache of each type, in plain torch.

f32, f16 and bf16 are plain storage, rounded to nearest even. An int8 row is D codes and then its
scale as a float32, D + 4 bytes in all: value = code * scale, scale = largest size / 127. A row that
holds an infinity or NaN has the scale NaN. What a row becomes depends on that row alone.

Knows nothing of blocks, layers or who reads the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tenfold.core.types import KVDtype

KV_DTYPES: tuple[KVDtype, ...] = ("f32", "f16", "bf16", "int8")
SCALE_BYTES = 4

_TORCH = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


def kv_row(dtype: KVDtype, head_dim: int) -> tuple[int, torch.dtype]:
    """Length and torch type of a cache's last dimension."""
    extra = SCALE_BYTES if dtype == "int8" else 0
    return head_dim + extra, _TORCH[KV_DTYPES.index(dtype)]


def kv_dtype_of(cache: Tensor) -> KVDtype | None:
    """The type of row that such a tensor holds; None where there is none."""
    return KV_DTYPES[_TORCH.index(cache.dtype)] if cache.dtype in _TORCH else None


def encode(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 rows (..., D) as they are stored in a cache of this torch type."""
    if dtype is not torch.int8:
        return x.to(dtype)
    largest = x.abs().amax(-1, keepdim=True)
    finite = torch.isfinite(largest)
    scale = torch.where(finite, largest / 127.0, torch.nan)
    unit = torch.where(scale > 0, scale, 1.0)
    codes = torch.where(finite, (x / unit).round().clamp(-127.0, 127.0), 0.0)
    return torch.cat([codes.to(torch.int8), _packed(scale).view(torch.int8)], -1)


def decode(rows: Tensor) -> Tensor:
    """Stored rows as float64 numbers (..., D), exactly."""
    if rows.dtype is not torch.int8:
        return rows.double()
    codes, scale = rows[..., :-SCALE_BYTES], rows[..., -SCALE_BYTES:]
    return codes.double() * _packed(scale).view(torch.float32).double()


def _packed(x: Tensor) -> Tensor:
    """A copy without gaps: ``contiguous`` leaves those of a single row, and ``view`` refuses it."""
    return x.clone(memory_format=torch.contiguous_format)
