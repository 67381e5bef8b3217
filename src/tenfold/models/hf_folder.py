"""A Hugging Face folder as a checkpoint: config.json and safetensors, in one file or sharded.

Maps Hugging Face's tensor names to Tenfold's, family by family only where the names differ. Knows
nothing of packing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.core.errors import ModelFileError
from tenfold.models.checkpoint import TensorInfo, check_shapes, to_float32
from tenfold.models.hf_bert import encoder_from_config
from tenfold.models.hf_config import spec_from_config
from tenfold.models.names import expected_shapes
from tenfold.models.safetensors_header import read_index, read_json
from tenfold.models.spec import EncoderSpec, ModelSpec

_KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}

_DECODER_PREFIXES = ("model.", "language_model.model.", "model.language_model.")
_TOP = {"embed": "embed_tokens.weight", "final_norm": "norm.weight"}
_LAYER = {
    "attn_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "o": "self_attn.o_proj.weight",
    "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "router": "mlp.gate.weight",
    "shared_gate": "mlp.shared_expert_gate.weight",
}
_SANDWICH = {
    "post_attn_norm": "post_attention_layernorm.weight",
    "ffn_norm": "pre_feedforward_layernorm.weight",
    "post_ffn_norm": "post_feedforward_layernorm.weight",
}
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
_BERT_TOP = {
    "embed": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "token_types": "embeddings.token_type_embeddings.weight",
    "embed_norm": "embeddings.LayerNorm.weight",
    "embed_norm_bias": "embeddings.LayerNorm.bias",
}
_BERT_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "ffn_norm": "output.LayerNorm",
}
_NOT_OURS = re.compile(
    r"rotary_emb\.inv_freq$|^pooler\.|^bert\.pooler\.|^cls\.|position_ids$|vision_tower\."
    r"|multi_modal_projector\."
)
"""Tensors that a folder may hold and a text model does not use."""


class HfFolder:
    """Implements ``Checkpoint`` over a folder. Raises ModelFileError."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stored = read_index(path)
        self._maps: dict[Path, NDArray[np.uint8]] = {}
        self.spec = self._read_spec()
        self._mixtral = any(".block_sparse_moe." in name for name in self._stored)
        prefixes = ("", "bert.") if isinstance(self.spec, EncoderSpec) else _DECODER_PREFIXES
        first = self._source_name("embed")
        self._prefix = next((p for p in prefixes if p + first in self._stored), prefixes[0])
        self._plus_one = isinstance(self.spec, ModelSpec) and self.spec.sandwich_norms
        self.tensors = {name: self._locate(name) for name in expected_shapes(self.spec)}
        check_shapes(path, self.spec, self.tensors)
        self._refuse_extra()

    def matrix(self, name: str) -> NDArray[np.uint8]:
        return self._bytes(name).reshape(self.tensors[name].shape[0], -1)

    def vector(self, name: str) -> NDArray[np.float32]:
        values = to_float32(self._bytes(name), self.tensors[name].kind)
        # Gemma's folders store norm weights as their distance from one.
        return values + np.float32(1.0) if self._plus_one and name.endswith("norm") else values

    def _read_spec(self) -> ModelSpec | EncoderSpec:
        path = self.path / "config.json"
        values = read_json(path)
        if values.get("model_type") == "bert":
            return encoder_from_config(
                path,
                values,
                read_json(self.path / "1_Pooling" / "config.json", missing_ok=True),
                read_json(self.path / "sentence_bert_config.json", missing_ok=True),
            )
        generation = read_json(self.path / "generation_config.json", missing_ok=True)
        eos = _ids(values.get("eos_token_id")) | _ids(generation.get("eos_token_id"))
        if isinstance(values.get("text_config"), dict):  # the text part of a multimodal checkpoint
            eos |= _ids(values["text_config"].get("eos_token_id"))
            model_type = values["text_config"].get("model_type", f"{values.get('model_type')}_text")
            values = {**values["text_config"], "model_type": model_type}
        has_head = any(name.endswith("lm_head.weight") for name in self._stored)
        return spec_from_config(path, values, tuple(sorted(eos)), has_head)

    def _source_name(self, name: str) -> str:
        """The file's name for one of ours, without the folder's prefix."""
        if isinstance(self.spec, EncoderSpec):
            return _bert_name(name)
        if name in _TOP:
            return _TOP[name]
        _, layer, rest = name.split(".", 2)
        names = {**_LAYER, **_SANDWICH} if self.spec.sandwich_norms else _LAYER
        if rest in names:
            source = names[rest]
            if self._mixtral and rest == "router":
                source = "block_sparse_moe.gate.weight"
        elif rest[0] in "qkv":
            proj, _, bias = rest.partition("_")
            source = f"self_attn.{proj}_proj.{bias or 'weight'}"
        elif rest.startswith("experts.") and self._mixtral:
            _, expert, proj = rest.split(".")
            source = f"block_sparse_moe.experts.{expert}.{_MIXTRAL[proj]}.weight"
        else:
            source = f"mlp.{rest.replace('shared.', 'shared_expert.')}_proj.weight"
        return f"layers.{layer}.{source}"

    def _locate(self, name: str) -> TensorInfo:
        if name == "head":
            root = self._prefix.removesuffix("model.")
            source = f"{root}lm_head.weight"
            source = source if source in self._stored else "lm_head.weight"
        else:
            source = self._prefix + self._source_name(name)
        stored = self._stored.get(source)
        if stored is None:
            raise ModelFileError(f"{self.path}: tensor {source} is missing")
        if stored.kind not in _KINDS:
            raise ModelFileError(
                f"{stored.file}: tensor {source} has type {stored.kind}, which is not supported "
                f"(supported: {', '.join(_KINDS)})"
            )
        return TensorInfo(_KINDS[stored.kind], stored.shape, source)  # type: ignore[arg-type]

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        stored = self._stored[self.tensors[name].source]
        data = self._maps.get(stored.file)
        if data is None:
            data = self._maps[stored.file] = np.memmap(stored.file, np.uint8, "c")
        return data[stored.start : stored.end]

    def _refuse_extra(self) -> None:
        used = {info.source for info in self.tensors.values()} | {"lm_head.weight"}
        extra = [name for name in self._stored if name not in used and not _NOT_OURS.search(name)]
        if extra:
            raise ModelFileError(
                f"{self.path}: holds {len(extra)} tensors that a {self.spec.family} model does not "
                f"have, such as {min(extra)}"
            )


def _bert_name(name: str) -> str:
    if name in _BERT_TOP:
        return _BERT_TOP[name]
    _, layer, rest = name.split(".", 2)
    bias = rest.endswith("_bias")
    stem = _BERT_LAYER[rest.removesuffix("_bias")]
    return f"encoder.layer.{layer}.{stem}.{'bias' if bias else 'weight'}"


def _ids(value: Any) -> set[int]:
    entries = value if isinstance(value, list) else [value]
    return {entry for entry in entries if isinstance(entry, int)}
