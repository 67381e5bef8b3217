"""Compiles every Triton kernel for a GPU that is not there, as far as machine code. Not a test:
test_triton_compile.py runs it in a process of its own, because Triton decides at import whether it
interprets.

Launches go through Triton's own compiler with CPU tensors, a made-up driver that names the target,
and nothing launched at the end. Prints one JSON line per kernel.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from tenfold.kernels import triton_decode, triton_experts, triton_prefill, triton_rows
from tenfold.kernels.triton_column import TritonKernels


class NoDevice:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only() -> list[Any]:
    """From now on a launch compiles; the list collects what came out."""
    made: list[Any] = []
    run = JITFunction.run

    def warm(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel is not None and kernel not in made:
            made.append(kernel)
        return kernel

    JITFunction.run = warm  # type: ignore[method-assign]
    return made


def launch_everything(dtype: torch.dtype) -> None:
    """Every kernel, with every switch that changes its code, at shapes of real models."""
    kernels = TritonKernels("cpu", dtype)
    x = torch.zeros(4, 512)
    row = torch.ones(512)
    kernels.rms_norm(x, row, 1e-6)
    kernels.add_rms_norm(x, x.to(dtype), row, 1e-6)
    kernels.add_rms_norm(x, x.to(dtype), row, 1e-6, delta_weight_I=row)
    for activation in ("silu", "gelu_tanh"):
        kernels.gated(x.to(dtype), activation)  # type: ignore[arg-type]
    for dim, heads, kv_heads in ((64, 9, 3), (80, 4, 4), (128, 32, 8), (256, 4, 1), (128, 16, 1)):
        cache = torch.zeros(8, 2, 2, kv_heads, 16, dim, dtype=dtype)
        q = torch.zeros(5, heads, dim, dtype=dtype)
        half = torch.zeros(64, dim // 2)
        kernels.rope(q, torch.zeros(5, dtype=torch.int32), half, half)
        k = q[:, :kv_heads]
        kernels.store_kv(k, k, cache, 1, torch.zeros(5, dtype=torch.int32))
        table = torch.zeros(2, 64, dtype=torch.int32)
        mixed = torch.tensor([0, 4, 5], dtype=torch.int32)
        single = torch.tensor([0, 1, 2], dtype=torch.int32)
        context = torch.zeros(2, dtype=torch.int32)
        plain: dict[str, Any] = {"scale": 0.1}
        fancy: dict[str, Any] = {
            "scale": 0.1, "window": 100, "softcap": 30.0, "sinks_H": torch.zeros(heads),
        }  # fmt: skip
        kernels.slots(table, mixed, context, 5, 16)
        for options in (plain, fancy):
            lse = torch.empty(5, heads)
            kernels.paged_attention(q, cache, 1, table, mixed, context, lse_TH=lse, **options)
            kernels.paged_attention(q[:2], cache, 1, table, single, context, **options)
    for pairs in (16, 128, 512, 2048):
        way = kernels.route(torch.zeros(pairs, 1, dtype=torch.int64), 8)
        matrices = triton_experts.ExpertMatrices(
            torch.zeros(1, dtype=dtype), torch.zeros(8, dtype=torch.int64), 768, 512
        )
        kernels.grouped_linear(torch.zeros(pairs, 512, dtype=dtype), matrices, way, 1)


def main(capability: int, types: list[str]) -> None:
    triton.runtime.driver.set_active(NoDevice(capability))
    made = compile_only()
    for name in types:
        launch_everything(getattr(torch, name))
    for kernel in made:
        kernel_facts = {
            "name": kernel.metadata.name,
            "shared": kernel.metadata.shared,
            "warps": kernel.metadata.num_warps,
            "cubin": len(kernel.asm["cubin"]),
            "wgmma": kernel.asm["ptx"].count("wgmma.mma_async"),
            "mma": kernel.asm["ptx"].count("mma.sync"),
        }
        print(json.dumps(kernel_facts))


if __name__ == "__main__":
    assert triton_decode and triton_prefill and triton_rows
    main(int(sys.argv[1]), sys.argv[2:])
