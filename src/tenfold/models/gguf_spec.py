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
_MISSING = object()


class Metadata:
    """Typed look-ups in one file's metadata; a missing or odd value is a ModelFileError."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = values
        self.arch = str(values.get("general.architecture", ""))

    def number(self, key: str, default: Any = _MISSING) -> float:
        """``<architecture>.<key>`` as a number; an array must hold one value throughout."""
        value = self.values.get(f"{self.arch}.{key}", default)
        if value is _MISSING:
            raise ModelFileError(f"{self.path}: metadata {self.arch}.{key} is missing")
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelFileError(
                f"{self.path}: metadata {self.arch}.{key} is {str(value)[:60]}; one number expected"
            )
        return value

    def size(self, key: str, default: Any = _MISSING) -> int:
        """A positive whole number."""
        value = self.number(key, default)
        if value != int(value) or value <= 0:
            raise ModelFileError(
                f"{self.path}: metadata {self.arch}.{key} is {value}; a positive integer expected"
            )
        return int(value)

    def flag(self, key: str, default: float) -> float:
        """A number that may be zero or absent."""
        return self.number(key, default)


def spec_from_metadata(
    path: Path, values: Mapping[str, Any], tensors: Container[str], vocab: int
) -> ModelSpec:
    """Build the spec; ``tensors`` are the file's tensor names, ``vocab`` the embedding's rows.

    Raises ModelFileError for an architecture or an option that is not supported.
    """
    meta = Metadata(path, values)
    traits = _ARCHITECTURES.get(meta.arch)
    if traits is None:
        raise ModelFileError(
            f"{path}: architecture {meta.arch!r} is not supported "
            f"(supported: {', '.join(_ARCHITECTURES)})"
        )
    hidden, heads, layers = (
        meta.size("embedding_length"),
        meta.size("attention.head_count"),
        meta.size("block_count"),
    )
    head_dim = meta.size("attention.key_length", hidden // heads)
    _check_heads(meta, heads, head_dim)
    moe = _moe(meta, traits)
    window, attention = _attention(meta, traits, layers)
    activation: Activation = "gelu_tanh" if traits.gemma else "silu"
    return ModelSpec(
        family="mixtral" if moe and traits.family == "llama" else traits.family,
        hidden=hidden,
        heads=heads,
        kv_heads=meta.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=meta.size("feed_forward_length"),
        vocab=vocab,
        context=meta.size("context_length"),
        norm_eps=meta.number("attention.layer_norm_rms_epsilon"),
        attention=attention,
        attention_scale=_attention_scale(traits, layers, hidden, heads, head_dim),
        rope=_rope(meta),
        rope_sliding=RopeSpec(meta.number("rope.freq_base_swa", 1e4)) if window else None,
        window=window,
        activation=activation,
        tied="output.weight" not in tensors,
        qk_norm=traits.qk_norm,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
        sandwich_norms=traits.gemma,
        embedding_scale=hidden**0.5 if traits.gemma else 1.0,
        logit_softcap=meta.flag("final_logit_softcapping", 0) or None,
        attention_softcap=meta.flag("attn_logit_softcapping", 0) or None,
        moe=moe,
        moe_layers=tuple(i for i in range(layers) if f"blk.{i}.ffn_gate_inp.weight" in tensors),
        eos_ids=_eos_ids(meta),
    )


def _check_heads(meta: Metadata, heads: int, head_dim: int) -> None:
    kv_heads = meta.size("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise ModelFileError(f"{meta.path}: {heads} heads cannot share {kv_heads} KV heads")
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := meta.size(key, head_dim)) != head_dim:
            raise ModelFileError(
                f"{meta.path}: metadata {meta.arch}.{key} is {size}; only the head dimension "
                f"({head_dim}) is supported"
            )


def _moe(meta: Metadata, traits: _Traits) -> MoeSpec | None:
    if not meta.flag("expert_count", 0):
        return None
    width = meta.size("expert_feed_forward_length", meta.size("feed_forward_length"))
    return MoeSpec(
        experts=meta.size("expert_count"),
        top_k=meta.size("expert_used_count"),
        ffn=width,
        norm_topk=traits.norm_topk,
        shared_ffn=int(meta.flag("expert_shared_feed_forward_length", 0)),
    )


def _attention(
    meta: Metadata, traits: _Traits, layers: int
) -> tuple[int | None, tuple[AttentionKind, ...]]:
    """Gemma 3 has five sliding layers to each global one (Gemma 3 report §2)."""
    window = int(meta.flag("attention.sliding_window", 0)) or None
    if window is None:
        return None, kinds_where([False] * layers)
    if not traits.gemma:
        raise ModelFileError(
            f"{meta.path}: a sliding window is not supported for {meta.arch} files"
        )
    pattern = meta.values.get(f"{meta.arch}.attention.sliding_window_pattern", 6)
    if isinstance(pattern, list):
        sliding = [bool(entry) for entry in pattern[:layers]]
    else:
        sliding = [bool((layer + 1) % int(pattern)) for layer in range(layers)]
    return window, kinds_where(sliding)


def _attention_scale(traits: _Traits, layers: int, hidden: int, heads: int, head_dim: int) -> float:
    """Gemma 3 27B (62 layers) scales by its hidden size per head; files do not say so."""
    if traits.gemma and layers == 62:
        return float((hidden // heads) ** -0.5)
    return float(head_dim**-0.5)


def _rope(meta: Metadata) -> RopeSpec:
    base = meta.number("rope.freq_base", 1e4)
    kind = meta.values.get(f"{meta.arch}.rope.scaling.type", "none")
    if kind == "none":
        return RopeSpec(base)
    factor = meta.number("rope.scaling.factor")
    if kind == "linear":
        return RopeSpec(base, "linear", factor)
    if kind == "yarn":
        original = meta.size("rope.scaling.original_context_length")
        return RopeSpec(base, "yarn", factor, original)
    raise ModelFileError(
        f"{meta.path}: rope scaling {kind!r} is not supported (supported: none, linear, yarn)"
    )


def _eos_ids(meta: Metadata) -> tuple[int, ...]:
    """The ids the file names, and the turn-ending tokens that its own chat template writes."""
    named = [meta.values.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    ids = {value for value in named if isinstance(value, int)}
    template = str(meta.values.get("tokenizer.chat_template", ""))
    marks = {mark for mark in _TURN_ENDS if mark in template}
    tokens = meta.values.get("tokenizer.ggml.tokens")
    if marks and isinstance(tokens, list):
        ids |= {i for i, token in enumerate(tokens) if token in marks}
    return tuple(sorted(ids))
