from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.costs.step import FixedStepModel, StepCosts, StepShape
from tenfold.scheduling.chunking import chunk_budget, chunk_seconds, step_target


@given(st.floats(0, 10), st.floats(0.001, 10), st.floats(0, 0.9))
def test_the_step_meets_its_target_or_prefill_has_just_its_share(
    decode: float, target: float, share: float
) -> None:
    seconds = chunk_seconds(decode, target=target, share=share)
    assert seconds >= target
    assert seconds - decode >= share * seconds - 1e-9
    assert seconds == target or seconds - decode == pytest.approx(share * seconds, abs=1e-9)


@given(
    rows=st.integers(0, 64),
    context=st.integers(0, 10_000),
    target=st.floats(0.01, 1),
    most=st.integers(1, 4096),
    block=st.sampled_from([1, 16, 32]),
)
def test_the_budget_is_whole_blocks_and_at_least_one(
    rows: int, context: int, target: float, most: int, block: int
) -> None:
    model = FixedStepModel(StepCosts(1e-3, 1e-3, 2e-3, 1e-6, 1e-7))
    decoding = StepShape(decode_rows=rows, decode_context=rows * context)
    budget = chunk_budget(
        model,
        decoding,
        context,
        target=target,
        share=0.25,
        max_step_tokens=most,
        block_tokens=block,
    )
    assert budget % block == 0 and budget >= block
    if budget > block:
        assert budget + rows <= most
        whole = StepShape(budget, budget * context, rows, rows * context)
        allowed = chunk_seconds(model.predict(decoding), target=target, share=0.25)
        assert model.predict(whole) <= allowed * (1 + 1e-9)


def test_targets() -> None:
    assert step_target([], 0.2) == 0.2
    assert step_target([None, 0.5], 0.2) == 0.2
    assert step_target([0.5, 0.7], 0.2) == 0.5
    assert step_target([0.05, None], 0.2) == 0.05
    with pytest.raises(ValueError, match="share"):
        chunk_seconds(1.0, target=1.0, share=1.0)
