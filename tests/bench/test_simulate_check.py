"""Real and simulated runs compared: who is ranked otherwise, and by how much times differ."""

from __future__ import annotations

from tenfold.bench.simulate_check import Check, Measures, compare


def measures(rate: float, p50: float) -> Measures:
    return Measures(rate, 0.9, 0.5, p50, p50, 10)


def test_close_results_are_not_ranked_and_others_must_agree() -> None:
    real = {"a": measures(100, 1.0), "b": measures(102, 1.1), "c": measures(150, 2.0)}
    model = {"a": measures(104, 1.1), "b": measures(100, 1.0), "c": measures(140, 1.8)}
    found = compare(Check(real, model))
    # a and b differ by 2 % in rate: nobody asks which is first. Their medians differ by a tenth.
    assert found.swapped == [("good_p50", "a", "b")]
    assert found.latency_error["c"] == 1.8 / 2.0 - 1
    assert not found.passed


def test_the_same_order_within_15_percent_passes() -> None:
    real = {"a": measures(100, 1.0), "b": measures(120, 1.3)}
    model = {"a": measures(90, 1.1), "b": measures(110, 1.2)}
    assert compare(Check(real, model)).passed
    model["b"] = measures(110, 1.6)
    assert not compare(Check(real, model)).passed


def test_a_real_run_without_answers_is_no_check() -> None:
    found = compare(Check({"a": measures(0, 0.0)}, {"a": measures(1, 1.0)}))
    assert not found.passed
