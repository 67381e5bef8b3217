"""Tenfold's own names for a model's weights, and the shape each must have.

A checkpoint maps its file's names to these; packing and the models know only these. Matrices are
(outputs, inputs). Knows nothing of files or precisions.

    embed, final_norm, head                          head only where it is not tied
    layers.N.{attn_norm,q,k,v,o,ffn_norm}            and q_bias, k_bias, v_bias, o_bias,
                                                     q_norm, k_norm, post_attn_norm, post_ffn_norm
    layers.N.{gate,up,down}                          a dense MLP
    layers.N.{router,experts.E.gate/up/down}         a mixture
    layers.N.{shared.gate/up/down,shared_gate}       its shared expert
"""

from __future__ import annotations

from tenfold.models.spec import EncoderSpec, ModelSpec

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(spec: ModelSpec | EncoderSpec) -> Shapes:
    """Every weight the model needs, in the order it is used."""
    return _encoder(spec) if isinstance(spec, EncoderSpec) else _decoder(spec)


def _mlp(prefix: str, hidden: int, width: int) -> Shapes:
    return {
        f"{prefix}gate": (width, hidden),
        f"{prefix}up": (width, hidden),
        f"{prefix}down": (hidden, width),
    }


def _ffn(spec: ModelSpec, layer: int) -> Shapes:
    moe, at = spec.moe, f"layers.{layer}."
    if moe is None or layer not in spec.moe_layers:
        return _mlp(at, spec.hidden, spec.ffn)
    shapes: Shapes = {f"{at}router": (moe.experts, spec.hidden)}
    for expert in range(moe.experts):
        shapes |= _mlp(f"{at}experts.{expert}.", spec.hidden, moe.ffn)
    if moe.shared_ffn:
        shapes |= _mlp(f"{at}shared.", spec.hidden, moe.shared_ffn)
        shapes[f"{at}shared_gate"] = (1, spec.hidden)
    return shapes


def _attention(spec: ModelSpec, layer: int) -> Shapes:
    at, hidden = f"layers.{layer}.", spec.hidden
    rows = {"q": spec.heads, "k": spec.kv_heads, "v": spec.kv_heads}
    shapes: Shapes = {f"{at}attn_norm": (hidden,)}
    shapes |= {f"{at}{name}": (heads * spec.head_dim, hidden) for name, heads in rows.items()}
    if spec.qkv_bias:
        shapes |= {f"{at}{name}_bias": (heads * spec.head_dim,) for name, heads in rows.items()}
    if spec.qk_norm:
        shapes |= {f"{at}{name}_norm": (spec.head_dim,) for name in "qk"}
    shapes[f"{at}o"] = (hidden, spec.heads * spec.head_dim)
    if spec.o_bias:
        shapes[f"{at}o_bias"] = (hidden,)
    return shapes


def _decoder(spec: ModelSpec) -> Shapes:
    hidden = spec.hidden
    shapes: Shapes = {"embed": (spec.vocab, hidden)}
    for layer in range(spec.layers):
        shapes |= _attention(spec, layer)
        norms = ["ffn_norm"]
        if spec.sandwich_norms:
            norms = ["post_attn_norm", "ffn_norm", "post_ffn_norm"]
        shapes |= {f"layers.{layer}.{norm}": (hidden,) for norm in norms}
        shapes |= _ffn(spec, layer)
    shapes["final_norm"] = (hidden,)
    if not spec.tied:
        shapes["head"] = (spec.vocab, hidden)
    return shapes


def _encoder(spec: EncoderSpec) -> Shapes:
    hidden = spec.hidden
    shapes: Shapes = {
        "embed": (spec.vocab, hidden),
        "positions": (spec.positions, hidden),
        "token_types": (spec.token_types, hidden),
        "embed_norm": (hidden,),
        "embed_norm_bias": (hidden,),
    }
    for layer in range(spec.layers):
        at = f"layers.{layer}."
        shapes |= {f"{at}{name}": (hidden, hidden) for name in ("q", "k", "v", "o")}
        shapes |= {f"{at}up": (spec.ffn, hidden), f"{at}down": (hidden, spec.ffn)}
        shapes |= {f"{at}{name}_bias": (hidden,) for name in ("q", "k", "v", "o", "down")}
        shapes[f"{at}up_bias"] = (spec.ffn,)
        for norm in ("attn_norm", "ffn_norm"):
            shapes |= {f"{at}{norm}": (hidden,), f"{at}{norm}_bias": (hidden,)}
    return shapes
