"""Recorded steps give what the same steps give when every operation is called by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from engine.test_exact import Real
from models.tiny import make_tiny
from tenfold.engine import tapes
from tenfold.engine.runner import TorchRunner
from tenfold.models import moe

pytest.importorskip("tenfold._native", reason="the extension is not built")


def runner_of(real: Real) -> TorchRunner:
    runner = real.recorder.inner.inner  # type: ignore[attr-defined]
    assert isinstance(runner, TorchRunner)
    return runner


def answers(path: Path, recorded: bool, **settings: object) -> dict[str, list[int]]:
    real = Real(path, **settings)
    runner = runner_of(real)
    if not recorded:
        runner.tapes = None
    for index, length in enumerate((5, 90, 33, 17, 61)):
        real.ask(str(index), [(7 * index + i) % 60 + 1 for i in range(length)], 9 + 7 * index)
    real.run()
    if recorded:
        assert runner.tapes is not None and len(runner.tapes.shapes) > 3
    real.engine.close()
    return real.tokens


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3", "qwen2_moe", "mixtral"])
def test_the_same_tokens_with_and_without(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tapes, "FIRST_BLOCKS", 2)  # tables grow, and steps are recorded anew
    monkeypatch.setattr(tapes, "MOST_TAPES", 4)
    path = make_tiny(family, tmp_path)
    assert answers(path, True) == answers(path, False)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "mixtral"])
def test_a_mixture_is_recorded_and_says_what_it_says_expert_by_expert(
    tmp_path: Path, family: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny(family, tmp_path)
    recorded = answers(path, True, kernels_mode=mode)
    assert recorded == answers(path, False, kernels_mode=mode)
    monkeypatch.setattr(moe.Mixture, "_native", lambda self, x, kernels: _one_by_one(self, x))
    assert recorded == answers(path, False, kernels_mode=mode)


def _one_by_one(mixture: moe.Mixture, x: Tensor) -> Tensor:
    mixture._kernels, mixture._run = None, mixture._run_experts
    return mixture(x)


def test_a_bad_token_fails_its_step_and_the_next_one_works(tmp_path: Path) -> None:
    real = Real(make_tiny("llama", tmp_path))
    runner = runner_of(real)
    real.ask("a", [1, 2, 3], 8)
    for _ in range(4):
        real.engine.step()
    sequence = real.instance.batcher.sequences["a"]
    sequence.tokens._data[sequence.tokens.length - 1] = 10**6
    while real.engine.step():
        pass
    assert [failure.request_id for failure in real.failed] == ["a"]
    real.failed.clear()
    real.ask("b", [1, 2, 3], 8)
    real.run()
    assert len(real.tokens["b"]) == 8 and runner.tapes is not None
