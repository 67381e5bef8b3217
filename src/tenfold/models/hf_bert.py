"""From a sentence-embedding folder's settings to an ``EncoderSpec``.

Knows BERT's config.json and the two files in which sentence-transformers writes how token vectors
become one vector; knows no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenfold.models.fields import MAX_LAYERS, Fields
from tenfold.models.spec import EncoderSpec, Pooling


def encoder_from_config(
    path: Path, values: Mapping[str, Any], pooling: Mapping[str, Any], limits: Mapping[str, Any]
) -> EncoderSpec:
    """Build a spec from config.json, 1_Pooling/config.json and sentence_bert_config.json.

    The last two may be empty: the default is mean pooling over the whole position table.
    Raises ModelFileError for an option that is not supported.
    """
    config = Fields(path, values)
    if (act := values.get("hidden_act", "gelu")) != "gelu":
        raise config.fail(f"hidden_act {act!r} is not supported for BERT (supported: gelu)")
    if (kind := values.get("position_embedding_type", "absolute")) != "absolute":
        raise config.fail(
            f"position_embedding_type {kind!r} is not supported (supported: absolute)"
        )
    hidden, heads = config.size("hidden_size", 768), config.size("num_attention_heads", 12)
    if hidden % heads:
        raise config.fail(f"hidden_size {hidden} is no multiple of {heads} heads")
    positions = config.size("max_position_embeddings", 512)
    longest = Fields(path.with_name("sentence_bert_config.json"), limits)
    return EncoderSpec(
        family="bert",
        hidden=hidden,
        layers=config.size("num_hidden_layers", 12, MAX_LAYERS),
        heads=heads,
        ffn=config.size("intermediate_size", 3072),
        vocab=config.size("vocab_size", 30522),
        context=min(positions, longest.size("max_seq_length", positions)),
        positions=positions,
        token_types=config.size("type_vocab_size", 2),
        norm_eps=config.positive("layer_norm_eps", 1e-12),
        pooling=_pooling(Fields(path.parent / "1_Pooling" / "config.json", pooling)),
    )


def _pooling(config: Fields) -> Pooling:
    modes = [key for key, on in config.values.items() if key.startswith("pooling_mode") and on]
    named = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if modes in ([], ["pooling_mode_mean_tokens"]):
        return "mean"
    if modes == ["pooling_mode_cls_token"]:
        return "cls"
    raise config.fail(
        f"pooling {' + '.join(modes)} is not supported (supported: {', '.join(named)})"
    )
