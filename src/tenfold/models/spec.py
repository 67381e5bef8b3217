"""What a network looks like: plain numbers that decide every layer, read from the checkpoint.

The decoder is built from a ``ModelSpec`` alone and asks no family's name. Knows no file format, no
weights and no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tenfold.core.types import KVDtype, KVGroup, ModelFacts

AttentionKind = Literal["global", "sliding"]
Activation = Literal["silu", "gelu_tanh"]
RopeScaling = Literal["none", "linear", "llama3", "yarn", "factors"]
Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions of one attention kind (Su et al., RoFormer §3.4.2), and their stretching.

    ``factors`` divide each pair's frequency; the other fields belong to the scaling they name:
    ``linear`` and ``llama3`` and ``yarn`` (Peng et al., YaRN §3) read ``factor``; the last two also
    ``original_context``. ``attention_factor`` 0 takes YaRN's own rule.
    """

    base: float
    scaling: RopeScaling = "none"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture layer: ``top_k`` of ``experts`` gated MLPs of width ``ffn`` see each token.

    ``norm_topk``: the chosen experts' weights are divided by their sum. ``shared_ffn`` > 0 adds one
    MLP that sees every token, behind a sigmoid gate.
    """

    experts: int
    top_k: int
    ffn: int
    norm_topk: bool
    shared_ffn: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only language model. One entry of ``attention`` per layer.

    ``ffn`` is the width of dense layers; layers in ``moe_layers`` are mixtures instead.
    ``sandwich_norms``: attention and MLP outputs are normed once more before they are added.
    ``attention_scale`` multiplies q·k; softcaps are tanh limits, None where absent.
    """

    family: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    norm_eps: float
    attention: tuple[AttentionKind, ...]
    attention_scale: float
    rope: RopeSpec
    rope_sliding: RopeSpec | None = None
    window: int | None = None
    activation: Activation = "silu"
    tied: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    sandwich_norms: bool = False
    embedding_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    moe: MoeSpec | None = None
    moe_layers: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()

    @property
    def layers(self) -> int:
        return len(self.attention)

    def kv_groups(self, ranks: int = 1, dtype: KVDtype = "f32") -> list[KVGroup]:
        """The groups whose layers share blocks: global layers first, then sliding ones.

        With ``ranks`` > 1, each rank holds its share of the KV heads (at least one).
        """
        groups = []
        for kind in ("global", "sliding"):
            layers = tuple(i for i, own in enumerate(self.attention) if own == kind)
            if layers:
                window = self.window if kind == "sliding" else None
                kv_heads = max(1, self.kv_heads // ranks)
                groups.append(KVGroup(kind, layers, kv_heads, self.head_dim, window, dtype))
        return groups

    def facts(
        self, name: str, *, parameters: int, weight_bytes: int, kv_dtype: KVDtype = "f32"
    ) -> ModelFacts:
        """What the control plane is told of this model under ``name``."""
        per_token = sum(group.block_bytes(1) for group in self.kv_groups(dtype=kv_dtype))
        return ModelFacts(
            name=name,
            kind="generate",
            family=self.family,
            context_length=self.context,
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            parameters=parameters,
            weight_bytes=weight_bytes,
            kv_bytes_per_token=per_token,
            eos_ids=list(self.eos_ids),
        )


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """A BERT encoder whose token vectors are pooled into one vector per text."""

    family: str
    hidden: int
    layers: int
    heads: int
    ffn: int
    vocab: int
    context: int
    positions: int
    token_types: int
    norm_eps: float
    pooling: Pooling = "mean"

    def kv_groups(self, ranks: int = 1, dtype: KVDtype = "f32") -> list[KVGroup]:
        """None: an encoder keeps nothing between texts."""
        return []

    def facts(
        self, name: str, *, parameters: int, weight_bytes: int, kv_dtype: KVDtype = "f32"
    ) -> ModelFacts:
        """What the control plane is told of this model under ``name``."""
        return ModelFacts(
            name=name,
            kind="embed",
            family=self.family,
            context_length=self.context,
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            parameters=parameters,
            weight_bytes=weight_bytes,
            kv_bytes_per_token=0,
        )


def kinds_where(sliding: list[bool]) -> tuple[AttentionKind, ...]:
    """One attention kind per layer, sliding where the flag is set."""
    return tuple("sliding" if own else "global" for own in sliding)


def spec_to_dict(spec: ModelSpec | EncoderSpec) -> dict[str, Any]:
    """Plain JSON values; ``spec_from_dict`` gives the same spec back."""
    return {"type": "encoder" if isinstance(spec, EncoderSpec) else "decoder", **asdict(spec)}


def spec_from_dict(values: dict[str, Any]) -> ModelSpec | EncoderSpec:
    """Inverse of ``spec_to_dict``. Raises KeyError or TypeError on values of another version."""
    fields = dict(values)
    if fields.pop("type") == "encoder":
        return EncoderSpec(**fields)
    for key in ("rope", "rope_sliding"):
        if (rope := fields[key]) is not None:
            fields[key] = RopeSpec(**{**rope, "factors": tuple(rope["factors"])})
    if fields["moe"] is not None:
        fields["moe"] = MoeSpec(**fields["moe"])
    for key in ("attention", "moe_layers", "eos_ids"):
        fields[key] = tuple(fields[key])
    return ModelSpec(**fields)
