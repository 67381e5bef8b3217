"""The BERT encoder against transformers, and that a text's vector is its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.tiny import make_tiny
from tenfold.core.errors import ContextTooLong, InvalidRequest

TEXTS = [[1, 17, 200, 5, 2], [1, 2], [1, *range(50, 100), 2], [1, 9, 9, 9, 2]]


def reference(folder: Path, texts: list[list[int]], pooling: str = "mean") -> torch.Tensor:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    vectors = []
    with torch.inference_mode():
        for text in texts:
            hidden = model(torch.tensor([text])).last_hidden_state[0]
            vector = hidden[0] if pooling == "cls" else hidden.mean(0)
            vectors.append(vector / vector.norm())
    return torch.stack(vectors)


def test_equals_transformers(tmp_path, load):
    folder = make_tiny("bert", tmp_path)
    loaded = load(folder)
    got = loaded.model.embed(TEXTS)
    assert got.shape == (4, 64) and loaded.facts.kind == "embed"
    assert loaded.model.kv_groups == [] and loaded.facts.kv_bytes_per_token == 0
    assert float((got - reference(folder, TEXTS)).abs().max()) <= 1e-4


def test_cls_pooling_and_a_shorter_limit(tmp_path, load):
    folder = make_tiny("bert", tmp_path)
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 60}))
    loaded = load(folder)
    assert loaded.facts.context_length == 60
    got = loaded.model.embed(TEXTS)
    assert float((got - reference(folder, TEXTS, "cls")).abs().max()) <= 1e-4


def test_neighbours_change_no_bit(tmp_path, load):
    model = load(make_tiny("bert", tmp_path)).model
    together = model.embed(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        assert torch.equal(model.embed([text])[0], vector)


def test_names_with_a_prefix_and_heads_of_other_tasks(tmp_path, load):
    """A checkpoint saved with a task's head names its encoder ``bert.``"""
    folder = make_tiny("bert", tmp_path / "a")
    plain = load(folder).model.embed(TEXTS)
    weights = load_file(folder / "model.safetensors")
    renamed = {f"bert.{name}": value for name, value in weights.items()}
    renamed["cls.predictions.bias"] = torch.zeros(304)
    save_file(renamed, folder / "model.safetensors")
    assert torch.equal(load(folder).model.embed(TEXTS), plain)


def test_what_cannot_be_embedded(tmp_path, load):
    model = load(make_tiny("bert", tmp_path)).model
    assert model.embed([]).shape == (0, 64)
    with pytest.raises(InvalidRequest, match="empty"):
        model.embed([[1, 2], []])
    with pytest.raises(ContextTooLong, match="65 tokens; the model takes 64"):
        model.embed([[1] * 65])
    with pytest.raises(InvalidRequest, match="0 to 303"):
        model.embed([[304]])


def test_minilm(minilm_path, load):
    """The real model, on real sentences."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    sentences = ["A dog runs in the park.", "A puppy is running outside.", "Interest rates rose."]
    texts = [tokenizer(sentence)["input_ids"] for sentence in sentences]
    loaded = load(minilm_path)
    got = loaded.model.embed(texts)
    assert (loaded.facts.context_length, loaded.facts.hidden_size) == (256, 384)
    assert float((got - reference(minilm_path, texts)).abs().max()) <= 1e-4
    assert float(got[0] @ got[1]) > 0.5 > 0.2 > float(got[0] @ got[2])
