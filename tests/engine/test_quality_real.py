"""Every precision of weights and every type of keys and values, on real models and a real text.

Slow: each case feeds some 700 tokens to two models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import gguf
import pytest

from tenfold.bench.requantise import requantise
from tenfold.client.llm import LLM
from tenfold.core.types import KVDtype, SamplingParams
from tenfold.engine.forced import ForcedModel
from tenfold.engine.quality import (
    MODES,
    Plan,
    compare,
    fixed_text,
    run_json,
    split_lead,
)
from tenfold.kernels.kv_rows import KV_DTYPES
from tenfold.kernels.table import Mode
from tenfold.text.tokenizer import load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PLAN = Plan(sequences=4, context=32, steps=24)
TOKENS = 600
WEIGHTS = ("gemma3", "q4_0", "q4_1", "q5_0", "q8_0", "f16", "bf16", "f32")
"""Gemma's file holds Q4_K, Q5_0, Q6_K and Q8_0; the others are SmolLM2's, rewritten."""


class Measured:
    """One file as the base, and what any mode and type make of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lead, tokens = split_lead(load_tokenizer(path), fixed_text())
        self.tokens = tokens[:TOKENS]
        self.base = ForcedModel(path)

    def run(self, path: Path, mode: Mode = "exact", kv: KVDtype = "f32") -> dict[str, object]:
        with ForcedModel(path, mode=mode, kv=kv) as model:
            return run_json(compare(self.base, model, self.tokens, self.lead, PLAN))


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("precisions")

    def find(weights: str) -> Path:
        if weights == "gemma3":
            path: Path = request.getfixturevalue("gemma3_path")
            return path
        path = folder / f"{weights}.gguf"
        if not path.exists():
            requantise(request.getfixturevalue("smollm2_path"), path, weights)
        return path

    return find


@pytest.fixture(scope="module", params=WEIGHTS)
def measured(request: pytest.FixtureRequest, files: Callable[[str], Path]) -> Iterator[Measured]:
    found = Measured(files(request.param))
    with ExitStack() as stack:
        stack.enter_context(found.base)
        yield found


@pytest.mark.parametrize("kv", KV_DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_perplexity_stays_within_half_a_percent(
    measured: Measured, mode: Mode, kv: KVDtype
) -> None:
    """Of exact mode, the types alone: what the weights are makes no difference to them there."""
    if mode == "exact" and measured.path.stem not in ("q4_1", "gemma3"):
        pytest.skip("exact mode is measured on two files")
    found = measured.run(measured.path, mode, kv)
    whole = found["parts"]["all"]  # type: ignore[index]
    assert found["met"], found
    assert whole["agreement"] > 0.9
    if (mode, kv) == ("exact", "f32"):
        assert whole["ratio"] == 1.0 and whole["divergence"] == 0.0


def test_one_damaged_matrix_of_thirty_layers_is_found(
    files: Callable[[str], Path], tmp_path: Path
) -> None:
    """The measure can fail: the block scales of one matrix, half too large."""
    whole, hurt = files("q8_0"), tmp_path / "hurt.gguf"
    hurt.write_bytes(whole.read_bytes())
    reader = gguf.GGUFReader(hurt, "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.0.ffn_down.weight")
    scales = tensor.data.reshape(-1, 34)[:, :2].view("float16")
    scales *= 1.5
    reader.data.flush()
    measured = Measured(whole)
    with measured.base:
        found = measured.run(hurt)
    assert not found["met"], found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kv", KV_DTYPES)
def test_smollm2_knows_a_capital_in_every_mode(
    smollm2_path: Path, mode: Mode, kv: KVDtype, request: pytest.FixtureRequest
) -> None:
    if (mode, kv) == ("fast", "int8"):
        both = "int8 keys and values on top of int8 activations tip an answer that hangs on 0.08"
        request.applymarker(pytest.mark.xfail(reason=both, strict=True))
    sampling = SamplingParams(max_tokens=48, temperature=0.0)
    source = f"m={smollm2_path}"
    with LLM(source, memory_bytes=1 << 30, kernels_mode=mode, kv_dtype=kv) as llm:
        (answer,) = llm.chat(
            [{"role": "user", "content": "What is the capital of France?"}], sampling
        )
    assert "Paris" in answer.outputs[0].text
