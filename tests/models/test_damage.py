"""Files that are cut, damaged, incomplete or of another kind: one clear line, never a traceback."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from safetensors.numpy import load_file, save_file

from models.tiny import FAMILIES, make_tiny, tiny_config, tiny_weights
from models.tiny_gguf import make_tiny_gguf, to_gguf_names, write_metadata
from tenfold.core.errors import ModelFileError
from tenfold.models.checkpoint import open_checkpoint


def refusal(path: Path) -> str:
    """The message that opening ``path`` ends in, checked to be one line that names the file."""
    with pytest.raises(ModelFileError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 400
    assert caught.value.__cause__ is None
    return message


def gguf_with(path: Path, arch: str = "llama", change=lambda tensors: tensors, extra=None) -> Path:
    """A tiny llama file whose tensors or metadata were changed before writing."""
    config = tiny_config("llama")
    writer = GGUFWriter(path, arch)
    write_metadata(writer, config)
    if extra:
        extra(writer)
    for name, value in change(to_gguf_names(config, tiny_weights(config))).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- GGUF -----------------------------------------------------------------------------------------


def test_no_such_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.gguf")


def test_another_kind_of_file(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 something else")
    assert "nor a GGUF file" in refusal(tmp_path / "m.gguf")


@pytest.mark.parametrize("size", [0, 3, 4, 7, 8, 20, 24, 25, 100, 1000])
def test_a_header_cut_short(size, tmp_path):
    path = tmp_path / "m.gguf"
    make_tiny_gguf("llama", path)
    path.write_bytes(path.read_bytes()[:size])
    refusal(path)


def test_weights_cut_short(tmp_path):
    path = tmp_path / "m.gguf"
    make_tiny_gguf("llama", path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    message = refusal(path)
    assert "truncated" in message and f"{len(whole) - 1000:,}" in message


def test_an_old_version(tmp_path):
    path = tmp_path / "m.gguf"
    make_tiny_gguf("llama", path)
    raw = bytearray(path.read_bytes())
    raw[4:8] = struct.pack("<I", 1)
    path.write_bytes(raw)
    assert "version 1" in refusal(path)


def test_a_missing_tensor(tmp_path):
    def change(tensors):
        return {name: t for name, t in tensors.items() if name != "blk.1.attn_q.weight"}

    message = refusal(gguf_with(tmp_path / "m.gguf", change=change))
    assert "tensor blk.1.attn_q.weight is missing" in message


def test_a_missing_embedding(tmp_path):
    def change(tensors):
        return {name: t for name, t in tensors.items() if name != "token_embd.weight"}

    assert "token_embd.weight is missing" in refusal(gguf_with(tmp_path / "m.gguf", change=change))


def test_a_wrong_shape(tmp_path):
    def change(tensors):
        return tensors | {"blk.0.attn_k.weight": np.zeros((16, 64), np.float32)}

    message = refusal(gguf_with(tmp_path / "m.gguf", change=change))
    assert "blk.0.attn_k.weight has shape [16, 64]" in message and "[32, 64]" in message


def test_a_tensor_too_many(tmp_path):
    def change(tensors):
        return tensors | {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}

    assert "blk.0.attn_sinks.weight" in refusal(gguf_with(tmp_path / "m.gguf", change=change))


def test_an_unknown_architecture(tmp_path):
    message = refusal(gguf_with(tmp_path / "m.gguf", arch="mamba"))
    assert "'mamba' is not supported" in message and "qwen3moe" in message


@pytest.mark.parametrize("kind", [Kind.Q5_1, Kind.Q3_K, Kind.IQ4_NL])
def test_an_unsupported_tensor_type(kind, tmp_path):
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[kind]
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    write_metadata(writer, tiny_config("llama"))
    raw = np.zeros((304, 256 // block * size), np.uint8)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = refusal(path)
    assert f"type {kind.name}, which is not supported" in message and "Q4_K" in message


@pytest.mark.parametrize(
    ("add", "what"),
    [
        (lambda w: w.add_string("llama.rope.scaling.type", "longrope"), "factor is missing"),
        (lambda w: w.add_uint32("llama.attention.sliding_window", 64), "sliding window"),
        (lambda w: w.add_uint32("llama.rope.dimension_count", 8), "dimension_count is 8"),
        (lambda w: w.add_float32("llama.attention.scale_x", 1.0), ""),
    ],
)
def test_options_that_would_change_the_result(add, what, tmp_path):
    path = gguf_with(tmp_path / "m.gguf", extra=add)
    if what:
        assert what in refusal(path)
    else:
        open_checkpoint(path)  # an unknown key is not an option we know to matter


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe"])
def test_flipped_bits_never_crash_the_reader(family, tmp_path):
    """Any damage to the header either loads (a name of no matter) or is refused in one line."""
    path = tmp_path / "m.gguf"
    make_tiny_gguf(family, path, vocab_size=32)
    whole, rng = path.read_bytes(), random.Random(family)
    header = whole.index(b"token_embd.weight") + 3000
    for _ in range(150):
        raw = bytearray(whole)
        for _ in range(rng.choice([1, 1, 4])):
            raw[rng.randrange(4, min(header, len(raw)))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        try:
            checkpoint = open_checkpoint(path)
        except ModelFileError as exc:
            assert "\n" not in str(exc) and str(path) in str(exc)
        else:
            assert checkpoint.tensors


@pytest.mark.parametrize("value", [0xFFFFFFFFFFFFFFFF, 1 << 62, 1 << 40])
@pytest.mark.parametrize("field", ["tensors", "metadata", "key", "array"])
def test_absurd_lengths_neither_hang_nor_fill_memory(field, value, tmp_path):
    path = tmp_path / "m.gguf"
    make_tiny_gguf("llama", path)
    raw = bytearray(path.read_bytes())
    tokens = raw.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens")
    at = {"tensors": 8, "metadata": 16, "key": 24, "array": tokens + 8}[field]
    raw[at : at + 8] = struct.pack("<Q", value)
    path.write_bytes(raw)
    refusal(path)


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return make_tiny("llama", tmp_path)


def shard(folder: Path) -> None:
    """Split the weights over two files with an index."""
    weights = load_file(folder / "model.safetensors")
    names, index = sorted(weights), {}
    for number, own in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in own}, folder / file)
        index |= dict.fromkeys(own, file)
    (folder / "model.safetensors").unlink()
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def test_shards_load(folder):
    shard(folder)
    assert open_checkpoint(folder).tensors


def test_a_missing_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(folder)


def test_a_shard_that_the_index_does_not_mention(folder):
    shard(folder)
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    keep = {k: v for k, v in values["weight_map"].items() if "00001" in v}
    index.write_text(json.dumps({"weight_map": keep}))
    assert "is missing" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_a_damaged_index(text, folder):
    (folder / "model.safetensors.index.json").write_text(text)
    refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "{}", "[" * 100_000])
def test_a_damaged_config(text, folder):
    (folder / "config.json").write_text(text)
    refusal(folder)


def test_no_config(tmp_path):
    assert "not a model folder" in refusal(tmp_path)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(folder)


@pytest.mark.parametrize("size", [0, 5, 8, 100, 5000])
def test_weights_cut_in_the_header(size, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    refusal(folder)


def test_weights_cut_at_the_end(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    assert f"it has {len(whole) - 4:,}" in refusal(folder)


def test_a_missing_tensor_in_a_folder(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    assert "model.layers.1.mlp.down_proj.weight is missing" in refusal(folder)


def test_a_wrong_shape_in_a_folder(folder):
    edit(folder, intermediate_size=97)
    assert "needs [97, 64]" in refusal(folder)


def test_a_tensor_too_many_in_a_folder(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
    save_file(weights, folder / "model.safetensors")
    assert "self_attn.q_norm.weight" in refusal(folder)


def test_whole_numbers_as_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = np.ones(64, np.int32)
    save_file(weights, folder / "model.safetensors")
    assert "type I32, which is not supported" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported"),
        ({"model_type": None}, "is not supported"),
        ({"hidden_size": "wide"}, "hidden_size is wide"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": 1 << 33}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"head_dim": 15}, "odd"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"type": "yarn"}}, ""),
        ({"rope_scaling": [1]}, "an object expected"),
        ({"hidden_act": "relu"}, "'relu' is not supported"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised with gptq"),
        ({"quantization_config": 4}, "an object expected"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
    ],
)
def test_settings_that_cannot_be_served(changes, what, folder):
    edit(folder, **changes)
    if what:
        assert what in refusal(folder)


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("gemma3_text", {"layer_types": ["full_attention"]}, "6 full or sliding"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5"),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 8}, "layer_types"),
        ("qwen3_moe", {"mlp_only_layers": 3}, "a list expected"),
        ("bert", {"hidden_act": "relu"}, "'relu' is not supported"),
        ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("bert", {"num_attention_heads": 5}, "no multiple of 5"),
    ],
)
def test_settings_of_other_families(family, changes, what, tmp_path):
    edit(make_tiny(family, tmp_path), **changes)
    assert what in refusal(tmp_path)


@pytest.mark.parametrize("family", [*FAMILIES, "bert"])
def test_odd_values_anywhere_in_a_config(family, tmp_path):
    """Each setting replaced by each odd thing: loads, or is refused in one line."""
    folder = make_tiny(family, tmp_path)
    original = (folder / "config.json").read_text()
    for key in json.loads(original):
        for odd in (None, "x", -1, 0, 3.5, 1e400, [], [None], {}, {"a": 1}, True, 1 << 70):
            (folder / "config.json").write_text(original)
            edit(folder, **{key: odd})
            try:
                open_checkpoint(folder)
            except ModelFileError as exc:
                assert "\n" not in str(exc) and str(folder) in str(exc), (key, odd)


def test_damage_costs_nothing(tmp_path, load):
    """A refused checkpoint leaves no image behind."""
    folder = make_tiny("llama", tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError):
        load(folder, tmp_path / "cache")
    assert not list(tmp_path.rglob("*.bin"))
