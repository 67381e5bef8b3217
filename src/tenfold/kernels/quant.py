"""Checkpoint block formats to float32, in plain torch: what the bytes of each weight kind mean.

Layouts are GGUF's, as ggml's ``block_q4_0`` and so on define them: little-endian, a row is a run of
blocks. Knows nothing of files, packing or products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tenfold.core.errors import ModelFileError
from tenfold.kernels.base import WeightKind


class Block(NamedTuple):
    """How many values one block of a kind holds, and its bytes."""

    values: int
    bytes: int


def block_of(kind: WeightKind) -> Block:
    """The block of a kind; single values for the plain floats."""
    blocks: dict[str, Block] = {
        "f32": Block(1, 4),
        "f16": Block(1, 2),
        "bf16": Block(1, 2),
        "q4_0": Block(32, 18),
        "q4_1": Block(32, 20),
        "q5_0": Block(32, 22),
        "q8_0": Block(32, 34),
        "q4_k": Block(256, 144),
        "q6_k": Block(256, 210),
    }
    if kind not in blocks:
        raise ModelFileError(f"unknown weight kind {kind!r}; known: {', '.join(blocks)}")
    return blocks[kind]


def raw_bytes(kind: WeightKind, rows: int, cols: int) -> int:
    """Bytes of a (rows, cols) matrix in the checkpoint.

    Raises ModelFileError where a row is not a whole number of blocks."""
    block = block_of(kind)
    if rows < 1 or cols < 1 or cols % block.values:
        raise ModelFileError(
            f"a {kind} matrix cannot be {rows} x {cols}: "
            f"rows come in blocks of {block.values} values"
        )
    return rows * (cols // block.values) * block.bytes


def dequantise(kind: WeightKind, rows: int, cols: int, raw: Tensor) -> Tensor:
    """The matrix as float32 (rows, cols) from its checkpoint bytes (uint8, any shape, dense)."""
    size = raw_bytes(kind, rows, cols)
    if raw.numel() != size:
        raise ModelFileError(f"a {kind} matrix {rows} x {cols} is {size} bytes, not {raw.numel()}")
    flat = raw.reshape(-1)
    if kind == "f32":
        return _typed(flat, torch.float32).reshape(rows, cols).clone()
    if kind in ("f16", "bf16"):
        plain = torch.float16 if kind == "f16" else torch.bfloat16
        return _typed(flat, plain).reshape(rows, cols).float()
    return codes_of(kind, rows, cols, raw).dense()


def is_dense(kind: WeightKind) -> bool:
    """Whether the kind stores plain floats."""
    return block_of(kind).values == 1


class Codes(NamedTuple):
    """A quantised matrix: w = scale * code + minimum. G groups of columns share a scale."""

    codes_OI: Tensor
    """int8."""
    scale_OG: Tensor
    """float32, of 32 columns each, of 16 for q6_k."""
    minimum_OB: Tensor
    """float32, of 32 columns each; all zero where the kind has none."""
    has_minima: bool

    def dense(self) -> Tensor:
        """(O, I) float32."""
        rows, cols = self.codes_OI.shape
        grouped = self.codes_OI.float().view(rows, self.scale_OG.shape[1], -1)
        w_OI = (grouped * self.scale_OG[..., None]).view(rows, cols)
        if self.has_minima:
            w_OI.view(rows, -1, 32).add_(self.minimum_OB[..., None])
        return w_OI


def codes_of(kind: WeightKind, rows: int, cols: int, raw: Tensor) -> Codes:
    """Takes the blocks of a quantised kind apart. ``raw``: dense uint8 of the right size."""
    blocks = raw.reshape(-1, block_of(kind).bytes)
    minimum = None
    if kind == "q4_k":
        codes, scale, minimum = _q4_k(blocks)
    elif kind == "q6_k":
        codes, scale = _q6_k(blocks)
    else:
        scale = _half(blocks, 0)
        if kind == "q4_0":
            codes = _nibbles(blocks[:, 2:]).view(torch.int8) - 8
        elif kind == "q4_1":
            codes, minimum = _nibbles(blocks[:, 4:]), _half(blocks, 2)
        elif kind == "q5_0":
            codes = _q5_0(blocks)
        else:
            codes = blocks[:, 2:].contiguous().view(torch.int8)
    has_minima = minimum is not None
    if minimum is None:
        minimum = torch.zeros(rows * cols // 32)
    return Codes(
        codes.reshape(rows, cols).view(torch.int8),
        scale.reshape(rows, -1),
        minimum.reshape(rows, -1),
        has_minima,
    )


def _typed(data: Tensor, kind: torch.dtype) -> Tensor:
    """Bytes seen as another type; copied first where they do not start at its alignment."""
    if data.storage_offset() % kind.itemsize or not data.is_contiguous():
        data = data.clone(memory_format=torch.contiguous_format)
    return data.view(kind)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte ``at`` of every block -> (blocks, 1) float32."""
    return _typed(blocks[:, at : at + 2].contiguous(), torch.float16).float()


def _nibbles(codes: Tensor) -> Tensor:
    """Bytes (..., n) to codes (..., 2n): all low halves, then all high halves."""
    return torch.cat([codes & 15, codes >> 4], dim=-1)


def _q5_0(blocks: Tensor) -> Tensor:
    """Four low bits each, and a word with everybody's fifth."""
    bits = blocks[:, 2:6, None] >> torch.arange(8, dtype=torch.uint8)
    fifth = (bits & 1).reshape(-1, 32)
    return (_nibbles(blocks[:, 6:]) | (fifth << 4)).view(torch.int8) - 16


def _q4_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eight sub-blocks of 32, each with a 6-bit scale and minimum; see ggml's get_scale_min_k4."""
    pairs, codes = blocks[:, 4:16], blocks[:, 16:].reshape(-1, 4, 32)
    low, high, last = pairs[:, 0:4], pairs[:, 4:8], pairs[:, 8:12]
    scales = torch.cat([low & 63, (last & 15) | (low >> 6 << 4)], dim=1)
    minima = torch.cat([high & 63, (last >> 4) | (high >> 6 << 4)], dim=1)
    return (
        _nibbles(codes),
        _half(blocks, 0) * scales.float(),
        -(_half(blocks, 2) * minima.float()),
    )


def _q6_k(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Two halves of 128: 4 low bits in 64 bytes, 2 high bits in 32; an int8 scale per 16 values."""
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64))
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    codes = (low | (high.reshape(-1, 2, 128) << 4)).view(torch.int8) - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return codes, _half(blocks, 208) * scales
