"""Generated traces have the published statistics; files, scaling and replay change nothing else."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tenfold.cli.main import app
from tenfold.core.errors import ConfigError
from tenfold.fleet.workloads.bursty import Bursty, popularity
from tenfold.fleet.workloads.statistics import TraceStatistics, describe
from tenfold.fleet.workloads.trace import (
    Asked,
    Replay,
    Speaker,
    about_trace,
    compress,
    load_trace,
    replicate,
    rescale_lengths,
    save_trace,
)

HOURS = 6
SECONDS = HOURS * 3600.0


@pytest.fixture(scope="module", params=[0, 1])
def described(request: pytest.FixtureRequest) -> TraceStatistics:
    return describe(Bursty().rows(request.param, SECONDS), SECONDS)


# --- the published statistics -------------------------------------------------------------------
def test_popularity_has_a_long_tail(described: TraceStatistics) -> None:
    """The authors' stand-in: 20 % of requests for the first of 27 models, 0.07 % for the last."""
    assert 0.15 < described.top < 0.35
    assert described.last < 0.004
    shares = sorted((one.requests for one in described.models.values()), reverse=True)
    assert sum(shares[:6]) > 0.6 * sum(shares)


def test_a_quarter_to_a_half_of_the_models_is_active(described: TraceStatistics) -> None:
    assert 0.23 <= described.active <= 0.50


def test_the_active_set_changes_as_often_as_published(described: TraceStatistics) -> None:
    """54 (Novita) to 766 (Arena-Chat) times an hour."""
    assert 54 <= described.changes <= 766


def test_gaps_vary_more_than_a_poisson_process_s(described: TraceStatistics) -> None:
    known = [one.cv for one in described.models.values() if one.cv]
    assert len(known) > 20 and min(known) > 1


def test_many_models_have_40_to_100_idle_gaps_an_hour(described: TraceStatistics) -> None:
    gaps = [one.idle_gaps for one in described.models.values()]
    assert sum(40 <= one <= 100 for one in gaps) >= len(gaps) / 4
    assert max(gaps) <= 100


def test_most_models_are_idle_most_of_the_time(described: TraceStatistics) -> None:
    """Novita's models are idle more than 70 % of the time."""
    idle = [one.idle for one in described.models.values()]
    assert sum(one > 0.7 for one in idle) > 0.75 * len(idle)


def test_yesterday_s_rates_say_nothing() -> None:
    found = describe(Bursty(day=3600.0).rows(0, 12 * 3600.0), 12 * 3600.0, day=3600.0)
    assert found.days is not None and abs(found.days) < 0.2
    assert describe(Bursty().rows(0, 3600.0), 3600.0).days is None


def test_lengths_have_the_stand_in_s_percentiles(described: TraceStatistics) -> None:
    assert described.prompts == pytest.approx((40, 929), rel=0.1)
    assert described.outputs == pytest.approx((211, 785), rel=0.1)


def test_the_rate_is_kept(described: TraceStatistics) -> None:
    assert described.rate == pytest.approx(2.5, rel=0.1)


def test_members_of_a_group_become_active_together() -> None:
    """Twice as many begin at a time where groups are twice as large, and half as often."""
    begun = {}
    for group in (1.0, 6.0):
        rows = Bursty(group=group, rate=50.0, cv=0.5).rows(3, 3600.0)
        last: dict[str, float] = {}
        starts = []
        for row in rows:
            if row.at - last.get(row.model, -100.0) > 60:
                starts.append(row.at)
            last[row.model] = row.at
        near = sum(after - before < 1 for before, after in pairwise(starts))
        begun[group] = near / len(starts)
    assert begun[6.0] > 0.5 > 0.35 > begun[1.0]


def test_popularity_is_what_its_docstring_says() -> None:
    shares = popularity(27, 1.25)
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(0.247, abs=0.001)
    assert shares[-1] == pytest.approx(0.0013, abs=0.0001)


