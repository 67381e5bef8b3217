"""A model of a given shape with random weights, and how fast it decodes and reads prompts.

Nothing is downloaded: one small random buffer is tiled over all the weights, on the device. What it
says is noise; how long that takes is not. Runs the same decoder, kernels and graphs as a served
model, without a scheduler. Not yet run on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.core.errors import ModelFileError
from tenfold.engine.cuda_runner import DecodeGraphs, GraphLimits
from tenfold.kernels.cuda_staging import CopyEngine
from tenfold.kernels.triton_column import TritonKernels
from tenfold.models.batch import ForwardBatch
from tenfold.models.checkpoint import TensorInfo
from tenfold.models.decoder import Decoder
from tenfold.models.names import expected_shapes
from tenfold.models.packing import Weights
from tenfold.models.spec import ModelSpec, RopeSpec
from tenfold.models.weight_plan import plan_weights

_TILE_BYTES = 64 << 20


def llama_8b(context: int) -> ModelSpec:
    """The shape of Llama 3.1 8B (Meta, 2024), without its rope scaling."""
    return ModelSpec(
        family="llama", hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128256,
        context=context, norm_eps=1e-5, attention=("global",) * 32, attention_scale=128**-0.5,
        rope=RopeSpec(5e5),
    )  # fmt: skip


@dataclass(slots=True)
class _Shapes:
    """A checkpoint that has a header only."""

    spec: ModelSpec
    path: Path = Path("random")
    format: str = "none"
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = {
            name: TensorInfo("bf16" if len(shape) == 2 else "f32", shape, name)
            for name, shape in expected_shapes(self.spec).items()
        }

    def matrix(self, name: str) -> NDArray[np.uint8]:
        raise ModelFileError(f"{name}: a made-up model has no file")

    def vector(self, name: str) -> NDArray[np.float32]:
        raise ModelFileError(f"{name}: a made-up model has no file")


class ShapedModel:
    """The model with its weights. ``read_bytes``: weight bytes that one decoded token reads.

    ``flops(tokens)``: multiplications and additions of a prompt of that length: 2 per weight of
    every product (the head for one token), and 4 per query-key pair and head dimension.
    """

    def __init__(self, spec: ModelSpec, kernels: TritonKernels) -> None:
        self.spec = spec
        self.kernels = kernels
        plan = plan_weights(_Shapes(spec), kernels)
        self.buffer = torch.empty(plan.nbytes, dtype=torch.uint8, device=kernels.device)
        _tile(self.buffer.view(kernels.dtype))
        weights = Weights(plan, self.buffer)
        for entry in plan.entries:
            if entry.cols == 0:
                weights.vector(*entry.parts).fill_(1.0)
        self.decoder = Decoder(spec, weights, kernels)
        self.decoder.prepare(spec.context)
        item = kernels.dtype.itemsize
        table = 0 if spec.tied else spec.vocab * spec.hidden * item
        self.read_bytes = sum(entry.nbytes for entry in plan.entries if entry.cols) - table
        self._weights = self.read_bytes // item - spec.vocab * spec.hidden

    def flops(self, tokens: int) -> float:
        spec = self.spec
        pairs = tokens * (tokens + 1) / 2
        attention = 4 * pairs * spec.heads * spec.head_dim * spec.layers
        return 2.0 * self._weights * tokens + 2.0 * spec.vocab * spec.hidden + attention

    def caches(self, blocks: int, block_tokens: int) -> list[Tensor]:
        """Zeroed keys and values, in the weights' type."""
        return [
            torch.zeros(
                blocks, len(group.layers), 2, group.kv_heads, block_tokens, group.head_dim,
                dtype=self.kernels.dtype, device=self.kernels.device,
            )
            for group in self.decoder.kv_groups
        ]  # fmt: skip


def _tile(values: Tensor) -> None:
    """Small random numbers, the same again and again."""
    count = min(len(values), _TILE_BYTES // values.itemsize)
    g = torch.Generator(values.device).manual_seed(0)
    tile = torch.randn(count, generator=g, device=values.device).mul_(0.02).to(values.dtype)
    for start in range(0, len(values), count):
        part = values[start : start + count]
        part.copy_(tile[: len(part)])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The fastest of some runs, each waited for."""
    found = []
    for _ in range(rounds):
        synchronise(device)
        begin = time.perf_counter()
        run()
        synchronise(device)
        found.append(time.perf_counter() - begin)
    return min(found)


def prefill_seconds(model: ShapedModel, tokens: int, rounds: int, block_tokens: int = 16) -> float:
    """One prompt in one step, to the logits of its last token."""
    device = model.kernels.device
    blocks = -(-tokens // block_tokens)
    kv = model.caches(blocks, block_tokens)
    positions = torch.arange(tokens, dtype=torch.int32, device=device)
    table = torch.arange(blocks, dtype=torch.int32, device=device)[None]
    batch = ForwardBatch(
        tokens_T=positions % model.spec.vocab,
        positions_T=positions,
        starts_S1=torch.tensor([0, tokens], dtype=torch.int32, device=device),
        context_S=torch.zeros(1, dtype=torch.int32, device=device),
        tables=[table for _ in kv],
        logit_rows_L=torch.tensor([tokens - 1], dtype=torch.int32, device=device),
        kv=kv,
    )
    with torch.inference_mode():
        model.decoder.forward(batch)
        return best_seconds(lambda: model.decoder.forward(batch), device, rounds)


@dataclass(slots=True, eq=False)
class _Stream:
    """As much of a sequence as ``DecodeGraphs`` looks at."""

    blocks: NDArray[np.int32]
    last: NDArray[np.int32]
    decoding: bool = True

    @property
    def kv(self) -> _Stream:
        return self

    @property
    def tokens(self) -> _Stream:
        return self

    def view(self, start: int, stop: int) -> NDArray[np.int32]:
        return self.last


@dataclass(slots=True)
class _Step:
    seq: _Stream
    start: int
    count: int = 1
    samples: bool = True


class _Tables:
    """Block tables that were handed out beforehand."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens

    def table(self, kv: _Stream, group: int) -> NDArray[np.int32]:
        return kv.blocks


def decode_seconds(
    model: ShapedModel,
    copies: CopyEngine,
    *,
    streams: int,
    past: int,
    steps: int,
    block_tokens: int = 16,
) -> float:
    """Mean seconds of a greedy step of so many streams, each with ``past`` tokens before it.

    Ids come back to the host after each step, as they do when serving."""
    context = past + steps + 2
    blocks = -(-context // block_tokens)
    kv = model.caches(streams * blocks, block_tokens)
    limits = GraphLimits(streams, context, 1 << 40, lambda: 0, lambda: None, only=streams)
    tables = _Tables(block_tokens)
    with torch.inference_mode():
        graphs = DecodeGraphs(model.decoder, tables, kv, model.kernels.device, copies, limits)
        order = np.random.default_rng(0).permutation(streams * blocks).astype(np.int32)
        each = [
            _Stream(order[row * blocks : (row + 1) * blocks], np.array([row + 1], dtype=np.int32))
            for row in range(streams)
        ]
        begin = 0.0
        for step in range(steps + 1):
            if step == 1:  # the first one warms up
                begin = time.perf_counter()
            scores = graphs.scores([_Step(stream, past + step) for stream in each], streams)
            for stream, token in zip(each, scores.largest[0].tolist(), strict=True):
                stream.last[0] = token
        return (time.perf_counter() - begin) / steps
