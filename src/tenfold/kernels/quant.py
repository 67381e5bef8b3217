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
    blocks = flat.reshape(-1, block_of(kind).bytes)
    unpack = {
        "q4_0": _q4_0,
        "q4_1": _q4_1,
        "q5_0": _q5_0,
        "q8_0": _q8_0,
        "q4_k": _q4_k,
        "q6_k": _q6_k,
    }[kind]
    return unpack(blocks).reshape(rows, cols)


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


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8.0)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    bits = blocks[:, 2:6, None] >> torch.arange(8, dtype=torch.uint8)
    fifth = (bits & 1).reshape(-1, 32)
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | (fifth << 4)).float() - 16.0)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _q4_k(blocks: Tensor) -> Tensor:
    """Eight sub-blocks of 32, each with a 6-bit scale and minimum; see ggml's get_scale_min_k4."""
    pairs, codes = blocks[:, 4:16], blocks[:, 16:].reshape(-1, 4, 32)
    low, high, last = pairs[:, 0:4], pairs[:, 4:8], pairs[:, 8:12]
    scales = torch.cat([low & 63, (last & 15) | (low >> 6 << 4)], dim=1)
    minima = torch.cat([high & 63, (last >> 4) | (high >> 6 << 4)], dim=1)
    scale = (_half(blocks, 0) * scales.float())[:, :, None]
    minimum = (_half(blocks, 2) * minima.float())[:, :, None]
    return scale * _nibbles(codes).reshape(-1, 8, 32).float() - minimum


def _q6_k(blocks: Tensor) -> Tensor:
    """Two halves of 128: 4 low bits in 64 bytes, 2 high bits in 32; an int8 scale per 16 values."""
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64))
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    codes = (low | (high.reshape(-1, 2, 128) << 4)).reshape(-1, 16, 16).float() - 32.0
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (_half(blocks, 208) * scales)[:, :, None] * codes
