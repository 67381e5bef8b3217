"""Times the kernels on SmolLM2-135M's shapes: all products of a step, attention, and small calls.

Run it as ``python native/measure.py [--threads N] [--column avx512|avx2|portable|torch]
[--mode exact|fast] [--only products|attention|small]``; weights are
zeros, no model is needed. Times are the best and the median of several rounds, wall clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from tenfold.kernels.base import Kernels, PackedWeight, WeightKind
from tenfold.kernels.native import NativeKernels
from tenfold.kernels.table import extension
from tenfold.kernels.torch_ref import TorchKernels

LAYERS, DIM, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 30, 576, 1536, 9, 3, 64, 49152


def best(run: Callable[[], object], seconds: float = 1.0) -> tuple[float, float]:
    """Best and median seconds of one call, over about ``seconds`` of them."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 2000):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times), statistics.median(times)


def weight(kernels: Kernels, kind: WeightKind, rows: int, cols: int) -> PackedWeight:
    """Zeros in the packed form: the time does not depend on the values."""
    data = torch.zeros(kernels.packed_bytes(kind, rows, cols), dtype=torch.uint8)
    return PackedWeight(kind, rows, cols, kernels.layout, data)


def step(
    kernels: Kernels,
    layers: list[PackedWeight],
    inputs: dict[int, torch.Tensor],
    head: PackedWeight,
    rows: torch.Tensor,
) -> None:
    for w in layers:
        kernels.linear(inputs[w.cols], w)
    kernels.linear(rows, head)


def products(kernels: Kernels, kind: WeightKind) -> None:
    shapes = [(DIM + 2 * KV_HEADS * HEAD_DIM, DIM), (DIM, DIM), (2 * FFN, DIM), (DIM, FFN)]
    layers = [weight(kernels, kind, *shape) for _ in range(LAYERS) for shape in shapes]
    head = weight(kernels, "q8_0", VOCABULARY, DIM)
    for tokens in (1, 2, 4, 8, 16, 32, 128, 512):
        inputs = {cols: torch.randn(tokens, cols) for cols in (DIM, FFN)}
        rows = inputs[DIM][: tokens if tokens <= 32 else 1]  # a prompt wants one row of logits

        fast, usual = best(partial(step, kernels, layers, inputs, head, rows))
        work = 2 * (
            tokens * sum(w.rows * w.cols for w in layers) + rows.shape[0] * VOCABULARY * DIM
        )
        moved = sum(w.data.numel() for w in [*layers, head])
        print(
            f"{kind} products of a step, {tokens:3d} rows: {fast * 1e3:8.2f} ms best, "
            f"{usual * 1e3:8.2f} median; {work / fast / 1e9:6.1f} GFLOP/s, "
            f"{moved / fast / 1e9:5.1f} GB/s of weights"
        )


def attention(kernels: Kernels) -> None:
    for sequences, context, new in ((1, 1023, 1), (16, 1023, 1), (1, 0, 512), (1, 512, 512)):
        total = context + new
        blocks = -(-total // 16)
        cache = torch.randn(sequences * blocks, 2, 2, KV_HEADS, 16, HEAD_DIM)
        table = torch.randperm(sequences * blocks).to(torch.int32).view(sequences, blocks)
        q = torch.randn(sequences * new, HEADS, HEAD_DIM)
        starts = torch.arange(0, sequences * new + 1, new, dtype=torch.int32)
        contexts = torch.full((sequences,), context, dtype=torch.int32)

        call = partial(
            kernels.paged_attention, q, cache, 1, table, starts, contexts, scale=HEAD_DIM**-0.5
        )
        fast, usual = best(call)
        work = 4 * sequences * HEADS * HEAD_DIM * (new * context + new * (new + 1) // 2)
        print(
            f"attention of one layer, {sequences:2d} x {new:3d} new after {context:4d}: "
            f"{fast * 1e6:9.1f} us best, {usual * 1e6:9.1f} median; "
            f"{work / fast / 1e9:5.1f} GFLOP/s; "
            f"30 layers {fast * LAYERS * 1e3:.2f} ms"
        )


def small_calls(kernels: Kernels) -> None:
    x, w = torch.randn(1, DIM), torch.randn(DIM)
    heads, table = torch.randn(1, HEADS, HEAD_DIM), torch.randn(2048, HEAD_DIM // 2)
    one = torch.zeros(1, dtype=torch.int32)
    kv, cache = torch.randn(1, KV_HEADS, HEAD_DIM), torch.zeros(4, 2, 2, KV_HEADS, 16, HEAD_DIM)
    gate_up, tiny = torch.randn(1, 2 * FFN), weight(kernels, "q4_1", 32, DIM)
    starts = torch.tensor([0, 1], dtype=torch.int32)
    calls: dict[str, Callable[[], object]] = {
        "linear 32 x 576": lambda: kernels.linear(x, tiny),
        "rms_norm": lambda: kernels.rms_norm(x, w, 1e-5),
        "rope": lambda: kernels.rope(heads, one, table, table),
        "gated": lambda: kernels.gated(gate_up, "silu"),
        "store_kv": lambda: kernels.store_kv(kv, kv, cache, 0, one),
        "embed": lambda: kernels.embed(one, tiny),
        "attention over 1": lambda: kernels.paged_attention(
            heads, cache, 0, one[None], starts, one, scale=0.1
        ),
    }
    for name, call in calls.items():
        print(f"one row, {name:17s}: {best(call, 0.2)[0] * 1e6:6.2f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--column", default="")
    parser.add_argument("--kind", default="q4_1")
    parser.add_argument("--mode", choices=("exact", "fast"), default="exact")
    parser.add_argument("--only", choices=("products", "attention", "small"))
    options = parser.parse_args()
    kernels: Kernels
    if options.column == "torch":
        kernels = TorchKernels()
    else:
        kernels = NativeKernels(extension(), options.threads, options.column, options.mode)
    print(kernels.describe())
    if options.only in (None, "small"):
        small_calls(kernels)
    if options.only in (None, "attention"):
        attention(kernels)
    if options.only in (None, "products"):
        products(kernels, options.kind)


if __name__ == "__main__":
    main()
