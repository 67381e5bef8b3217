"""Tiny models as GGUF files: the same seeded weights as ``tiny``, in llama.cpp's names and orders.

``make_tiny_gguf`` also says what float32 weights the file stands for, so that any precision can be
compared with an exact reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from models.tiny import EOS_ID, tiny_config, tiny_weights

ARCHITECTURES = {
    "llama": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
_SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(\w+?)(?:_proj)?\.weight")
_PROJECTIONS = {"gate": "gate", "up": "up", "down": "down", "w1": "gate", "w3": "up", "w2": "down"}

_MARKS = ("<a>", "<b>", "<|im_end|>", "<|eot_id|>")

Weights = dict[str, np.ndarray]
KindOf = Callable[[str], Kind]


def to_gguf_names(config: dict[str, Any], weights: Weights) -> Weights:
    """Hugging Face's tensors renamed, permuted and stacked as llama.cpp's converter does."""
    family, found = config["model_type"], {}
    stacks: dict[str, list[np.ndarray]] = {}
    for name, value in weights.items():
        if name in _TOP:
            target = _TOP[name]
        else:
            _, _, layer, rest = name.split(".", 3)
            if match := _EXPERT.fullmatch(rest):
                stack = f"blk.{layer}.ffn_{_PROJECTIONS[match[3]]}_exps.weight"
                stacks.setdefault(stack, []).append(value)
                continue
            stem, _, suffix = rest.rpartition(".")
            names = {**_LAYER, **_SANDWICH} if family == "gemma3_text" else _LAYER
            target = f"blk.{layer}.{names[stem]}.{suffix}"
        if family in ("llama", "mixtral") and re.search(r"attn_[qk]\.", target):
            value = _interleave(value, config["head_dim"])
        if family == "gemma3_text" and target.endswith("norm.weight"):
            value = value + np.float32(1)
        if target.endswith("ffn_gate_inp_shexp.weight"):
            value = value[0]
        found[target] = value
    return found | {name: np.stack(parts) for name, parts in stacks.items()}


def _interleave(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Halves of each head become neighbours."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def quantised(value: np.ndarray, kind: Kind, seed: int) -> np.ndarray:
    """The bytes of ``value`` in this kind; for K-quants, whose making gguf lacks, random blocks."""
    if kind not in (Kind.Q4_K, Kind.Q6_K):
        return gguf.quants.quantize(value, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    shape = (*value.shape[:-1], value.shape[-1] // block, size)
    raw = rng.integers(0, 256, shape, dtype=np.uint8)
    scale = rng.uniform(2e-4, 8e-4, shape[:-1]).astype(np.float16)[..., None].view(np.uint8)
    if kind == Kind.Q4_K:
        raw[..., 0:2], raw[..., 2:4] = scale, scale
    else:
        raw[..., -2:] = scale // 8
    return raw.reshape(*value.shape[:-1], -1)


def make_tiny_gguf(
    family: str, path: Path, seed: int = 0, kind_of: KindOf | None = None, **overrides: Any
) -> tuple[dict[str, Any], Weights]:
    """Write a tiny GGUF file; gives its config and, by GGUF name, its matrices as float32."""
    config = tiny_config(family, **overrides)
    tensors = to_gguf_names(config, tiny_weights(config, seed))
    writer = gguf.GGUFWriter(path, ARCHITECTURES[family])
    write_metadata(writer, config)
    exact = {}
    for number, (name, value) in enumerate(tensors.items()):
        kind = kind_of(name) if kind_of and value.ndim > 1 else Kind.F32
        raw = quantised(np.ascontiguousarray(value), kind, seed + number)
        writer.add_tensor(name, raw, raw_dtype=kind)
        exact[name] = gguf.quants.dequantize(raw, kind).reshape(value.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config, exact


def write_metadata(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Sizes and options under llama.cpp's keys, and a made-up vocabulary."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_eos_token_id(EOS_ID)
    writer.add_token_list([*_MARKS, *(f"t{n}" for n in range(len(_MARKS), config["vocab_size"]))])
    if config["model_type"] == "gemma3_text":
        writer.add_sliding_window(config["sliding_window"])
    experts = config.get("num_experts", config.get("num_local_experts"))
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
