"""A GGUF file as a checkpoint: llama.cpp's names and row orders turned into Tenfold's.

Two quirks are undone here. Files of the llama architecture store the rows of q and k interleaved,
for rotating neighbours; the decoder rotates halves. And experts are stacked in one tensor. Rows of
quantised blocks move whole, so nothing is requantised. Knows nothing of packing.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold.core.errors import ModelFileError
from tenfold.models.checkpoint import TensorInfo, check_shapes, to_float32
from tenfold.models.gguf_header import GgufHeader, GgufTensor, read_header
from tenfold.models.gguf_spec import spec_from_metadata
from tenfold.models.names import expected_shapes
from tenfold.models.spec import ModelSpec

_TOP = {"embed": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight"}
_ROPE_FACTORS = "rope_freqs.weight"
_LAYER = {
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "o_bias": "attn_output.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "post_attn_norm": "post_attention_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "post_ffn_norm": "post_ffw_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "router": "ffn_gate_inp.weight",
    "shared.gate": "ffn_gate_shexp.weight",
    "shared.up": "ffn_up_shexp.weight",
    "shared.down": "ffn_down_shexp.weight",
    "shared_gate": "ffn_gate_inp_shexp.weight",
}


class GgufFile:
    """Implements ``Checkpoint`` over a memory-mapped GGUF file. Raises ModelFileError."""

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = read_header(path)
        embedding = self._source("token_embd.weight")
        spec = spec_from_metadata(
            path, self._header.metadata, self._header.tensors, embedding.shape[0]
        )
        self.spec = _with_rope_factors(path, spec, self._header)
        self.tensors = {name: self._locate(name) for name in expected_shapes(spec)}
        check_shapes(path, spec, self.tensors)
        used = {info.source for info in self.tensors.values()} | {_ROPE_FACTORS}
        if extra := sorted(set(self._header.tensors) - used):
            raise ModelFileError(
                f"{path}: holds {len(extra)} tensors that a {spec.family} model does not have, "
                f"such as {extra[0]}"
            )
        self._interleaved = self._header.metadata["general.architecture"] == "llama"

    def matrix(self, name: str) -> NDArray[np.uint8]:
        info = self.tensors[name]
        rows = info.shape[0]
        raw = self._bytes(name).reshape(rows, -1)
        return raw[self._row_order(name, rows)] if self._is_interleaved(name) else raw

    def vector(self, name: str) -> NDArray[np.float32]:
        values = to_float32(self._bytes(name), self.tensors[name].kind)
        order = self._row_order(name, len(values)) if self._is_interleaved(name) else None
        return values if order is None else values[order]

    def _source(self, source: str) -> GgufTensor:
        tensor = self._header.tensors.get(source)
        if tensor is None:
            raise ModelFileError(f"{self.path}: tensor {source} is missing")
        return tensor

    def _locate(self, name: str) -> TensorInfo:
        source, part = _source_name(name)
        tensor = self._source(source)
        shape = tensor.shape if part is None else tensor.shape[1:]
        if part is not None and (len(tensor.shape) != 3 or part >= tensor.shape[0]):
            raise ModelFileError(
                f"{self.path}: tensor {source} has shape {list(tensor.shape)}: no expert {part}"
            )
        if name.endswith("shared_gate") and len(shape) == 1:
            shape = (1, *shape)  # written as a vector
        return TensorInfo(tensor.kind, shape, source, part)  # type: ignore[arg-type]

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        info = self.tensors[name]
        start = self._header.tensors[info.source].offset + (info.part or 0) * info.nbytes
        return self._header.data[start : start + info.nbytes]

    def _is_interleaved(self, name: str) -> bool:
        return self._interleaved and name.endswith((".q", ".k", ".q_bias", ".k_bias"))

    def _row_order(self, name: str, rows: int) -> NDArray[np.intp]:
        """Row j of a head is stored at 2j in the first half, at 2j + 1 in the second."""
        order = np.arange(rows).reshape(-1, self.spec.head_dim // 2, 2)
        return order.swapaxes(1, 2).reshape(-1)


def _source_name(name: str) -> tuple[str, int | None]:
    """The file's tensor for one of our names, and which expert of it."""
    if name in _TOP:
        return _TOP[name], None
    _, layer, rest = name.split(".", 2)
    if match := re.fullmatch(r"experts\.(\d+)\.(gate|up|down)", rest):
        return f"blk.{layer}.ffn_{match[2]}_exps.weight", int(match[1])
    return f"blk.{layer}.{_LAYER[rest]}", None


def _with_rope_factors(path: Path, spec: ModelSpec, header: GgufHeader) -> ModelSpec:
    """Llama 3.1 files carry the frequency divisors as a tensor instead of naming the scaling."""
    tensor = header.tensors.get(_ROPE_FACTORS)
    if tensor is None:
        return spec
    raw = header.data[tensor.offset : tensor.offset + tensor.nbytes]
    if tensor.kind not in ("f32", "f16", "bf16") or tensor.shape != (spec.head_dim // 2,):
        raise ModelFileError(
            f"{path}: tensor {_ROPE_FACTORS} is {tensor.kind} {list(tensor.shape)}; "
            f"{spec.head_dim // 2} plain floats expected"
        )
    factors = tuple(float(value) for value in to_float32(raw, tensor.kind))
    return replace(spec, rope=replace(spec.rope, scaling="factors", factors=factors))
