"""GGUF files: the same network as the folder, in every precision, shaped by the metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter

from models.oracle import Oracle
from models.paged import PagedRun, worst_share
from models.tiny import make_tiny, tiny_config, tiny_weights
from models.tiny_gguf import ARCHITECTURES, make_tiny_gguf, to_gguf_names, write_metadata
from tenfold.models.checkpoint import describe_checkpoint, open_checkpoint

PROMPT = [(7 * i * i + 3) % 304 for i in range(60)]
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
READABLE = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "gemma3_text": {"head_dim": 256, "sliding_window_pattern": 6},
    "qwen2_moe": {
        "mlp_only_layers": [],
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen3_moe": {"head_dim": 128, "moe_intermediate_size": 768},
}
"""Sizes at which transformers needs no metadata that it does not read."""


def logits(loaded):
    return PagedRun(loaded.model).step({0: PROMPT})[0]


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_file_and_a_folder_are_the_same_model(family, tmp_path, load):
    # llama.cpp's Gemma 3 has every sixth layer global, and scales by the head dimension.
    overrides = {"sliding_window_pattern": 6, "query_pre_attn_scalar": 32}
    overrides = overrides if family == "gemma3_text" else {}
    folder = make_tiny(family, tmp_path / "folder", seed=4, **overrides)
    make_tiny_gguf(family, tmp_path / "m.gguf", seed=4, **overrides)
    a, b = load(folder), load(tmp_path / "m.gguf")
    assert a.spec.attention == b.spec.attention
    assert a.facts.parameters == b.facts.parameters
    assert worst_share(logits(b), logits(a)) < 1e-6


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K"])
def test_every_precision_is_its_dequantised_weights(kind, tmp_path, load):
    """A file in this kind against a float32 file of the weights it stands for."""
    config, exact = make_tiny_gguf(
        "llama", tmp_path / "q.gguf", kind_of=lambda name: Kind[kind], **WIDE
    )
    writer = GGUFWriter(tmp_path / "f.gguf", "llama")
    write_metadata(writer, config)
    for name, value in exact.items():
        writer.add_tensor(name, value)
    finish(writer)
    quantised, plain = load(tmp_path / "q.gguf"), load(tmp_path / "f.gguf")
    assert worst_share(logits(quantised), logits(plain)) < 1e-5


def test_kinds_that_differ_within_a_layer(tmp_path, load):
    """As K-quant mixes do: v and down in another precision than their neighbours."""

    def kind_of(name: str) -> Kind:
        return Kind.Q6_K if "attn_v" in name or "ffn_up" in name else Kind.Q4_K

    config, exact = make_tiny_gguf("qwen2", tmp_path / "q.gguf", kind_of=kind_of, **WIDE)
    writer = GGUFWriter(tmp_path / "f.gguf", "qwen2")
    write_metadata(writer, config)
    for name, value in exact.items():
        writer.add_tensor(name, value)
    finish(writer)
    mixed = load(tmp_path / "q.gguf")
    parts = [entry.parts for entry in mixed.plan.entries]
    assert ("layers.0.q", "layers.0.k") in parts and ("layers.0.v",) in parts
    assert ("layers.0.q_bias", "layers.0.k_bias", "layers.0.v_bias") in parts
    assert worst_share(logits(mixed), logits(load(tmp_path / "f.gguf"))) < 1e-5


@pytest.mark.parametrize("family", READABLE)
def test_transformers_reads_the_same_file(family, tmp_path, load):
    """Names, permutation, stacking and norms are llama.cpp's, not our own idea of them."""
    pytest.importorskip("accelerate")
    make_tiny_gguf(family, tmp_path / "m.gguf", **READABLE[family])
    oracle = Oracle(tmp_path / "m.gguf")
    assert worst_share(logits(load(tmp_path / "m.gguf")), oracle.logits(PROMPT)) <= 1e-4


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(path: Path, config: dict, extra=lambda writer: None, tensors=None, arch="llama") -> Path:
    writer = GGUFWriter(path, arch)
    write_metadata(writer, config)
    extra(writer)
    tensors = to_gguf_names(config, tiny_weights(config)) if tensors is None else tensors
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    finish(writer)
    return path


def test_rope_factors_are_a_tensor(tmp_path, load):
    """Llama 3.1 files: the divisors equal the scaling that a folder names."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = load(make_tiny("llama", tmp_path / "folder", rope_scaling=scaling))
    config = tiny_config("llama")
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    wave, old = 2 * np.pi / plain, 64
    smooth = np.clip((old / wave - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    tensors = {"rope_freqs.weight": factors, **to_gguf_names(config, tiny_weights(config))}
    loaded = load(write(tmp_path / "m.gguf", config, tensors=tensors))
    assert loaded.spec.rope.scaling == "factors"
    assert worst_share(logits(loaded), logits(folder)) < 1e-5
    unscaled = load(make_tiny("llama", tmp_path / "plain"))
    assert worst_share(logits(loaded), logits(unscaled)) > 1e-2


def test_yarn_metadata(tmp_path):
    def extra(writer: GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", "yarn")
        writer.add_float32("llama.rope.scaling.factor", 4.0)
        writer.add_uint32("llama.rope.scaling.original_context_length", 128)

    rope = open_checkpoint(write(tmp_path / "m.gguf", tiny_config("llama"), extra)).spec.rope
    assert (rope.scaling, rope.factor, rope.original_context) == ("yarn", 4.0, 128)


def test_eos_ids_come_from_ids_and_from_the_files_own_template(tmp_path):
    config = tiny_config("llama")
    plain = open_checkpoint(write(tmp_path / "a.gguf", config)).spec
    assert plain.eos_ids == (2,)

    def extra(writer: GGUFWriter) -> None:
        writer.add_chat_template("{{ m }}<|eot_id|>")
        writer.add_uint32("tokenizer.ggml.eot_token_id", 9)

    assert open_checkpoint(write(tmp_path / "b.gguf", config, extra)).spec.eos_ids == (2, 3, 9)


def test_description_of_a_file(tmp_path):
    make_tiny_gguf("llama", tmp_path / "m.gguf", kind_of=lambda name: Kind.Q8_0, **WIDE)
    summary = describe_checkpoint(tmp_path / "m.gguf")
    assert (summary.format, summary.family, summary.vocab_size) == ("gguf", "llama", 304)
    assert summary.kinds == {"q8_0": 16}
    assert summary.file_bytes == (tmp_path / "m.gguf").stat().st_size


def test_torch_is_happy_with_mapped_weights(tmp_path, load, recwarn):
    """No warning about memory that torch may not write to."""
    make_tiny_gguf("llama", tmp_path / "m.gguf")
    load(tmp_path / "m.gguf")
    assert not [w for w in recwarn if "writable" in str(w.message)]
    assert torch.is_inference_mode_enabled() is False
