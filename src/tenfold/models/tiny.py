"""Tiny seeded models of every family, written as Hugging Face folders without transformers: for
tests, and for benchmarks that want many different models.

``make_tiny("llama", folder)`` takes some milliseconds and gives a folder that Tenfold, transformers
and any tokenizers-based tool can load: config.json, model.safetensors, tokenizer.json and
tokenizer_config.json with a chat template. The weights are random, so what it says is noise; it is
the same noise each time. Does not know how such folders are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma3_text",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "mistral",
)
"""Names are Hugging Face's ``model_type``; all of them generate. ``bert`` is the encoder."""

EOS = "<|im_end|>"
SPECIALS = ("<|endoftext|>", "<|im_start|>", EOS)
EOS_ID = 2

_MERGES = (
    "Ġ t,h e,i n,Ġ a,r e,o n,Ġt he,e r,Ġ s,a t,Ġ w,o r,Ġ c,e n,i t,i s,e s,a n,Ġ b,o u,Ġ f,in g,"
    "e d,Ġ p,Ġ o,a l,Ġ m,Ġa n,Ġan d,a r,Ġt o,Ġ d,Ġo f,l e,Ġ in,l l,o m,r o,Ġ h,i c,u s,e l,Ġ l,s t,"
    "Ġ is"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE of 304 tokens: 3 special, 256 bytes, 45 merges."""
    merges = [(left, right) for left, _, right in (p.partition(" ") for p in _MERGES.split(","))]
    tokens = [
        *SPECIALS,
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *("".join(m) for m in merges),
    ]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return tokenizer


def tiny_config(family: str, **overrides: Any) -> dict[str, Any]:
    """A config.json of two to six small layers, in the spelling that the Hub's own files use."""
    config: dict[str, Any] = {
        "model_type": family,
        "vocab_size": 304,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": EOS_ID,
        "torch_dtype": "float32",
        "architectures": [_ARCHITECTURES[family]],
    }
    config.update(_FAMILY_CONFIG[family])
    config.update(overrides)
    return config


_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "bert": "BertModel",
}

_FAMILY_CONFIG: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 32},
    "gemma3_text": {
        "num_hidden_layers": 6,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 24,
        "sliding_window": 16,
        "sliding_window_pattern": 3,
        "tie_word_embeddings": True,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {
        "num_hidden_layers": 3,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "bert": {
        "num_key_value_heads": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "max_position_embeddings": 64,
    },
}


def _mlp(prefix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (width, hidden),
        f"{prefix}.up_proj.weight": (width, hidden),
        f"{prefix}.down_proj.weight": (hidden, width),
    }


def _ffn_shapes(config: dict[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    family, hidden, width = config["model_type"], config["hidden_size"], config["intermediate_size"]
    at = f"model.layers.{layer}"
    if family == "mixtral":
        experts = config["num_local_experts"]
        shapes: dict[str, tuple[int, ...]] = {
            f"{at}.block_sparse_moe.gate.weight": (experts, hidden)
        }
        for e in range(experts):
            expert = f"{at}.block_sparse_moe.experts.{e}"
            shapes |= {
                f"{expert}.w1.weight": (width, hidden),
                f"{expert}.w3.weight": (width, hidden),
            }
            shapes[f"{expert}.w2.weight"] = (hidden, width)
        return shapes
    if family in ("qwen2_moe", "qwen3_moe") and layer not in config["mlp_only_layers"]:
        shapes = {f"{at}.mlp.gate.weight": (config["num_experts"], hidden)}
        for e in range(config["num_experts"]):
            shapes |= _mlp(f"{at}.mlp.experts.{e}", hidden, config["moe_intermediate_size"])
        if family == "qwen2_moe":
            shared = config["shared_expert_intermediate_size"]
            shapes |= _mlp(f"{at}.mlp.shared_expert", hidden, shared)
            shapes[f"{at}.mlp.shared_expert_gate.weight"] = (1, hidden)
        return shapes
    return _mlp(f"{at}.mlp", hidden, width)


def _decoder_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    family, hidden, dim = config["model_type"], config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        norms = ["input_layernorm", "post_attention_layernorm"]
        if family == "gemma3_text":
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{at}.{norm}.weight": (hidden,) for norm in norms}
        if family in ("qwen3", "qwen3_moe", "gemma3_text"):
            shapes |= {f"{at}.self_attn.{n}_norm.weight": (dim,) for n in "qk"}
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (rows, hidden)
            if family in ("qwen2", "qwen2_moe") or config.get("attention_bias"):
                shapes[f"{at}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, queries)
        if config.get("attention_bias"):
            shapes[f"{at}.self_attn.o_proj.bias"] = (hidden,)
        shapes |= _ffn_shapes(config, layer)
    return shapes


def _encoder_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
    }
    linear = {"pooler.dense": (hidden, hidden)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        linear |= {f"{at}.attention.self.{n}": (hidden, hidden) for n in ("query", "key", "value")}
        linear[f"{at}.attention.output.dense"] = (hidden, hidden)
        linear[f"{at}.intermediate.dense"] = (width, hidden)
        linear[f"{at}.output.dense"] = (hidden, width)
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    return shapes


def _values(
    name: str, shape: tuple[int, ...], config: dict[str, Any], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Random weights of a size that keeps activations near one, so that logits differ visibly."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if "norm" in name.lower() and name.endswith("weight"):
        return 0.1 * noise + np.float32(config["model_type"] != "gemma3_text")
    if len(shape) == 1:
        return 0.1 * noise
    if "embed" in name:
        # A tied embedding as large as the layers' output would only ever repeat the last token.
        return noise * np.float32(0.1 if config["tie_word_embeddings"] else 1.0)
    return noise * np.float32((3 if name == "lm_head.weight" else 1) * shape[1] ** -0.5)


def tiny_weights(config: dict[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The checkpoint's tensors by their Hugging Face names, float32."""
    rng = np.random.default_rng(seed)
    bert = config["model_type"] == "bert"
    shapes = _encoder_shapes(config) if bert else _decoder_shapes(config)
    return {name: _values(name, shape, config, rng) for name, shape in shapes.items()}


def make_tiny(family: str, path: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a tiny model of ``family`` into the folder ``path``; gives the folder back.

    ``overrides`` replace entries of config.json, e.g. ``max_position_embeddings=4096``.
    """
    path.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family, **overrides)
    (path / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tiny_weights(config, seed), path / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": SPECIALS[0],
        "model_max_length": config["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1))
    return path
