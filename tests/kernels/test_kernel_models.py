"""The two real checkpoints: every matrix packs, and its rows and products are the checkpoint's."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from kernel_cases import make, packed

from tenfold.kernels.base import WeightKind


def check_file(path: Path, column: str, limit: int) -> None:
    kernels = make(column)
    seen: set[str] = set()
    for tensor in gguf.GGUFReader(path).tensors:
        kind: WeightKind = tensor.tensor_type.name.lower()  # type: ignore[assignment]
        if len(tensor.shape) != 2 or (kind in seen and len(seen) >= limit):
            continue
        seen.add(kind)
        cols, rows = (int(n) for n in tensor.shape)
        rows = min(rows, 2000)
        data = np.asarray(tensor.data)[:rows]
        raw = torch.from_numpy(data.view(np.uint8).reshape(-1).copy())
        want = torch.from_numpy(gguf.dequantize(data, tensor.tensor_type))
        weight = packed(kernels, kind, rows, cols, raw)
        x = torch.randn(3, cols, generator=torch.Generator().manual_seed(0))
        got = kernels.linear(x, weight)
        size = x.double().abs() @ want.double().abs().T
        assert ((got - x.double() @ want.double().T).abs() <= 24 * 2.0**-24 * size).all()
        if column != "torch":
            assert torch.equal(kernels.embed(torch.arange(rows, dtype=torch.int32), weight), want)


@pytest.mark.parametrize("column", ["avx2", "portable", "torch"])
def test_smollm2(smollm2_path: Path, column: str) -> None:
    check_file(smollm2_path, column, 2)


@pytest.mark.parametrize("column", ["avx2", "portable", "torch"])
def test_gemma3(gemma3_path: Path, column: str) -> None:
    check_file(gemma3_path, column, 4)


@pytest.mark.slow
@pytest.mark.parametrize("column", ["avx2", "portable", "torch"])
def test_every_matrix(smollm2_path: Path, gemma3_path: Path, column: str) -> None:
    for path in (smollm2_path, gemma3_path):
        check_file(path, column, 1000)
