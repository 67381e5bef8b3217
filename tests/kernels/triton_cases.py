"""Where the Triton kernels are tested: interpreted on the CPU, or on a GPU. And how closely."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import torch
from kernel_cases import Paged
from torch import Tensor

from tenfold.kernels.base import Kernels

INTERPRETED = ["cpu-f32", "cpu-f16"]
ON_A_GPU = [
    pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda-f32", "cuda-f16", "cuda-bf16")
]
PLACES = [*INTERPRETED, *ON_A_GPU]


@dataclass
class Place:
    """One column of the table, its tensors' device and type, and how near results must be."""

    kernels: Kernels
    device: torch.device
    dtype: torch.dtype
    limit: float
    """Of the largest value wanted."""

    def put(self, x: Tensor) -> Tensor:
        """A copy on the device; floats in the column's type."""
        return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype, copy=True)

    def put_case(self, case: Paged) -> Paged:
        """The case on the device, and its definition's keys and values as rounded as the cache."""
        for name in ("q_THD", "cache", "table_SB", "starts_S1", "context_S"):
            setattr(case, name, self.put(getattr(case, name)))
        case.keys = [k.to(self.dtype).double() for k in case.keys]
        case.values = [v.to(self.dtype).double() for v in case.values]
        return case

    def close(self, got: Tensor, want: Tensor, factor: float = 1.0) -> None:
        """Fails unless ``got`` is finite and near ``want``, which is on the CPU."""
        assert torch.isfinite(got).all(), "something unread was read"
        worst = (got.cpu().double() - want.double()).abs().max() / want.abs().max()
        assert worst < factor * self.limit, float(worst)


def make_place(name: str) -> Place:
    """Skips where Triton is not installed, or does not do here what the name says."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from tenfold.kernels.triton_column import TritonKernels

    device, _, kind = name.partition("-")
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device == "cpu" and not interpreted:
        pytest.skip("Triton compiles here; set TRITON_INTERPRET=1 to interpret")
    if device == "cuda" and (interpreted or not torch.cuda.is_available()):
        pytest.skip("needs a CUDA device and a Triton that compiles")
    limit = {"f32": 2e-6, "f16": 2e-3, "bf16": 1.6e-2}[kind]
    return Place(TritonKernels(device, dtype), torch.device(device), dtype, limit)
