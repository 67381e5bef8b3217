"""Presets say what their sources say, and answer all that a scheduler asks of a step model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.core.errors import ConfigError
from tenfold.costs.calibrated import Measured, Step, fit_costs, save_costs
from tenfold.costs.formula import with_chunk
from tenfold.costs.presets import ModelShape, device_costs, names
from tenfold.costs.step import FixedStepModel, StepCosts, StepModel, StepShape

LLAMA_8B = ModelShape(8.03e9, 16.06e9, 131_072, 32 * 32 * 128)

shapes = st.builds(
    lambda prompt, behind, rows, read: StepShape(
        prompt, prompt * behind, rows, rows * read, rows + bool(prompt)
    ),
    st.integers(0, 4000),
    st.integers(0, 20_000),
    st.integers(0, 128),
    st.integers(1, 20_000),
)


def model(name: str) -> StepModel:
    if name == "linear":
        return FixedStepModel(StepCosts())
    return device_costs(name, LLAMA_8B).steps


ALL = [*names(), "linear"]


@pytest.mark.parametrize("name", ALL)
@given(shape=shapes, steps=st.integers(1, 60))
def test_steps_ahead_are_what_single_steps_cost_to_the_last_bit(
    name: str, shape: StepShape, steps: int
) -> None:
    steps_model = model(name)
    rows = max(1, shape.decode_rows)
    now = StepShape(0, 0, rows, shape.decode_context, rows)
    ahead = steps_model.predict_decodes(now, steps)
    single = []
    for _ in range(steps):
        now.decode_context += rows
        single.append(steps_model.predict(now))
    assert ahead == single


@pytest.mark.parametrize("name", ALL)
@given(shape=shapes, behind=st.integers(0, 20_000), seconds=st.floats(0.001, 2.0))
def test_the_largest_chunk_is_the_largest_that_fits(
    name: str, shape: StepShape, behind: int, seconds: float
) -> None:
    steps = model(name)
    chunk = steps.largest_chunk(seconds, shape, behind, 8192)
    assert 0 <= chunk <= 8192
    if chunk:
        assert steps.predict(with_chunk(shape, chunk, behind)) <= seconds * 1.001
    if chunk < 8192 and not name.startswith("preble"):  # theirs have jumps
        assert steps.predict(with_chunk(shape, chunk + 2, behind)) >= seconds * 0.999


@pytest.mark.parametrize("name", ALL)
@given(shape=shapes)
def test_a_larger_step_costs_no_less(name: str, shape: StepShape) -> None:
    steps = model(name)
    row = StepShape(shape.prefill_tokens, shape.prefill_context, shape.decode_rows + 1,
                    shape.decode_context + 100, shape.sequences + 1)  # fmt: skip
    assert steps.predict(row) >= steps.predict(shape) * (1 - 1e-12)
    assert steps.draft_seconds(100) >= 0


def test_a_roofline_is_bound_by_bandwidth_then_by_arithmetic() -> None:
    a100 = model("a100-80g")
    one = a100.predict(StepShape(decode_rows=1, decode_context=1))
    assert one == pytest.approx(0.002 + 16.06e9 / (0.75 * 2.039e12), rel=1e-3)
    prompt = a100.predict(StepShape(prefill_tokens=4096, sequences=1))
    assert prompt == pytest.approx(
        0.002 + (2 * 8.03e9 * 4096 + 4 * 131_072 * 4096**2 / 2) / (0.55 * 312e12), rel=1e-3
    )
    assert model("h100").predict(StepShape(prefill_tokens=4096, sequences=1)) < prompt / 2.5


@pytest.mark.parametrize(
    ("name", "shape", "milliseconds"),
    [
        ("preble-mistral-7b-a100", StepShape(decode_rows=8, decode_context=900, sequences=8),
         (8.96 + 0.32) / 0.85),
        ("preble-mistral-7b-a100", StepShape(prefill_tokens=512, sequences=1),
         (0.05031337 * 512 + 5.505996896412796 + 0.32) / 0.85),
        ("preble-mistral-7b-a6000", StepShape(prefill_tokens=512, sequences=1),
         (0.10842571 * 512 + 4.209777054806409 + 0.32) / 0.9),
        ("preble-mistral-7b-a6000",
         StepShape(prefill_tokens=512, prefill_context=512 * 3585, sequences=1),
         (0.10842571 * 512 + 4.209777054806409 + 1.86e-4 * 4097 + 0.159
          + 1.13e-3 * 512 + 1.75e-3 * 4097 + 2.19e-6 * 512 * 4097) / 0.9),
        ("preble-llama3-70b-2xh100", StepShape(prefill_tokens=1000, prefill_context=1000 * 1000,
                                               sequences=1),
         18.667307208113755 + 79.8791064 + 2.68531603e-3 * 2000 + 7.44344923e-7 * 2000 * 1000),
    ],
)  # fmt: skip
def test_preble_s_published_coefficients(name: str, shape: StepShape, milliseconds: float) -> None:
    assert 1e3 * model(name).predict(shape) == pytest.approx(milliseconds, rel=1e-6)


# --- measured -----------------------------------------------------------------------------------
def steps_of(costs: StepCosts, noise: list[float]) -> list[Step]:
    truth = FixedStepModel(costs)
    found = []
    for number, factor in enumerate(noise):
        rows = number % 9
        shape = StepShape(
            number * 37 % 200, number * 37 % 200 * (number % 5) * 100, rows,
            rows * (number % 700), rows + 1,
        )  # fmt: skip
        found.append(Step(shape, truth.predict(shape) * factor))
    return found


def test_a_fit_finds_the_costs_and_says_how_wrong_it_is() -> None:
    costs = StepCosts(4e-3, 8e-4, 2e-3, 1e-6, 3e-7)
    noise = [1.0 + 0.1 * (-1) ** (n // 7) for n in range(600)]
    noise[::50] = [9.0] * 12  # stalls, which must not count for much
    found = fit_costs(steps_of(costs, noise))
    truth, fitted = FixedStepModel(costs).predict, Measured(found.costs).predict
    for shape in (
        StepShape(prefill_tokens=150, sequences=1),
        StepShape(decode_rows=6, decode_context=3000, sequences=6),
        StepShape(100, 30_000, 4, 2000, 5),
    ):
        assert fitted(shape) == pytest.approx(truth(shape), rel=0.1)
    assert found.kept_out == 120 and found.steps == 600
    assert found.median_error == pytest.approx(0.1, abs=0.03) and found.mape > found.median_error
    with pytest.raises(ConfigError, match="too few"):
        fit_costs(steps_of(costs, [1.0] * 12))


def test_what_is_kept_out_is_not_learnt_from() -> None:
    """Every fifth step costs twice as much: the fit must not know, and the error must show it."""
    noise = [2.0 if n % 5 == 0 else 1.0 for n in range(500)]
    found = fit_costs(steps_of(StepCosts(), noise))
    shape = StepShape(prefill_tokens=150, sequences=1)
    truth = FixedStepModel(StepCosts()).predict(shape)
    assert Measured(found.costs).predict(shape) == pytest.approx(truth, rel=0.01)
    assert found.median_error == pytest.approx(0.5, abs=0.01)


def test_a_file_of_costs_is_a_device(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    found = fit_costs(steps_of(StepCosts(), [1.0] * 100), model="tiny", machine="here")
    save_costs(found, path)
    read = device_costs(str(path), LLAMA_8B)
    assert read.memory_bytes == 0 and "tiny" in read.about
    shape = StepShape(prefill_tokens=100, sequences=1)
    assert read.steps.predict(shape) == Measured(found.costs).predict(shape)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="no step costs"):
        device_costs(str(path), LLAMA_8B)
    path.write_text("[")
    with pytest.raises(ConfigError, match="cannot be read"):
        device_costs(str(path), LLAMA_8B)
    with pytest.raises(ConfigError, match="neither a file nor one of a10g"):
        device_costs("b200", LLAMA_8B)
