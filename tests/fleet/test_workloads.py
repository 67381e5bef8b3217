"""Workloads have the published shapes, wait for what they must, and are drawn from their seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.core.errors import ConfigError
from tenfold.fleet.workloads.base import Call, Workload, answered, asked, failed
from tenfold.fleet.workloads.chat import Chat
from tenfold.fleet.workloads.documents import LongContextQA
from tenfold.fleet.workloads.judge import Judge
from tenfold.fleet.workloads.plain import Plain
from tenfold.fleet.workloads.prompt import Prompt, Words
from tenfold.fleet.workloads.registry import workloads
from tenfold.fleet.workloads.trees import TreeOfThoughts
from tenfold.fleet.workloads.vtc import VTC, Suite, arrivals
from tenfold.kvcache.hashing import block_hashes


def played(workload: Workload, seconds: float, seed: int = 0) -> Iterator[tuple[Call, float]]:
    """Every call with the time of its answer, each answered a second after it was asked."""
    waiting = list(workload.calls(seed, seconds))
    while waiting:
        waiting.sort(key=lambda call: call.at)
        call = waiting.pop(0)
        asked(call)
        yield call, call.at + 1
        waiting += answered(call, [7] * call.output, call.at + 1)


# --- prompts ------------------------------------------------------------------------------------
@given(
    st.lists(st.lists(st.integers(0, 50), max_size=20), min_size=1, max_size=5),
    st.integers(1, 8),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_a_prompt_of_parts_is_their_tokens_in_a_row(
    parts: list[list[int]], block: int, start: int, stop: int
) -> None:
    prompt = Prompt(np.array(parts[0], np.int32))
    for part in parts[1:]:
        prompt.hashes(block)
        prompt = prompt.plus(part)
    whole = [token for part in parts for token in part]
    assert np.asarray(prompt).tolist() == whole and len(prompt) == len(whole)
    assert prompt[start:stop].tolist() == whole[start:stop]
    assert prompt.hashes(block) == block_hashes(whole, block)
    assert prompt.hashes(block + 1) == block_hashes(whole, block + 1)


def test_words_depend_on_the_seed_and_do_not_repeat() -> None:
    first, again, other = (Words(seed) for seed in (1, 1, 2))
    drawn = [first.tokens(n).tolist() for n in (3, 400, 2000, 200)]
    assert drawn == [again.tokens(n).tolist() for n in (3, 400, 2000, 200)]
    assert drawn[0] != other.tokens(3).tolist()
    assert drawn[1][:100] != drawn[3][:100]


# --- what all kinds share -----------------------------------------------------------------------
@pytest.mark.parametrize("kind", sorted({*workloads.names()} - {"trace"}))
def test_the_same_seed_draws_the_same(kind: str) -> None:
    def drawn(seed: int) -> list[tuple[object, ...]]:
        made = workloads.get(kind)(scale=0.05)
        rows = []
        for call, _ in played(made, 20.0, seed):
            rows.append((call.client, call.at, call.output, call.prompt[:].tolist()))
            if len(rows) == 60:
                break
        return rows

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(drawn(1)) > 5


def test_open_loops_keep_their_rate_and_misbehaving_clients_ask_more() -> None:
    made = Plain(clients=3, rate=2.0, scenario="requests", factor=5.0)
    counts = Counter(call.client for call in made.calls(0, 500.0))
    assert counts["plain-0"] == pytest.approx(5000, rel=0.1)
    assert counts["plain-1"] == pytest.approx(1000, rel=0.15)
    times = [call.at for call in made.calls(0, 500.0)]
    assert times == sorted(times)


def test_an_even_pace_has_even_gaps() -> None:
    times = [call.at for call in Plain(clients=1, rate=4.0, cv=0.0).calls(3, 10.0)]
    assert np.diff(times) == pytest.approx(0.25)


def test_a_closed_loop_keeps_so_many_programs_under_way_until_the_end() -> None:
    answers = list(played(Plain(clients=2, concurrent=3), 10.0))
    for moment in (0.5, 4.5, 9.5):
        under_way = Counter(c.client for c, done in answers if c.at <= moment < done)
        assert under_way == {"plain-0": 3, "plain-1": 3}
    assert max(call.at for call, _ in answers) < 10.0


def test_after_a_failure_the_client_goes_on() -> None:
    (call,) = Plain(clients=1).calls(0, 10.0)
    (following,) = failed(call, 4.0)
    assert following.at == 5.0 and following.program is not call.program
    assert failed(following, 11.0) == []


@pytest.mark.parametrize("wrong", [{"clients": 0}, {"rate": -1.0}, {"scale": 0.0}, {"output": 0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        list(Plain(**wrong).calls(0, 1.0))  # type: ignore[arg-type]


# --- tree of thoughts ---------------------------------------------------------------------------
def trees(**settings: object) -> dict[str, list[Call]]:
    """The first program of each client."""
    made = TreeOfThoughts(clients=2, scale=0.1, **settings)  # type: ignore[arg-type]
    programs: defaultdict[str, list[Call]] = defaultdict(list)
    for call, _ in played(made, 1.0):
        programs[call.program.name].append(call)
    return programs


def test_trees_have_340_and_30_requests() -> None:
    programs = trees(scenario="requests")
    assert {name: len(calls) for name, calls in programs.items()} == {
        "tree-0/1": 340,
        "tree-1/1": 30,
    }
    levels = Counter(call.at for call in programs["tree-0/1"])
    assert list(levels.values()) == [4, 16, 64, 256]


def test_a_thought_carries_its_parent_s_answer_and_waited_for_it() -> None:
    first, *others = trees()["tree-1/1"]
    child = next(c for c in others if c.at > first.at and c.prompt[: len(first.prompt)].tolist()
                 == first.prompt[:].tolist())  # fmt: skip
    end = len(first.prompt) + first.output
    assert child.prompt[len(first.prompt) : end].tolist() == [7] * first.output
    siblings = [c.prompt[:].tolist() for c in others if c.at == first.at]
    assert first.prompt[:].tolist() not in siblings


def test_questions_are_ten_times_as_long_where_prefixes_misbehave() -> None:
    made = TreeOfThoughts(clients=2, concurrent=200, scenario="prefix")
    lengths = defaultdict(list)
    for call in made.calls(0, 1.0):
        lengths[call.client].append(len(call.prompt) - 8)
    assert np.mean(lengths["tree-1"]) == pytest.approx(546, rel=0.05)
    assert np.mean(lengths["tree-0"]) == pytest.approx(5460, rel=0.05)


# --- the other kinds ----------------------------------------------------------------------------
def test_judgements_merge_when_all_dimensions_are_there() -> None:
    programs: defaultdict[str, list[Call]] = defaultdict(list)
    for call, _ in played(Judge(clients=2, scenario="requests"), 1.0):
        programs[call.program.name].append(call)
    assert [len(calls) for calls in programs.values()] == [17, 3]
    *solved, merge = programs["judge-1/1"]
    assert {call.at for call in solved} == {0.0} and merge.at == 1.0
    assert len(merge.prompt) == len(solved[0].prompt) - 32 + 2 * 256


def test_misbehaving_judges_put_600_tokens_before_the_article() -> None:
    made = Judge(clients=2, concurrent=100, scenario="prefix")
    lengths = defaultdict(list)
    for call in made.calls(0, 1.0):
        lengths[call.client].append(len(call.prompt) - 32)
    assert np.mean(lengths["judge-1"]) == pytest.approx(2701, rel=0.05)
    assert np.mean(lengths["judge-0"]) == pytest.approx(3301, rel=0.05)


def test_documents_are_asked_about_several_times() -> None:
    made = LongContextQA(clients=2, rate=10.0, open=2, questions=5, scenario="prefix")
    starts: Counter[bytes] = Counter()
    lengths = defaultdict(list)
    for call in made.calls(0, 60.0):
        starts[call.prompt[:64].tobytes()] += 1
        lengths[call.client].append(len(call.prompt))
    assert Counter(starts.values())[5] >= len(starts) - 4
    assert np.mean(lengths["qa-1"]) == pytest.approx(21_489, rel=0.1)
    assert np.mean(lengths["qa-0"]) == pytest.approx(2 * 21_449, rel=0.1)


def test_turns_of_a_conversation_carry_all_before_them() -> None:
    programs: defaultdict[str, list[Call]] = defaultdict(list)
    for call, _ in played(Chat(clients=2, rate=0.5, turns=3.0), 100.0):
        programs[call.program.name].append(call)
    assert np.mean([len(calls) for calls in programs.values()]) == pytest.approx(3.0, rel=0.3)
    for calls in programs.values():
        for before, after in pairwise(calls):
            assert after.at > before.at + 1
            assert after.prompt[: len(before.prompt)].tolist() == before.prompt[:].tolist()


def test_a_misbehaving_talker_calms_in_the_middle() -> None:
    made = Chat(clients=2, rate=1.0, scenario="requests", misbehaving=2, factor=6.0, calms=1)
    halves = Counter((call.client, call.at > 200) for call in made.calls(0, 400.0))
    assert halves["chat-1", False] == pytest.approx(1200, rel=0.15)
    assert halves["chat-1", True] == pytest.approx(200, rel=0.3)
    assert halves["chat-0", True] == pytest.approx(1200, rel=0.15)


# --- VTC's suites -------------------------------------------------------------------------------
def test_an_overload_is_even_and_as_long_as_published() -> None:
    calls = list(VTC("overload").calls(0, 1e9))
    counts = Counter(call.client for call in calls)
    assert counts == {"vtc-0": 540, "vtc-1": 1080}
    assert {(len(call.prompt), call.output) for call in calls} == {(256, 256)}
    mine = [call.at for call in calls if call.client == "vtc-0"]
    assert np.diff(mine) == pytest.approx(1 / 1.5)
    # numpy's own generator, seed 42, after the draws of lengths (which take nothing).
    assert mine[0] == pytest.approx(np.random.RandomState(42).rand() / 1.5 + 1 / 1.5)


def test_client_0_is_on_and_off_by_turns() -> None:
    calls = [call.at for call in VTC("on-off-less").calls(0, 1e9) if call.client == "vtc-0"]
    assert calls and all(int(at // 60) % 2 == 0 for at in calls)


def test_short_and_long_and_swapped_lengths() -> None:
    short = {(c.client, len(c.prompt), c.output) for c in VTC("poisson-short-long").calls(0, 1e9)}
    assert short == {("vtc-0", 64, 64), ("vtc-1", 256, 256)}
    swapped = {
        (c.client, len(c.prompt), c.output) for c in VTC("poisson-short-long-2").calls(0, 99)
    }
    assert swapped == {("vtc-0", 512, 32), ("vtc-1", 32, 512)}


def test_a_ramp_and_a_shift_end_at_their_rates() -> None:
    ramp = [a.at for a in arrivals(Suite((0.5, 2), mode="increase")) if a.client == 1]
    assert ramp[0] == pytest.approx(5.0)
    assert np.diff(ramp)[-20:] == pytest.approx(0.5, rel=0.1)
    shift = Counter((a.client, int(a.at // 300)) for a in VTC_SHIFT)
    assert shift[0, 0] == pytest.approx(90, abs=3) and shift[1, 0] == pytest.approx(600, abs=2)
    assert shift[0, 1] == pytest.approx(300, abs=2) and shift[1, 2] == pytest.approx(450, abs=2)


VTC_SHIFT = arrivals(Suite((0.5, 2), 900, mode="shift"))


def test_alike_prompts_are_the_start_of_one_text() -> None:
    calls = list(VTC("overload", alike=True).calls(0, 10.0))
    assert len({call.prompt[:].tobytes() for call in calls}) == 1
    with pytest.raises(ConfigError, match="overload-multi"):
        list(VTC("overlord").calls(0, 10.0))
