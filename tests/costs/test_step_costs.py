from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.costs.step import FixedStepModel, StepCosts, StepModel, StepShape

factors = st.floats(0.05, 20)
costs_st = st.builds(
    lambda f: StepCosts(
        *(a * b for a, b in zip(f, (5e-3, 1e-3, 3e-3, 2e-6, 2e-7, 1e-3), strict=True))
    ),
    st.lists(factors, min_size=6, max_size=6),
)
shapes_st = st.builds(
    StepShape,
    prefill_tokens=st.integers(0, 2048),
    prefill_context=st.integers(0, 2048 * 4096),
    decode_rows=st.integers(0, 64),
    decode_context=st.integers(0, 64 * 4096),
    draft_tokens=st.integers(0, 64 * 16),
)


def random_shape(rng: np.random.Generator) -> StepShape:
    rows = int(rng.integers(0, 17))
    chunk = int(rng.integers(0, 512)) * int(rng.integers(0, 2))
    if not rows and not chunk:
        rows = 1
    context = int(rng.integers(0, 2048))
    drafts = rows * int(rng.integers(0, 9)) * int(rng.integers(0, 2))
    attended = (chunk + drafts) * context
    return StepShape(chunk, attended, rows, rows * context, rows + bool(chunk), drafts)


def errors(model: StepModel, truth: FixedStepModel, rng: np.random.Generator) -> list[float]:
    shapes = [random_shape(rng) for _ in range(100)]
    return [abs(model.predict(s) / truth.predict(s) - 1) for s in shapes]


@settings(deadline=None, max_examples=40)
@given(costs_st, st.integers(0, 1000))
def test_finds_any_costs_through_noise_and_outliers(costs: StepCosts, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, model = FixedStepModel(costs), StepModel()
    for i in range(300):
        shape = random_shape(rng)
        noise = 1 + 0.05 * float(np.clip(rng.standard_normal(), -2, 2))
        model.observe(shape, truth.predict(shape) * noise * (15 if i % 20 == 19 else 1))
    assert float(np.median(errors(model, truth, rng))) < 0.1


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(shapes_st, st.floats(1e-6, 100)), max_size=60), shapes_st)
def test_whatever_is_observed_costs_stay_finite_and_not_negative(
    observed: list[tuple[StepShape, float]], asked: StepShape
) -> None:
    model, twin = StepModel(), StepModel()
    for shape, seconds in observed:
        model.observe(shape, seconds)
        twin.observe(shape, seconds)
    assert 0 <= model.predict(asked) < float("inf")
    assert model.costs == twin.costs


@given(costs_st, shapes_st, st.floats(0, 10), st.integers(0, 100_000))
def test_the_largest_chunk_fits_and_one_more_token_does_not(
    costs: StepCosts, shape: StepShape, seconds: float, context: int
) -> None:
    model = FixedStepModel(costs)
    chunk = model.largest_chunk(seconds, shape, context)

    def with_chunk(tokens: int) -> float:
        return model.predict(
            StepShape(
                shape.prefill_tokens + tokens,
                shape.prefill_context + tokens * context,
                shape.decode_rows,
                shape.decode_context,
                draft_tokens=shape.draft_tokens,
            )
        )

    assert chunk == 0 or with_chunk(chunk) <= seconds * (1 + 1e-9)
    assert with_chunk(chunk + 1) >= seconds * (1 - 1e-9)


def test_a_long_run_of_decoding_does_not_forget_prefill() -> None:
    rng = np.random.default_rng(1)
    truth = FixedStepModel(StepCosts(1e-2, 5e-3, 1e-2, 5e-6, 1e-6))
    model = StepModel()
    for _ in range(200):
        shape = random_shape(rng)
        model.observe(shape, truth.predict(shape))
    for i in range(5000):
        shape = StepShape(decode_rows=8, decode_context=8 * (500 + i % 1000))
        model.observe(shape, truth.predict(shape) * (1 + 0.05 * float(rng.standard_normal())))
    prefill = StepShape(prefill_tokens=256, prefill_context=256 * 1000)
    assert model.predict(prefill) == pytest.approx(truth.predict(prefill), rel=0.15)


def test_a_machine_that_slows_down_is_followed() -> None:
    rng = np.random.default_rng(2)
    truth = FixedStepModel()
    slow = FixedStepModel(StepCosts(1.5e-2, 3e-3, 9e-3, 6e-6, 6e-7))
    model = StepModel()
    for _ in range(300):
        shape = random_shape(rng)
        model.observe(shape, truth.predict(shape))
    for _ in range(300):
        shape = random_shape(rng)
        model.observe(shape, slow.predict(shape))
    assert float(np.median(errors(model, slow, rng))) < 0.1


@pytest.mark.parametrize("factor", [100, 3, 0.3, 0.01])
def test_one_odd_step_hardly_moves_the_prediction(factor: float) -> None:
    rng = np.random.default_rng(3)
    truth, model = FixedStepModel(), StepModel()
    for _ in range(200):
        shape = random_shape(rng)
        model.observe(shape, truth.predict(shape) * (1 + 0.03 * float(rng.standard_normal())))
    shape = StepShape(decode_rows=4, decode_context=4000, sequences=4)
    before = model.predict(shape)
    model.observe(shape, before * factor)
    assert model.predict(shape) == pytest.approx(before, rel=0.01)
    assert model.error < 0.2


def test_a_few_steps_are_enough_to_be_in_the_region() -> None:
    truth = FixedStepModel(StepCosts(2e-2, 2e-2, 4e-2, 1e-5, 1e-6))
    model = StepModel()
    for tokens in (16, 64, 64, 32):
        shape = StepShape(prefill_tokens=tokens, sequences=1)
        model.observe(shape, truth.predict(shape))
    shape = StepShape(prefill_tokens=50, sequences=1)
    assert model.predict(shape) == pytest.approx(truth.predict(shape), rel=0.2)


def test_nonsense_is_ignored_or_refused() -> None:
    model = StepModel()
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        model.observe(StepShape(prefill_tokens=8), seconds)
    model.observe(StepShape(), 1.0)
    assert model.costs == StepCosts()
    with pytest.raises(ValueError, match="negative"):
        StepCosts(base=-1)
    with pytest.raises(ValueError, match="negative"):
        StepCosts(draft_token=-1)


def test_a_fixed_model_learns_nothing_and_a_roofline_has_the_right_size() -> None:
    costs = StepCosts.roofline(
        parameters=10**9,
        weight_bytes=2 * 10**9,
        kv_bytes_per_token=10**5,
        flops=1e12,
        bandwidth=1e11,
    )
    model = FixedStepModel(costs)
    model.observe(StepShape(prefill_tokens=8), 5.0)
    assert model.costs is costs
    assert model.predict(StepShape(decode_rows=1)) == pytest.approx(0.02 + 0.002)


def test_free_prefill_is_bounded_by_the_limit() -> None:
    model = FixedStepModel(StepCosts(0, 0, 0, 0, 0))
    assert model.largest_chunk(1.0, StepShape(), 100, limit=512) == 512
