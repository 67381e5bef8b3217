"""The table of qualities, and files written anew in other precisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from typer.testing import CliRunner

from models.tiny import make_tiny
from models.tiny_gguf import make_tiny_gguf
from tenfold.bench.cli import app
from tenfold.bench.quality import (
    AS_IT_IS,
    COLUMNS,
    all_met,
    changes,
    measure_quality,
    table_rows,
)
from tenfold.bench.requantise import PRECISIONS, requantise
from tenfold.core.errors import ConfigError
from tenfold.models.checkpoint import open_checkpoint


def part(ratio: float) -> dict[str, float]:
    return {
        "perplexity": 20.0 * ratio,
        "ratio": ratio,
        "error": 0.001,
        "divergence": 0.0005,
        "agreement": 0.99,
    }


def answer(*runs: tuple[str, float | None]) -> dict[str, Any]:
    """What a process says; a run without a ratio was refused."""
    listed = [
        {"mode": "fast", "kv": kv, "refused": "no fast mode"}
        if ratio is None
        else {
            "mode": "exact",
            "kv": kv,
            "refused": None,
            "parts": {name: part(ratio) for name in ("all", "prefill", "decode")},
            "met": abs(ratio - 1) <= 0.005,
        }
        for kv, ratio in runs
    ]
    return {"limit": 0.005, "runs": listed}


def test_a_table_says_what_was_met_and_what_this_build_lacks() -> None:
    found = {
        "weights": {AS_IT_IS: answer(("f32", 1.0), ("int8", 1.01)), "q4_0": answer(("f16", None))}
    }
    rows = table_rows(found)
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows[0][:3] == ("as it is", "exact", "f32") and rows[0][-1] == "met"
    assert rows[1][3:6] == ("20.20", "+1.00%±0.10%", "+1.00%±0.10%")
    assert rows[1][-2:] == ("99.0%", "missed")
    assert rows[2][:3] == ("q4_0", "fast", "f16") and rows[2][-1] == "no fast mode"
    assert not all_met(found)
    assert all_met({"weights": {"q4_0": answer(("f16", None), ("f32", 0.996))}})
    assert changes(found)["as it is, exact, KV int8"] == (pytest.approx(0.01), 0.001)
    assert len(changes(found)) == 2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_in_another_precision(precision: str, tmp_path: Path) -> None:
    source, target = tmp_path / "a.gguf", tmp_path / "b.gguf"
    _, exact = make_tiny_gguf("llama", source, kind_of=lambda name: Kind.Q8_0)
    requantise(source, target, precision)
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(target)
    names = [name for name in before.fields if not name.startswith("GGUF.")]
    assert names == [name for name in after.fields if not name.startswith("GGUF.")]
    for name in names:
        assert before.fields[name].contents() == after.fields[name].contents()
        assert before.fields[name].types == after.fields[name].types
    for tensor in after.tensors:
        value = exact[tensor.name]
        wanted = Kind[precision.upper()] if value.ndim > 1 else Kind.F32
        assert tensor.tensor_type == wanted
        got = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(value.shape)
        raw = gguf.quants.quantize(value, wanted)
        assert np.array_equal(got, gguf.quants.dequantize(raw, wanted).reshape(value.shape))
    checkpoint = open_checkpoint(target)
    assert checkpoint.spec == open_checkpoint(source).spec


def test_precisions_that_cannot_be_made(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    make_tiny_gguf("llama", source, hidden_size=48)
    for precision, why in (("q4_k", "cannot be made; choose from f32"), ("q4_0", "hold 48 values")):
        with pytest.raises(ConfigError, match=why):
            requantise(source, tmp_path / "b.gguf", precision)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    model, out = make_tiny("llama", tmp_path / "model"), tmp_path / "out"
    words = ["quality", str(model), "--modes", "exact", "--kv", "f32", "--tokens", "80"]
    done = CliRunner().invoke(app, [*words, "--threads", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    written = json.loads((out / "quality.json").read_text())
    assert written["weights"][AS_IT_IS]["runs"][0]["met"] and written["limit"] == 0.005
    assert (out / "quality.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match=r"could not be measured.*careless"):
        measure_quality(model, ["careless"], ["f32"], [])
