"""From a GGUF file's metadata to a ``ModelSpec``.

What llama.cpp knows of an architecture but does not write into the file (Gemma's sliding pattern
and local rope base, whether routing weights are normed) is stated here. Knows nothing of the
tensors' bytes.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.core.errors import ModelFileError
from tenfold.models.fields import MAX_EXPERTS, MAX_LAYERS, Fields
from tenfold.models.spec import Activation, AttentionKind, ModelSpec, MoeSpec, RopeSpec, kinds_where


@dataclass(frozen=True, slots=True)
class _Traits:
    """What an architecture's name implies."""

    family: str
    qk_norm: bool = False
    norm_topk: bool = True
    gemma: bool = False


_ARCHITECTURES = {
    "llama": _Traits("llama"),
    "qwen2": _Traits("qwen2"),
    "qwen3": _Traits("qwen3", qk_norm=True),
    "gemma3": _Traits("gemma3", qk_norm=True, gemma=True),
    "qwen2moe": _Traits("qwen2_moe", norm_topk=False),
    "qwen3moe": _Traits("qwen3_moe", qk_norm=True),
}

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|eom_id|>")


def spec_from_metadata(
    path: Path, values: Mapping[str, Any], tensors: Container[str], vocab: int
) -> ModelSpec:
    """Build the spec; ``tensors`` are the file's tensor names, ``vocab`` the embedding's rows.

    Raises ModelFileError for an architecture or an option that is not supported.
    """
    arch = str(values.get("general.architecture", ""))
    traits = _ARCHITECTURES.get(arch)
    if traits is None:
        raise ModelFileError(
            f"{path}: architecture {arch!r} is not supported "
            f"(supported: {', '.join(_ARCHITECTURES)})"
        )
    meta = Fields(path, {key: _same(value) for key, value in values.items()}, f"{arch}.")
    hidden, heads = meta.size("embedding_length"), meta.size("attention.head_count")
    layers = meta.size("block_count", most=MAX_LAYERS)
    kv_heads = meta.size("attention.head_count_kv", heads)
    head_dim = meta.size("attention.key_length", hidden // heads)
    meta.heads(heads, kv_heads, head_dim)
    _refuse_other_dims(meta, head_dim)
    moe = _moe(meta, traits)
    window, attention = _attention(meta, traits, layers)
    activation: Activation = "gelu_tanh" if traits.gemma else "silu"
    return ModelSpec(
        family="mixtral" if moe and traits.family == "llama" else traits.family,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=meta.size("feed_forward_length"),
        vocab=vocab,
        context=meta.size("context_length"),
        norm_eps=meta.positive("attention.layer_norm_rms_epsilon"),
        attention=attention,
        attention_scale=_attention_scale(traits, layers, hidden, heads, head_dim),
        rope=_rope(meta),
        rope_sliding=RopeSpec(meta.positive("rope.freq_base_swa", 1e4)) if window else None,
        window=window,
        activation=activation,
        tied="output.weight" not in tensors,
        qk_norm=traits.qk_norm,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
        sandwich_norms=traits.gemma,
        embedding_scale=hidden**0.5 if traits.gemma else 1.0,
        logit_softcap=meta.optional("final_logit_softcapping"),
        attention_softcap=meta.optional("attn_logit_softcapping"),
        moe=moe,
        moe_layers=tuple(i for i in range(layers) if f"blk.{i}.ffn_gate_inp.weight" in tensors),
        eos_ids=_eos_ids(values),
    )


def _same(value: Any) -> Any:
    """Per-layer arrays that hold one value throughout mean that value."""
    if isinstance(value, list) and value and isinstance(value[0], int | float):
        return value[0] if all(item == value[0] for item in value) else value
    return value


def _refuse_other_dims(meta: Fields, head_dim: int) -> None:
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := meta.size(key, head_dim)) != head_dim:
            raise meta.fail(
                f"{meta.prefix}{key} is {size}; only the head dimension ({head_dim}) is supported"
            )


def _moe(meta: Fields, traits: _Traits) -> MoeSpec | None:
    if not meta.get("expert_count"):
        return None
    experts = meta.size("expert_count", most=MAX_EXPERTS)
    shared = meta.get("expert_shared_feed_forward_length")
    return MoeSpec(
        experts=experts,
        top_k=meta.size("expert_used_count", most=experts),
        ffn=meta.size("expert_feed_forward_length", meta.size("feed_forward_length")),
        norm_topk=traits.norm_topk,
        shared_ffn=meta.size("expert_shared_feed_forward_length") if shared else 0,
    )


def _attention(
    meta: Fields, traits: _Traits, layers: int
) -> tuple[int | None, tuple[AttentionKind, ...]]:
    """Gemma 3 has five sliding layers to each global one (Gemma 3 report §2)."""
    if not meta.get("attention.sliding_window"):
        return None, kinds_where([False] * layers)
    window = meta.size("attention.sliding_window")
    if not traits.gemma:
        raise meta.fail(f"a sliding window is not supported for {meta.prefix[:-1]} files")
    pattern = meta.get("attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise meta.fail(f"the sliding window pattern has {len(pattern)} of {layers} layers")
        return window, kinds_where([bool(entry) for entry in pattern])
    period = meta.size("attention.sliding_window_pattern", 6)
    return window, kinds_where([bool((layer + 1) % period) for layer in range(layers)])


def _attention_scale(traits: _Traits, layers: int, hidden: int, heads: int, head_dim: int) -> float:
    """Gemma 3 27B (62 layers) scales by its hidden size per head; files do not say so."""
    if traits.gemma and layers == 62:
        return float((hidden // heads) ** -0.5)
    return float(head_dim**-0.5)


def _rope(meta: Fields) -> RopeSpec:
    base = meta.positive("rope.freq_base", 1e4)
    kind = meta.get("rope.scaling.type", "none")
    if kind == "none":
        return RopeSpec(base)
    factor = meta.positive("rope.scaling.factor")
    if kind == "linear":
        return RopeSpec(base, "linear", factor)
    if kind == "yarn":
        original = meta.size("rope.scaling.original_context_length")
        return RopeSpec(base, "yarn", factor, original)
    raise meta.fail(f"rope scaling {kind!r} is not supported (supported: none, linear, yarn)")


def _eos_ids(values: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids the file names, and the turn-ending tokens that its own chat template writes."""
    named = [values.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    ids = {value for value in named if isinstance(value, int)}
    template = str(values.get("tokenizer.chat_template", ""))
    marks = {mark for mark in _TURN_ENDS if mark in template}
    tokens = values.get("tokenizer.ggml.tokens")
    if marks and isinstance(tokens, list):
        ids |= {i for i, token in enumerate(tokens) if token in marks}
    return tuple(sorted(ids))
