"""What a loaded model says of itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from models.conftest import allocate
from models.tiny import FAMILIES, make_tiny
from tenfold.core.errors import ConfigError
from tenfold.core.settings import DeviceSettings
from tenfold.kernels.table import build_kernels
from tenfold.kernels.torch_ref import TorchKernels
from tenfold.models.batch import Rank
from tenfold.models.checkpoint import describe_checkpoint, open_checkpoint
from tenfold.models.loading import load_model
from tenfold.models.sizes import sizes_on
from tenfold.models.spec import spec_from_dict, spec_to_dict


def test_facts(tmp_path, load):
    loaded = load(make_tiny("gemma3_text", tmp_path), name="tiny")
    facts = loaded.facts
    assert (facts.name, facts.kind, facts.family) == ("tiny", "generate", "gemma3")
    assert (facts.context_length, facts.vocab_size, facts.hidden_size) == (512, 304, 64)
    assert facts.eos_ids == [2]
    assert facts.kv_bytes_per_token == 6 * 2 * 1 * 32 * 4
    assert facts.weight_bytes >= 4 * facts.parameters


def test_groups_come_global_first(tmp_path, load):
    groups = load(make_tiny("gemma3_text", tmp_path)).model.kv_groups
    assert [(g.name, g.layers, g.window) for g in groups] == [
        ("global", (2, 5), None),
        ("sliding", (0, 1, 3, 4), 16),
    ]


def test_a_model_of_sliding_layers_only_has_one_group(tmp_path, load):
    groups = load(make_tiny("mistral", tmp_path)).model.kv_groups
    assert [(g.name, g.layers, g.window) for g in groups] == [("sliding", (0, 1), 24)]


def test_eos_ids_of_both_files_count(tmp_path):
    folder = make_tiny("llama", tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2, 9]}))
    assert open_checkpoint(folder).spec.eos_ids == (2, 7, 9)


def test_a_group_of_ranks_is_refused(tmp_path, load):
    with pytest.raises(ConfigError, match="2 ranks"):
        load(make_tiny("llama", tmp_path), rank=Rank(0, 2))


@pytest.mark.parametrize("family", [*FAMILIES, "bert"])
def test_specs_survive_json(family, tmp_path):
    spec = open_checkpoint(make_tiny(family, tmp_path)).spec
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec


def test_description(tmp_path):
    summary = describe_checkpoint(make_tiny("qwen2_moe", tmp_path))
    assert (summary.format, summary.family, summary.layers) == ("safetensors", "qwen2_moe", 3)
    assert summary.kinds == {"f32": 63}
    assert summary.file_bytes == sum(f.stat().st_size for f in tmp_path.rglob("*"))


def test_loading_needs_no_library_of_the_edges():
    """A worker imports this room whatever else is installed; gguf comes with the first file."""
    code = (
        "import sys\n"
        "for name in ('pydantic', 'msgspec', 'llguidance', 'gguf', 'transformers'):\n"
        "    sys.modules[name] = None\n"
        "import tenfold.models.loading, tenfold.models.gguf_file, tenfold.models.hf_folder\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_describing_needs_no_torch(tmp_path):
    make_tiny("llama", tmp_path)
    code = (
        "import sys; from pathlib import Path;"
        "from tenfold.models.checkpoint import describe_checkpoint as d;"
        f"d(Path({str(tmp_path)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_kv_type_that_the_kernels_lack_is_refused(tmp_path, load, monkeypatch):
    monkeypatch.setattr(TorchKernels, "kv_dtypes", ("f32", "f16"))
    path = make_tiny("llama", tmp_path)
    assert load(path, kv_dtype="f16").model.kv_groups[0].dtype == "f16"
    with pytest.raises(ConfigError, match=r"as int8; set device.kv_dtype to one of f32, f16"):
        load(path, kv_dtype="int8")


@pytest.mark.parametrize("family", [*FAMILIES, "bert"])
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("native", [True, False])
def test_facts_from_the_header_are_those_of_the_loaded_model(family, mode, native, tmp_path):
    path = make_tiny(family, tmp_path)
    settings = DeviceSettings(native=native, kernels_mode=mode, threads=1)
    kernels = build_kernels(native=None if native else False, mode=mode, threads=1)
    kv_dtype = "f16" if mode == "fast" else "f32"
    loaded = load_model(path, kernels, allocate, name="tiny", cache_dir=None, kv_dtype=kv_dtype)
    assert sizes_on(path, "tiny", settings).facts == loaded.facts


def test_sizes_come_without_torch(tmp_path):
    path = make_tiny("llama", tmp_path)
    code = (
        "import sys; from pathlib import Path; from tenfold.models.sizes import sizes_on;"
        "from tenfold.core.settings import DeviceSettings;"
        f"print(sizes_on(Path({str(path)!r}), 'x', DeviceSettings()).facts.weight_bytes);"
        "assert 'torch' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) > 0
