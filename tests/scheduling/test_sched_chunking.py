from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.scheduling.chunking import chunk_seconds, step_target


@given(st.floats(0, 10), st.floats(0.001, 10), st.floats(0, 0.9))
def test_the_step_meets_its_target_or_prefill_has_just_its_share(
    decode: float, target: float, share: float
) -> None:
    seconds = chunk_seconds(decode, target=target, share=share)
    assert seconds >= target
    assert seconds - decode >= share * seconds - 1e-9
    assert seconds == target or seconds - decode == pytest.approx(share * seconds, abs=1e-9)


def test_targets() -> None:
    assert step_target([], 0.2) == 0.2
    assert step_target([None, 0.5], 0.2) == 0.2
    assert step_target([0.5, 0.7], 0.2) == 0.5
    assert step_target([0.05, None], 0.2) == 0.05
    with pytest.raises(ValueError, match="share"):
        chunk_seconds(1.0, target=1.0, share=1.0)