# --- the seed, and settings ---------------------------------------------------------------------
def test_a_seed_draws_a_trace_and_nothing_else_does() -> None:
    one, again, other = (Bursty(prefixes=2).rows(seed, 600.0) for seed in (4, 4, 5))
    assert one == again != other
    assert [row.at for row in one] == sorted(row.at for row in one)
    assert max(row.at for row in one) < 600


def test_lengths_and_prefixes_are_scaled_and_bounded() -> None:
    plain = describe(Bursty(outputs=0.1, scale=0.5, longest=300).rows(0, 3600.0))
    assert plain.prompts[0] == pytest.approx(20, abs=2) and plain.prompts[1] == 300
    assert plain.outputs[0] == pytest.approx(10.5, abs=1)
    rows = Bursty(prefixes=2, prefix=50, models=3).rows(0, 3600.0)
    assert {row.shared for row in rows} == {50} and len({row.group for row in rows}) == 6
    assert min(row.prompt for row in rows) > 50


@pytest.mark.parametrize(
    "wrong", [{"models": 0}, {"rate": -1.0}, {"active": 1.5}, {"cv": -1.0}, {"group": 0.0}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="workload model"):
        Bursty(**wrong).rows(0, 10.0)  # type: ignore[arg-type]


def test_named_models_are_asked_by_name() -> None:
    rows = Bursty(named=("a", "b", "c"), rate=5.0).rows(0, 1800.0)
    assert {row.model for row in rows} == {"a", "b", "c"}


# --- files --------------------------------------------------------------------------------------
ROWS = st.lists(
    st.builds(
        Asked,
        st.floats(0, 1e6),
        st.text(min_size=1, max_size=5),
        st.text(max_size=5),
        st.integers(1, 9999),
        st.integers(1, 9999),
        st.text(max_size=5),
        st.integers(0, 50),
    ),
    min_size=1,
    max_size=20,
)


@given(ROWS)
def test_a_file_brings_back_what_was_written(tmp_path_factory: pytest.TempPathFactory,
                                             rows: list[Asked]) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("traces") / "t.jsonl"
    assert save_trace(path, rows, {"kind": "x"}) == len(rows)
    assert load_trace(path) == sorted(rows, key=lambda row: row.at)
    assert about_trace(path) == {"kind": "x"}


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"at": 1}', '{"at": -1, "model": "a", "prompt": 1, "output": 1}',
     '{"at": 1, "model": "a", "prompt": 0, "output": 1}', '{"at": "x", "model": "a"}'],
)  # fmt: skip
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"at": 0, "model": "a", "prompt": 3, "output": 2}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"t\.jsonl:2 is not a request"):
        load_trace(path)


def test_a_trace_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the trace"):
        load_trace(tmp_path / "none")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ConfigError, match="holds no requests"):
        load_trace(tmp_path / "empty")
    with pytest.raises(ConfigError, match="path must name a trace"):
        Replay().calls(0, 1.0)


# --- scaling ------------------------------------------------------------------------------------
def test_replicating_keeps_who_is_active_and_compressing_does_not() -> None:
    rows = Bursty().rows(0, 4 * 3600.0)
    whole = describe(rows, 4 * 3600.0)
    double = describe(replicate(rows, 2.0), 4 * 3600.0)
    fast = describe(compress(rows, 4.0), 3600.0)
    assert double.requests == 2 * whole.requests
    assert double.active == pytest.approx(whole.active, rel=0.05)
    assert double.top == whole.top
    assert fast.rate == pytest.approx(4 * whole.rate)
    assert fast.changes > 1.5 * whole.changes


