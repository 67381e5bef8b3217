"""Cases, the numbers that come of token times, results that can be gone on with, and targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fake_peers import SIZES, tiny_file
from tenfold.bench.sidebyside.cases import GROUPS, QUICK, Draws, Sizes, build_cases, rates
from tenfold.bench.sidebyside.results import Results, advantage, medians
from tenfold.bench.sidebyside.targets import closeness, rows, verdict, work_of
from tenfold.core.errors import ConfigError


def test_rates_of_streams_that_overlap_in_part() -> None:
    found = rates([[1.0, 2.0, 3.0], [2.0, 3.0, 4.5]], prompt_tokens=100)
    assert found["prefill"] == 50.0
    assert found["decode"] == pytest.approx(3 / 2.5)
    assert found["output"] == pytest.approx(6 / 4.5)
    assert found["ttft_p50"] == 1.5
    assert found["itl_p50"] == 1.0
    assert found["itl_p99"] == pytest.approx(1.0 + 0.97 * 0.5)


def test_one_token_has_no_decode_rate() -> None:
    assert rates([[0.5]], 10) == {
        "prefill": 20.0, "output": 2.0, "ttft_p50": 0.5, "ttft_p99": 0.5
    }  # fmt: skip


def test_cases_come_in_one_order_and_fit_the_capacity() -> None:
    names = [case.name for case in build_cases(Sizes())]
    assert names == [
        "decode", "prefill", "streams-4", "streams-16", "streams-32", "streams-64", "chat", "busy",
        "memory", "first",
    ]  # fmt: skip
    assert [c.name for c in build_cases(SIZES, ("chat", "decode"))] == ["decode", "chat"]
    for sizes in (Sizes(), QUICK, SIZES):
        assert all(c.streams * c.length <= sizes.capacity for c in build_cases(sizes, GROUPS))
    with pytest.raises(ConfigError, match="unknown cases dance; choose from decode"):
        build_cases(SIZES, ("dance",))


def test_draws_are_the_same_for_all_peers_and_new_in_every_round() -> None:
    assert Draws(0, "decode", 1).rows(2, 8) == Draws(0, "decode", 1).rows(2, 8)
    seen = {tuple(Draws(s, c, r).row(8)) for s in (0, 1) for c in ("a", "b") for r in (-1, 0, 1)}
    assert len(seen) == 12


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=7))
def test_medians_and_ratios_within_rounds(values: list[float]) -> None:
    """A machine that changes its speed between rounds changes no ratio."""
    rounds = [{"a": {"rate": 3 * v}, "b": {"rate": 2 * v}} for v in values]
    assert advantage(rounds, "a", "b", "rate", more=True) == pytest.approx(1.5)
    assert advantage(rounds, "a", "b", "rate", more=False) == pytest.approx(1 / 1.5)
    assert medians(rounds)["a"]["rate"] == pytest.approx(1.5 * medians(rounds)["b"]["rate"])


def test_a_peer_that_failed_in_a_round_counts_where_it_has_numbers() -> None:
    rounds = [{"a": {"x": 1.0}, "b": {"x": 2.0}}, {"a": {"x": 9.0}}, {"b": {"x": 4.0, "y": 1.0}}]
    assert medians(rounds) == {"a": {"x": 5.0}, "b": {"x": 3.0, "y": 1.0}}
    assert advantage(rounds, "a", "b", "x", more=True) == 0.5
    assert advantage(rounds, "a", "c", "x", more=True) == 0.0


def test_results_are_whole_at_any_time_and_gone_on_with(tmp_path: Path) -> None:
    path, key = tmp_path / "deep" / "peers.json", {"model": "m", "rounds": 2}
    results = Results(path, key)
    assert not results.done("decode", ["a"])
    results.record({"name": "decode"}, ["a", "b"], [{"a": {"x": 1.0}}], {})
    results.record({"name": "chat"}, ["a"], [{}], {"a": "fell over"})
    again = Results(path, key)
    assert again.body == json.loads(path.read_text())
    assert again.done("decode", ["a"]) and again.done("decode", ["b", "a"])
    assert not again.done("decode", ["a", "c"]), "a new peer needs rounds of its own"
    assert not again.done("chat", ["a"]), "what failed is tried again"
    assert [p.name for p in path.parent.iterdir()] == ["peers.json"]
    with pytest.raises(ConfigError, match=r"of a run with another rounds: give --fresh"):
        Results(path, key | {"rounds": 3})
    assert Results(path, key | {"rounds": 3}, fresh=True).body["cases"] == {}


def test_the_work_of_a_token_is_read_from_the_file(tmp_path: Path) -> None:
    work = work_of(tiny_file(tmp_path / "tiny.gguf"))
    assert work == {"layers": 16 + 32, "head": 40, "bytes": 4 * (40 + 16 + 32 + 4)}
    (tmp_path / "no.gguf").write_text("words")
    with pytest.raises(ConfigError, match=r"no\.gguf is no GGUF file"):
        work_of(tmp_path / "no.gguf")


def body_of(cases: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A results file's body of one round; cases: name to (streams, {peer: metrics})."""
    return {
        "cases": {
            name: {
                "case": {"kind": "run", "streams": streams, "prompt": 4, "output": 2},
                "median": found, "rounds": [found], "errors": {},
            }
            for name, (streams, found) in cases.items()
        },
        **more,
    }  # fmt: skip


def test_targets_are_the_issues() -> None:
    found = {"tenfold-exact": {"decode": 100.0}, "llama.cpp": {"decode": 99.0},
             "llama.cpp-q4_0": {"decode": 101.0}, "vllm": {"decode": 500.0}}  # fmt: skip
    body = body_of({"decode": (1, found)})
    row = next(row for row in rows(body) if row.metric == "decode")
    assert verdict(body, row, "tenfold-exact", "llama.cpp") is True
    assert verdict(body, row, "tenfold-exact", "llama.cpp-q4_0") is False
    assert verdict(body, row, "tenfold-exact", "vllm") is None, "no target was set"
    assert verdict(body, row, "tenfold-exact", "transformers") is None


def test_less_is_better_for_seconds() -> None:
    found = {"tenfold-exact": {"seconds": 3.0}, "vllm": {"seconds": 10.0}}
    body = body_of({"first": (1, found)})
    row = next(row for row in rows(body) if row.metric == "seconds")
    assert verdict(body, row, "tenfold-exact", "vllm") is True
    found["tenfold-exact"]["seconds"] = 3.01
    assert verdict(body, row, "tenfold-exact", "vllm") is False


def test_closeness_counts_bytes_and_products() -> None:
    rate = {"decode": 50.0, "prefill": 80.0, "output": 10.0}
    one = {"tenfold-exact": rate, "tenfold-fast": rate}
    body = body_of(
        {"decode": (1, one), "prefill": (1, one), "streams-8": (8, one)},
        work={"bytes": 1e8, "layers": 1e9, "head": 1e8},
        limits=[{"read_gb_s": 10.0, "f32_gflop_s": 160.0, "int8_gop_s": 320.0},
                {"read_gb_s": 8.0, "f32_gflop_s": 170.0, "int8_gop_s": 1.0}, {"error": "x"}],
    )  # fmt: skip
    decode, prefill, crowd = closeness(body, "tenfold-exact")
    assert (decode.reached, decode.limit) == (pytest.approx(5.0), 10.0)
    assert (prefill.reached, prefill.limit) == (pytest.approx(160.0), 170.0)
    assert crowd.reached == pytest.approx(10 * (2 * 3 + 0.2))
    assert closeness(body, "tenfold-fast")[1].limit == 320.0
