"""From a Hugging Face config.json to a ``ModelSpec`` or an ``EncoderSpec``.

Reads both spellings of rotary settings (``rope_theta`` + ``rope_scaling``, and the newer
``rope_parameters``). A config may leave out what equals its class's default; those that matter are
stated here. Anything that would change the result and is not known is refused. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenfold.core.errors import ModelFileError
from tenfold.models.fields import MAX_EXPERTS, MAX_LAYERS, Fields
from tenfold.models.spec import Activation, AttentionKind, ModelSpec, MoeSpec, RopeSpec, kinds_where

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class _Family:
    """What a ``model_type`` implies. ``experts``: its class's default number, 0 for dense models.

    ``window``: how its layers come by a sliding window.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    qk_norm: bool = False
    qkv_bias: bool = False
    gemma: bool = False
    experts: int = 0
    norm_topk: bool = False
    shared_expert: bool = False
    window: str = "none"


_QWEN = {"max_position_embeddings": 32768}
_QWEN_MOE = {**_QWEN, "num_experts_per_tok": 4, "moe_intermediate_size": 1408}
_GEMMA = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}

_FAMILIES = {
    "llama": _Family({"max_position_embeddings": 2048}),
    "mistral": _Family({"sliding_window": 4096, "num_key_value_heads": 8}, window="all"),
    "qwen2": _Family(_QWEN, qkv_bias=True, window="late"),
    "qwen3": _Family({**_QWEN, "head_dim": 128}, qk_norm=True, window="late"),
    "gemma3_text": _Family(_GEMMA, qk_norm=True, gemma=True, window="pattern"),
    "mixtral": _Family(
        {"rope_theta": 1e6, "num_key_value_heads": 8, "num_experts_per_tok": 2},
        experts=8,
        norm_topk=True,
        window="all",
    ),
    "qwen2_moe": _Family(
        {**_QWEN_MOE, "shared_expert_intermediate_size": 5632},
        qkv_bias=True,
        experts=60,
        shared_expert=True,
        window="listed",
    ),
    "qwen3_moe": _Family(
        {**_QWEN, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        qk_norm=True,
        experts=128,
        window="all if used",
    ),
}


def supported_families() -> list[str]:
    """The ``model_type`` values that ``spec_from_config`` takes."""
    return sorted(_FAMILIES)


def spec_from_config(
    path: Path, values: Mapping[str, Any], eos_ids: tuple[int, ...], has_head: bool
) -> ModelSpec:
    """Build a decoder's spec. ``has_head``: whether the weights hold an output head of their own.

    Raises ModelFileError for an unknown ``model_type`` or an option that is not supported.
    """
    family = _FAMILIES.get(str(values.get("model_type")))
    if family is None:
        raise ModelFileError(
            f"{path}: model_type {values.get('model_type')!r} is not supported "
            f"(supported: {', '.join([*supported_families(), 'bert'])})"
        )
    config = Fields(path, {**family.defaults, **_known(values)})
    _refuse_unsupported(config)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    head_dim = config.size("head_dim", hidden // heads)
    kv_heads = config.size("num_key_value_heads", heads)
    config.heads(heads, kv_heads, head_dim)
    attention = _attention(config, family)
    sliding = "sliding" in attention
    scale = config.positive("query_pre_attn_scalar", head_dim) if family.gemma else head_dim
    moe_layers = _moe_layers(config, family)
    return ModelSpec(
        family=str(values["model_type"]).removesuffix("_text"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=config.size("intermediate_size"),
        vocab=config.size("vocab_size"),
        context=config.size("max_position_embeddings"),
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        attention=attention,
        attention_scale=float(scale**-0.5),
        rope=_rope(config, "full_attention"),
        rope_sliding=_rope(config, "sliding_attention") if sliding else None,
        window=config.size("sliding_window") if sliding else None,
        activation=_activation(config),
        tied=config.flag("tie_word_embeddings", not has_head),
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias or config.flag("attention_bias"),
        o_bias=config.flag("attention_bias"),
        sandwich_norms=family.gemma,
        embedding_scale=hidden**0.5 if family.gemma else 1.0,
        attention_softcap=config.optional("attn_logit_softcapping"),
        logit_softcap=config.optional("final_logit_softcapping"),
        moe=_moe(config, family) if moe_layers else None,
        moe_layers=moe_layers,
        eos_ids=eos_ids,
    )


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """A null in config.json means the default, as a missing key does, except for the window."""
    return {k: v for k, v in values.items() if v is not None or k == "sliding_window"}


def _refuse_unsupported(config: Fields) -> None:
    values = config.values
    if "quantization_config" in values:
        method = config.object("quantization_config").get("quant_method", "unknown")
        raise config.fail(
            f"quantised with {method}; only float32, float16 and bfloat16 folders load"
        )
    if config.flag("mlp_bias"):
        raise config.fail("mlp_bias is not supported")
    if config.flag("use_bidirectional_attention"):
        raise config.fail("use_bidirectional_attention is not supported")
    rotated = config.object("rope_parameters").get("partial_rotary_factor", 1.0)
    if config.get("partial_rotary_factor", rotated) != 1.0:
        raise config.fail("partial_rotary_factor other than 1 is not supported")


def _activation(config: Fields) -> Activation:
    name = str(config.values.get("hidden_activation", config.values.get("hidden_act", "silu")))
    if name not in _ACTIVATIONS:
        raise config.fail(
            f"activation {name!r} is not supported (supported: {', '.join(_ACTIVATIONS)})"
        )
    return _ACTIVATIONS[name]


def _attention(config: Fields, family: _Family) -> tuple[AttentionKind, ...]:
    layers, values = config.size("num_hidden_layers", most=MAX_LAYERS), config.values
    listed = config.list("layer_types")
    if family.window in ("all", "none", "all if used"):
        used = family.window == "all" or config.flag("use_sliding_window")
        slides = family.window != "none" and used and bool(values.get("sliding_window"))
        return kinds_where([slides] * layers)
    if listed is not None:
        known = {"full_attention", "sliding_attention"}
        if len(listed) != layers or not {str(name) for name in listed} <= known:
            raise config.fail(f"layer_types must name {layers} full or sliding layers")
        return kinds_where([name == "sliding_attention" for name in listed])
    if family.window == "pattern":
        pattern = config.size("sliding_window_pattern", 6)
        return kinds_where([bool((i + 1) % pattern) for i in range(layers)])
    if not config.flag("use_sliding_window") or not values.get("sliding_window"):
        return kinds_where([False] * layers)
    if family.window == "listed":
        raise config.fail("use_sliding_window needs layer_types, which is missing")
    first = int(config.number("max_window_layers", 28))
    return kinds_where([i >= first for i in range(layers)])


def _moe_layers(config: Fields, family: _Family) -> tuple[int, ...]:
    if not family.experts:
        return ()
    dense = config.list("mlp_only_layers") or []
    step = config.size("decoder_sparse_step", 1)
    layers = config.size("num_hidden_layers", most=MAX_LAYERS)
    return tuple(i for i in range(layers) if i not in dense and (i + 1) % step == 0)


def _moe(config: Fields, family: _Family) -> MoeSpec:
    key = "num_experts" if config.get("num_experts") else "num_local_experts"
    experts = config.size(key, family.experts, MAX_EXPERTS)
    return MoeSpec(
        experts=experts,
        top_k=config.size("num_experts_per_tok", most=experts),
        ffn=config.size("moe_intermediate_size", config.size("intermediate_size")),
        norm_topk=config.flag("norm_topk_prob", family.norm_topk),
        shared_ffn=config.size("shared_expert_intermediate_size") if family.shared_expert else 0,
    )


def _rope(config: Fields, kind: str) -> RopeSpec:
    """Rotary settings of one attention kind, in whichever of the two spellings the file has."""
    values = config.values
    settings = config.object("rope_parameters") or config.object("rope_scaling")
    if isinstance(settings.get(kind), dict):
        settings = settings[kind]
    elif kind == "sliding_attention" and "rope_local_base_freq" in values:
        return RopeSpec(config.positive("rope_local_base_freq"))
    elif kind == "sliding_attention" and str(values.get("model_type")) == "gemma3_text":
        return RopeSpec(1e4)
    rope = Fields(config.path, settings)
    base = rope.positive("rope_theta", config.positive("rope_theta", 1e4))
    return _scaled(rope, base, config.size("max_position_embeddings"))


def _scaled(rope: Fields, base: float, context: int) -> RopeSpec:
    scaling = str(rope.values.get("rope_type", rope.values.get("type", "default")))
    if scaling == "default":
        return RopeSpec(base)
    if scaling == "linear":
        return RopeSpec(base, "linear", rope.positive("factor"))
    original = rope.size("original_max_position_embeddings", context)
    if scaling == "llama3":
        return RopeSpec(
            base,
            "llama3",
            rope.positive("factor"),
            original,
            low_freq_factor=rope.positive("low_freq_factor"),
            high_freq_factor=rope.positive("high_freq_factor"),
        )
    if scaling == "yarn":
        if rope.values.get("mscale") or not rope.values.get("truncate", True):
            raise rope.fail("yarn rope scaling with mscale or without truncate is not supported")
        return RopeSpec(
            base,
            "yarn",
            rope.positive("factor", context / original),
            original,
            beta_fast=rope.positive("beta_fast", 32.0),
            beta_slow=rope.positive("beta_slow", 1.0),
            attention_factor=rope.number("attention_factor", 0.0),
        )
    raise rope.fail(
        f"rope scaling {scaling!r} is not supported (supported: default, linear, llama3, yarn)"
    )
