"""What the machine itself can do: memory read rate and product rates on some threads, by torch.

usage: python limits.py THREADS [quick]        prints one JSON line

Best of several tries each, as other users of the machine can only slow a try down. On a machine
with a CUDA device its copy rate and bfloat16 product rate stand beside. Rates in GB/s, GFLOP/s and
GOP/s (a multiply and an add are two).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch


def best(work: Callable[[], object], tries: int) -> float:
    """Seconds of the fastest try, after one that does not count."""
    work()
    least = float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - began)
    return least


def cpu(threads: int, quick: bool) -> dict[str, float]:
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    tries = 2 if quick else 20
    stream = torch.ones((1 << 22 if quick else 1 << 28) // 4)
    size = 256 if quick else 2048
    rows = 512
    a, b = torch.randn(rows, size), torch.randn(size, size)
    plain = torch.nn.Linear(size, size, bias=False)
    packed = torch.ao.nn.quantized.dynamic.Linear.from_float(  # type: ignore[no-untyped-call]
        _prepared(plain)
    )
    operations = 2 * rows * size * size / 1e9
    return {
        "read_gb_s": stream.nbytes / 1e9 / best(lambda: torch.sum(stream), tries),
        "f32_gflop_s": operations / best(lambda: a @ b, tries),
        "int8_gop_s": operations / best(lambda: packed(a), tries),
    }


def _prepared(linear: torch.nn.Linear) -> torch.nn.Linear:
    linear.qconfig = torch.ao.quantization.default_dynamic_qconfig  # type: ignore[assignment]
    return linear


def gpu(quick: bool) -> dict[str, float]:
    tries = 2 if quick else 20
    source = torch.ones((1 << 26 if quick else 1 << 30), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    size = 1024 if quick else 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    def product() -> None:
        torch.mm(a, a)
        torch.cuda.synchronize()

    return {
        "gpu_copy_gb_s": 2 * source.nbytes / 1e9 / best(copy, tries),
        "gpu_bf16_gflop_s": 2 * size**3 / 1e9 / best(product, tries),
    }


def main() -> None:
    quick = sys.argv[2:] == ["quick"]
    found = cpu(int(sys.argv[1]), quick)
    if torch.cuda.is_available():
        found |= gpu(quick)
    print(json.dumps({"torch": torch.__version__, "tries": "best", **found}))


if __name__ == "__main__":
    main()
