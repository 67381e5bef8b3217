"""Hugging Face folders: shards, precisions, both spellings, rope scalings, multimodal wrappers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.oracle import Oracle
from models.paged import PagedRun, worst_share
from models.tiny import FAMILIES, make_tiny
from tenfold.models.checkpoint import open_checkpoint

PROMPT = [(5 * i * i + 11) % 304 for i in range(100)]


def logits(loaded):
    return PagedRun(loaded.model).step({0: PROMPT})[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_in_shards_loads(family, tmp_path, load):
    """save_pretrained writes today's config spelling, and an index over several files."""
    folder = make_tiny(family, tmp_path / "a")
    oracle = Oracle(folder)
    oracle.model.save_pretrained(tmp_path / "b", max_shard_size="100KB")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 2
    original, saved = load(folder), load(tmp_path / "b")
    assert saved.spec == original.spec
    assert torch.equal(logits(saved), logits(original))
    assert worst_share(logits(saved), oracle.logits(PROMPT)) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_half_precision_folders(family, dtype, tmp_path, load):
    """Stored small, computed in float32: transformers asked for float32 does the same."""
    folder = make_tiny(family, tmp_path)
    weights = load_file(folder / "model.safetensors")
    halves = {name: value.to(dtype) for name, value in weights.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    loaded, oracle = load(folder), Oracle(folder)
    assert worst_share(logits(loaded), oracle.logits(PROMPT)) <= 1e-4


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 4.0},
        LLAMA3,
        YARN,
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5},
    ],
    ids=["linear", "llama3", "yarn", "yarn-tuned"],
)
def test_rope_scaling(scaling, tmp_path, load):
    folder = make_tiny("llama", tmp_path, rope_scaling=scaling, head_dim=32)
    loaded, oracle = load(folder), Oracle(folder)
    assert loaded.spec.rope.scaling == scaling.get("rope_type", scaling.get("type"))
    assert worst_share(logits(loaded), oracle.logits(PROMPT)) <= 1e-4


def test_scaling_of_the_global_layers_only(tmp_path, load):
    """As in the larger Gemma 3 models."""
    folder = make_tiny("gemma3_text", tmp_path, rope_scaling={"rope_type": "linear", "factor": 8.0})
    loaded, oracle = load(folder), Oracle(folder)
    assert loaded.spec.rope.factor == 8.0
    assert loaded.spec.rope_sliding is not None and loaded.spec.rope_sliding.scaling == "none"
    assert worst_share(logits(loaded), oracle.logits(PROMPT)) <= 1e-4


def test_attention_bias(tmp_path, load):
    folder = make_tiny("llama", tmp_path, attention_bias=True)
    loaded, oracle = load(folder), Oracle(folder)
    assert loaded.spec.qkv_bias and loaded.spec.o_bias
    assert worst_share(logits(loaded), oracle.logits(PROMPT)) <= 1e-4


def test_softcaps(tmp_path, load):
    caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 2.0}
    loaded = load(make_tiny("gemma3_text", tmp_path, **caps))
    got = logits(loaded)
    assert loaded.spec.attention_softcap == 5.0
    assert 1.5 < float(got.abs().max()) <= 2.0


@pytest.mark.parametrize("late", [0, 1])
def test_qwen2_layers_that_slide_late(late, tmp_path, load):
    options = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": late}
    folder = make_tiny("qwen2", tmp_path, **options)
    loaded, oracle = load(folder), Oracle(folder)
    assert loaded.spec.attention == ("global" if late else "sliding", "sliding")
    assert worst_share(logits(loaded), oracle.logits(PROMPT)) <= 1e-4


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_folder(prefix, tmp_path, load):
    plain = make_tiny("gemma3_text", tmp_path / "plain")
    wrapped = tmp_path / "wrapped"
    shutil.copytree(plain, wrapped)
    config = json.loads((plain / "config.json").read_text())
    outer = {"model_type": "gemma3", "text_config": config, "eos_token_id": [2, 5]}
    (wrapped / "config.json").write_text(json.dumps(outer))
    weights = load_file(plain / "model.safetensors")
    renamed = {prefix + name.removeprefix("model."): value for name, value in weights.items()}
    renamed["vision_tower.patch.weight"] = torch.zeros(3)
    save_file(renamed, wrapped / "model.safetensors")
    loaded = load(wrapped)
    assert loaded.facts.eos_ids == [2, 5]
    assert torch.equal(logits(loaded), logits(load(plain)))


def test_defaults_that_a_config_may_leave_out(tmp_path):
    """A Gemma 3 config names only what differs from its class."""
    folder = make_tiny("gemma3_text", tmp_path, head_dim=256, num_attention_heads=8)
    config = json.loads((folder / "config.json").read_text())
    for key in ("head_dim", "num_attention_heads", "tie_word_embeddings", "hidden_activation"):
        del config[key]
    config["rope_scaling"] = None
    (folder / "config.json").write_text(json.dumps(config))
    spec = open_checkpoint(folder).spec
    assert (spec.heads, spec.head_dim, spec.tied, spec.activation) == (8, 256, True, "gelu_tanh")


def test_a_missing_tie_flag_follows_the_weights(tmp_path):
    folder = make_tiny("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    assert not open_checkpoint(folder).spec.tied
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    assert open_checkpoint(folder).spec.tied


def test_long_positions(tmp_path, load):
    """Far rotations agree too: frequencies are computed as the models were trained."""
    folder = make_tiny("llama", Path(tmp_path), max_position_embeddings=4096)
    loaded, oracle = load(folder), Oracle(folder)
    tokens = [(3 * i) % 304 for i in range(1500)]
    run = PagedRun(loaded.model, blocks=128)
    got = torch.cat([run.step({0: tokens[a : a + 500]})[0] for a in range(0, 1500, 500)])
    assert worst_share(got, oracle.logits(tokens)) <= 1e-4