@given(st.floats(0.1, 3.0))
def test_replicas_are_as_many_as_the_factor_says(factor: float) -> None:
    rows = [Asked(float(n), "a", "c", 5, 5) for n in range(2000)]
    found = replicate(rows, factor, seed=1, jitter=0.5)
    assert len(found) == pytest.approx(2000 * factor, rel=0.1)
    counts = Counter(int(row.at * 2) // 2 for row in found)
    assert max(counts.values()) <= int(factor) + 1
    assert found == sorted(found, key=lambda row: row.at)


def test_lengths_are_scaled_to_at_least_one() -> None:
    [row] = rescale_lengths([Asked(1.0, "a", "c", 100, 4, "g", 60)], 0.5, 0.1)
    assert (row.prompt, row.output, row.shared) == (50, 1, 30)
    with pytest.raises(ConfigError, match="prompts"):
        rescale_lengths([row], 0.0, 1.0)


# --- replay -------------------------------------------------------------------------------------
def test_a_replay_has_the_trace_s_models_lengths_and_shared_prefixes(tmp_path: Path) -> None:
    rows = Bursty(models=3, prefixes=2, prefix=32, rate=5.0).rows(0, 300.0)
    path = tmp_path / "t.jsonl"
    save_trace(path, rows)
    made = list(Replay(path=str(path)).calls(0, 200.0))
    again = list(Replay(path=str(path)).calls(0, 200.0))
    kept = [row for row in rows if row.at < 200]
    assert [(c.at, c.model, c.client, len(c.prompt), c.output) for c in made] == [
        (r.at, r.model, r.client, r.prompt, r.output) for r in kept
    ]
    assert [c.prompt[:].tolist() for c in made] == [c.prompt[:].tolist() for c in again]
    heads: dict[str, set[tuple[int, ...]]] = {}
    for call, row in zip(made, kept, strict=True):
        heads.setdefault(row.group, set()).add(tuple(call.prompt[:32].tolist()))
    assert len(heads) > 3 and all(len(found) == 1 for found in heads.values())
    assert len(set.union(*heads.values())) == len(heads)
    tails = [tuple(call.prompt[32:].tolist()) for call in made if len(call.prompt) > 40]
    assert len(set(tails)) == len(tails)


def test_a_replay_is_scaled_shifted_and_sent_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    save_trace(path, [Asked(10.0 * n, "a", "c", 40, 20) for n in range(10)])
    made = list(
        Replay(str(path), load=3.0, speed=2.0, scale=0.5, start=20.0, model="b").calls(0, 99)
    )
    assert len(made) == 24 and {call.model for call in made} == {"b"}
    assert made[0].at == 0.0 and max(call.at for call in made) < 70 / 2 + 1
    assert {(len(call.prompt), call.output) for call in made} == {(20, 10)}


def test_prompts_of_a_longer_shared_part_begin_like_the_shorter() -> None:
    speaker = Speaker(0)
    row = Asked(0.0, "a", "c", 100, 1, "g", 20)
    short = speaker.call(row).prompt
    long = speaker.call(replace(row, shared=60)).prompt
    assert short[:20].tolist() == long[:20].tolist() != long[20:40].tolist()


# --- the command --------------------------------------------------------------------------------
def test_traces_from_the_command_line(tmp_path: Path) -> None:
    trace, scaled = str(tmp_path / "t.jsonl"), str(tmp_path / "s.jsonl")
    runner = CliRunner()
    made = runner.invoke(
        app, ["trace", "make", trace, "--seconds", "900", "--set", "models=5", "--set", "rate=2"]
    )
    assert made.exit_code == 0, made.output
    shown = runner.invoke(app, ["trace", "show", trace, "--json"])
    body = json.loads(shown.output)
    assert body["about"]["set"] == ["models=5", "rate=2"] and len(body["models"]) <= 5
    assert runner.invoke(app, ["trace", "scale", trace, scaled, "--load", "2"]).exit_code == 0
    assert len(load_trace(Path(scaled))) == 2 * body["requests"]
    assert about_trace(Path(scaled))["scaled"]["load"] == 2.0
    table = runner.invoke(app, ["trace", "show", scaled])
    assert "models active at a time" in table.output
    wrong = runner.invoke(app, ["trace", "make", trace, "--set", "modles=5"])
    assert wrong.exit_code != 0 and "did you mean models" in wrong.output
