from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tenfold.scheduling.turns import Turns

steps_st = st.lists(
    st.tuples(st.sets(st.sampled_from("abcd")), st.floats(0, 5), st.sets(st.sampled_from("abcd"))),
    max_size=150,
)


@given(steps_st)
def test_models_that_keep_wanting_steps_stay_within_a_step_of_each_other(
    steps: list[tuple[set[str], float, set[str]]],
) -> None:
    """Over any stretch in which two models both want and can take every turn."""
    turns = Turns()
    longest = 0.0
    since: dict[tuple[str, str], Counter[str]] = {}
    for wanting, seconds, blocked in steps:
        order = turns.order(sorted(wanting))
        assert sorted(order) == sorted(wanting)
        for pair in [(x, y) for x in "abcd" for y in "abcd" if x < y]:
            if not set(pair) <= wanting - blocked:
                since[pair] = Counter()
        ran = next((name for name in order if name not in blocked), None)
        if ran is None:
            continue
        turns.spent(ran, seconds)
        longest = max(longest, seconds)
        for pair, used in since.items():
            if ran in pair:
                used[ran] += seconds  # type: ignore[assignment]
            assert abs(used[pair[0]] - used[pair[1]]) <= 2 * longest + 1e-6


@given(st.integers(2, 6), st.integers(1, 40))
def test_steps_that_take_no_time_still_go_round(models: int, rounds: int) -> None:
    turns = Turns()
    names = [str(i) for i in range(models)]
    served: Counter[str] = Counter()
    for _ in range(models * rounds):
        name = turns.order(names)[0]
        served[name] += 1
        turns.spent(name, 0.0)
    assert set(served.values()) == {rounds}


def test_idling_saves_nothing_up() -> None:
    turns = Turns()
    for _ in range(100):
        turns.spent(turns.order(["busy"])[0], 1.0)
    served = []
    for _ in range(10):
        served.append(turns.order(["busy", "back"])[0])
        turns.spent(served[-1], 1.0)
    assert 4 <= served.count("back") <= 6


def test_being_unable_to_run_saves_nothing_up() -> None:
    turns = Turns()
    for _ in range(100):
        assert set(turns.order(["busy", "stuck"])) == {"busy", "stuck"}
        turns.spent("busy", 1.0)
    served = []
    for _ in range(10):
        served.append(turns.order(["busy", "stuck"])[0])
        turns.spent(served[-1], 1.0)
    assert 4 <= served.count("stuck") <= 6


def test_a_forgotten_model_starts_level() -> None:
    turns = Turns()
    turns.spent(turns.order(["a"])[0], 50.0)
    turns.forget("a")
    turns.forget("never seen")
    assert turns.order(["a", "b"]) == ["a", "b"]
