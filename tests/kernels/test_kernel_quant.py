"""Checkpoint formats against the gguf package, which defines them in Python."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from kernel_cases import KINDS, QUANTISED, random_raw

from tenfold.core.errors import ModelFileError
from tenfold.kernels import checks
from tenfold.kernels.base import WeightKind
from tenfold.kernels.quant import block_of, dequantise, raw_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_equals_gguf_bit_for_bit(kind: WeightKind) -> None:
    raw = random_raw(kind, 24, 512, seed=3)
    quantisation = gguf.GGMLQuantizationType[kind.upper()]
    assert gguf.GGML_QUANT_SIZES[quantisation] == block_of(kind)
    if kind in ("f32", "f16"):  # gguf wants these typed
        typed = raw.numpy().view(np.float32 if kind == "f32" else np.float16).reshape(24, 512)
        want = typed.astype(np.float32)
    else:
        want = gguf.dequantize(raw.numpy().reshape(24, -1), quantisation)
    got = dequantise(kind, 24, 512, raw)
    assert got.dtype is torch.float32
    assert np.array_equal(got.numpy(), want)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_need_no_alignment(kind: WeightKind) -> None:
    raw = random_raw(kind, 2, 256)
    shifted = torch.empty(raw.numel() + 1, dtype=torch.uint8)
    shifted[1:] = raw
    assert torch.equal(dequantise(kind, 2, 256, shifted[1:]), dequantise(kind, 2, 256, raw))


@pytest.mark.parametrize("kind", QUANTISED)
def test_rows_must_be_whole_blocks(kind: WeightKind) -> None:
    with pytest.raises(ModelFileError, match="blocks of"):
        raw_bytes(kind, 4, block_of(kind).values + 16)
    with pytest.raises(ModelFileError, match="bytes, not 7"):
        dequantise(kind, 1, block_of(kind).values, torch.zeros(7, dtype=torch.uint8))


def test_unknown_kind() -> None:
    with pytest.raises(ModelFileError, match="q3_k"):
        raw_bytes("q3_k", 1, 256)  # type: ignore[arg-type]


def test_packing_may_end_on_a_device_and_never_begins_there() -> None:
    raw, out = torch.zeros(64, dtype=torch.uint8), torch.zeros(64, dtype=torch.uint8)
    checks.packing("f32", 1, 16, raw, out, 64)
    checks.packing("f32", 1, 16, raw, out.to("meta"), 64, on_device=True)
    with pytest.raises(checks.ShapeError, match="out"):
        checks.packing("f32", 1, 16, raw, out.to("meta"), 64)
    with pytest.raises(checks.ShapeError, match="raw"):
        checks.packing("f32", 1, 16, raw.to("meta"), out.to("meta"), 64, on_device=True)
