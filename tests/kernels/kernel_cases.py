"""What the kernel tests share: columns of the table, random checkpoints, float64 definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tenfold.core.types import KVDtype
from tenfold.kernels.base import Kernels, PackedWeight, WeightKind
from tenfold.kernels.kv_rows import decode, encode, kv_row
from tenfold.kernels.quant import block_of, raw_bytes
from tenfold.kernels.torch_ref import TorchKernels

KINDS: tuple[WeightKind, ...] = get_args(WeightKind)
QUANTISED = tuple(kind for kind in KINDS if block_of(kind).values > 1)
COLUMNS = ("avx512", "avx2", "portable", "torch")
NATIVE_COLUMNS = COLUMNS[:-1]


def make(column: str, threads: int = 2) -> Kernels:
    """One column of the table; skips where this machine or build does not have it."""
    if column == "torch":
        return TorchKernels()
    extension = pytest.importorskip("tenfold._native", reason="the extension is not built")
    from tenfold.kernels.checks import ShapeError
    from tenfold.kernels.native import NativeKernels

    try:
        return NativeKernels(extension, threads, column)
    except ShapeError as exc:
        pytest.skip(str(exc))


def make_native(column: str, threads: int = 2, mode: str = "exact") -> Any:
    """A row of the native column (``NativeKernels``); skips as ``make`` does."""
    kernels = make(column, threads)
    return type(kernels)(kernels._extension, threads, column, mode)  # type: ignore[attr-defined,call-arg]


def random_raw(kind: WeightKind, rows: int, cols: int, seed: int = 0) -> Tensor:
    """Checkpoint bytes with random codes and scales of ordinary size."""
    g = torch.Generator().manual_seed(seed)
    block = block_of(kind)
    if block.values == 1:
        plain = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
        return torch.randn(rows, cols, generator=g).to(plain).view(torch.uint8).reshape(-1)
    raw = torch.randint(
        0, 256, (raw_bytes(kind, rows, cols),), dtype=torch.uint8, generator=g
    ).view(-1, block.bytes)
    for at in {"q4_1": (0, 2), "q4_k": (0, 2), "q6_k": (208,)}.get(kind, (0,)):
        scale = torch.randn(raw.shape[0], 1, generator=g).mul(0.02).half()
        raw[:, at : at + 2] = scale.view(torch.uint8)
    return raw.reshape(-1)


def packed(kernels: Kernels, kind: WeightKind, rows: int, cols: int, raw: Tensor) -> PackedWeight:
    """The matrix in this column's layout, surrounded by bytes that nothing may touch or need."""
    size = kernels.packed_bytes(kind, rows, cols)
    assert size % 64 == 0
    room = torch.full((size + 128,), 0xFF, dtype=torch.uint8)
    out = room[64 : 64 + size]
    kernels.pack(kind, rows, cols, raw, out)
    assert bool((room[:64] == 0xFF).all() and (room[64 + size :] == 0xFF).all())
    return PackedWeight(kind, rows, cols, kernels.layout, out)


@dataclass
class Paged:
    """Sequences in a paged cache whose unused slots hold NaN, and queries for their new tokens."""

    q_THD: Tensor
    cache: Tensor
    table_SB: Tensor
    starts_S1: Tensor
    context_S: Tensor
    keys: list[Tensor]
    """Per sequence (positions, K, D) in float64, for the definition."""
    values: list[Tensor]

    def rows(self, s: int) -> slice:
        return slice(int(self.starts_S1[s]), int(self.starts_S1[s + 1]))


def paged(
    lengths: Sequence[tuple[int, int]],
    *,
    heads: int,
    kv_heads: int,
    dim: int,
    block_tokens: int = 16,
    layers: int = 2,
    layer: int = 1,
    window: int | None = None,
    seed: int = 0,
    dtype: KVDtype = "f32",
) -> Paged:
    """``lengths``: (context, new tokens) of each sequence. Blocks lie in random places, further
    apart than dense; blocks behind ``window`` are -1 in the table and their place holds NaN. The
    keys and values of the definition are what the cache's ``dtype`` left of random numbers."""
    g = torch.Generator().manual_seed(seed)
    needs = [-(-(context + new) // block_tokens) for context, new in lengths]
    blocks = sum(needs) + 2
    kind = kv_row(dtype, dim)[1]
    nothing = encode(torch.full((dim,), math.nan), kind)
    spaced = nothing.repeat(blocks, layers + 1, 2, kv_heads, block_tokens, 1)
    cache = spaced[:, :layers]
    places = torch.randperm(blocks, generator=g).tolist()
    table = torch.full((len(lengths), max([*needs, 1])), -1, dtype=torch.int32)
    keys, values = [], []
    for s, (context, new) in enumerate(lengths):
        k, v = encode(torch.randn(2, context + new, kv_heads, dim, generator=g), kind)
        first = max(0, context - window + 1) if window else 0
        for b in range(first // block_tokens if new else needs[s], needs[s]):
            place = places.pop()
            table[s, b] = place
            at = slice(b * block_tokens, min((b + 1) * block_tokens, context + new))
            size = at.stop - at.start
            cache[place, layer, 0, :, :size] = k[at].transpose(0, 1)
            cache[place, layer, 1, :, :size] = v[at].transpose(0, 1)
        keys.append(decode(k))
        values.append(decode(v))
    counts = torch.tensor([0, *(new for _, new in lengths)])
    return Paged(
        q_THD=torch.randn(int(counts.sum()), heads, dim, generator=g),
        cache=cache,
        table_SB=table,
        starts_S1=counts.cumsum(0).to(torch.int32),
        context_S=torch.tensor([context for context, _ in lengths], dtype=torch.int32),
        keys=keys,
        values=values,
    )


def attend(kernels: Kernels, case: Paged, layer: int = 1, **options: Any) -> Tensor:
    options.setdefault("scale", case.q_THD.shape[2] ** -0.5)
    return kernels.paged_attention(
        case.q_THD, case.cache, layer, case.table_SB, case.starts_S1, case.context_S, **options
    )


def attention_definition(case: Paged, **options: Any) -> Tensor:
    """Softmax attention, word for word, in float64."""
    return attention_and_lse(case, **options)[0]


def attention_and_lse(
    case: Paged,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(T, H, D) and the logarithm (T, H) of each softmax's denominator."""
    out = torch.empty(case.q_THD.shape, dtype=torch.float64)
    lse = torch.empty(case.q_THD.shape[:2], dtype=torch.float64)
    for s, (k, v) in enumerate(zip(case.keys, case.values, strict=True)):
        q = case.q_THD[case.rows(s)].double()
        group = q.shape[1] // k.shape[1]
        scores = torch.einsum("thd,phd->htp", q, k.repeat_interleave(group, 1)) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        position = torch.arange(q.shape[0])[:, None] + int(case.context_S[s])
        at = torch.arange(k.shape[0])[None, :]
        hidden = (at > position) | ((at <= position - window) if window else (at < 0))
        scores = scores.masked_fill(hidden, -math.inf)
        if sinks is not None:  # one more column, which has no value
            extra = sinks.double()[:, None, None].expand(-1, q.shape[0], 1)
            scores = torch.cat([scores, extra], -1)
        weights = scores.softmax(-1)[..., : k.shape[0]]
        out[case.rows(s)] = torch.einsum("htp,phd->thd", weights, v.repeat_interleave(group, 1))
        lse[case.rows(s)] = scores.logsumexp(-1).T
    return out, lse
