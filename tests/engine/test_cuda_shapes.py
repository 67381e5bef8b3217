"""Models of a given shape with made-up weights: what they read, what they count, and that they run.

The timing itself is left to a GPU; here interpreted kernels do the same steps at a tiny shape.
"""

from __future__ import annotations

import os

import pytest
import torch

from engine.test_cuda_device import MainMemory
from kernels.replayed import replayed_graphs
from tenfold.models.spec import ModelSpec, RopeSpec

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton compiles here", allow_module_level=True)

from tenfold.engine.cuda_shapes import (
    ShapedModel,
    decode_seconds,
    llama_8b,
    prefill_seconds,
)
from tenfold.kernels.triton_column import TritonKernels
from tenfold.models.names import expected_shapes


def tiny(layers: int = 1) -> ModelSpec:
    return ModelSpec(
        family="llama", hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=64, context=40,
        norm_eps=1e-5, attention=("global",) * layers, attention_scale=8**-0.5,
        rope=RopeSpec(1e4),
    )  # fmt: skip


def test_what_a_token_reads_and_a_prompt_computes() -> None:
    model = ShapedModel(tiny(2), TritonKernels("cpu", torch.float32))
    layer = 32 * (4 + 2 + 2) * 8 + 4 * 8 * 32 + 3 * 32 * 48
    assert model.read_bytes == 4 * (2 * layer + 64 * 32)  # the head, not the embeddings
    pairs = 10 * 11 / 2
    attention = 4 * pairs * 4 * 8 * 2
    assert model.flops(10) == 2 * 10 * 2 * layer + 2 * 64 * 32 + attention
    weights = model.buffer.view(torch.float32)
    assert torch.isfinite(weights).all() and 0.01 < float(weights.std()) < 0.3


def test_the_8b_shape_has_8_billion_weights() -> None:
    shapes = expected_shapes(llama_8b(8192)).values()
    count = sum(torch.Size(shape).numel() for shape in shapes)
    assert count == 8_030_261_248  # what the model's card says


@pytest.mark.slow
def test_prompts_and_streams_run() -> None:
    model = ShapedModel(tiny(), TritonKernels("cpu", torch.float32, graphs=replayed_graphs()))
    assert prefill_seconds(model, 12, 1, block_tokens=4) > 0
    for streams in (1, 3):
        seconds = decode_seconds(
            model, MainMemory(), streams=streams, past=9, steps=2, block_tokens=4
        )
        assert seconds > 0
