"""The two real checkpoints: every matrix packs, and its rows and products are the checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from kernel_cases import COLUMNS, make, packed
from torch import Tensor

from tenfold.kernels.base import WeightKind


def matrices(path: Path, rows: int, each: int) -> Iterator[tuple[WeightKind, Tensor, Tensor]]:
    """(kind, bytes, float32 by gguf) of the first ``rows`` rows of ``each`` matrices of a kind."""
    seen: dict[str, int] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        kind: WeightKind = tensor.tensor_type.name.lower()  # type: ignore[assignment]
        seen[kind] = seen.get(kind, 0) + 1
        if len(tensor.shape) == 2 and seen[kind] <= each:
            data = np.asarray(tensor.data)[:rows]
            raw = torch.from_numpy(data.view(np.uint8).reshape(-1).copy())
            yield kind, raw, torch.from_numpy(gguf.dequantize(data, tensor.tensor_type))


def check(path: Path, rows: int, each: int) -> set[str]:
    columns = [make(column) for column in COLUMNS]
    kinds: set[str] = set()
    for kind, raw, want in matrices(path, rows, each):
        kinds.add(kind)
        count, cols = want.shape
        x = torch.randn(3, cols, generator=torch.Generator().manual_seed(0))
        size = x.double().abs() @ want.double().abs().T
        for kernels in columns:
            weight = packed(kernels, kind, count, cols, raw)
            got = kernels.linear(x, weight)
            assert ((got - x.double() @ want.double().T).abs() <= 24 * 2.0**-24 * size).all()
            if kernels.layout != "dense-f32":
                ids = torch.arange(count, dtype=torch.int32)
                assert torch.equal(kernels.embed(ids, weight), want)
    return kinds


def test_smollm2(smollm2_path: Path) -> None:
    assert check(smollm2_path, 200, 2) == {"q4_1", "q8_0"}


@pytest.mark.slow
def test_gemma3(gemma3_path: Path) -> None:
    assert check(gemma3_path, 200, 2) == {"q5_0", "q8_0", "q4_k", "q6_k"}


@pytest.mark.slow
def test_every_matrix(smollm2_path: Path, gemma3_path: Path) -> None:
    for path in (smollm2_path, gemma3_path):
        check(path, 128, 1000)
