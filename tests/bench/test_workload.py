"""Workloads are drawn from their seed alone, and traces survive a round trip."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest

from tenfold.bench.workload import Shape, load_trace, save_trace, synthesise
from tenfold.core.errors import ConfigError


def _gaps(shape: Shape) -> list[float]:
    times = [0.0, *(ask.at for ask in synthesise(shape))]
    return [b - a for a, b in itertools.pairwise(times)]


def test_the_same_seed_draws_the_same_workload() -> None:
    assert synthesise(Shape(seed=3)) == synthesise(Shape(seed=3))
    assert synthesise(Shape(seed=3)) != synthesise(Shape(seed=4))


@pytest.mark.parametrize("arrivals", ["poisson", "gamma"])
def test_open_loops_keep_their_rate(arrivals: str) -> None:
    gaps = _gaps(Shape(requests=4000, arrivals=arrivals, rate=5.0, cv=2.0, prompt=1))  # type: ignore[arg-type]
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.1)


def test_gamma_arrivals_have_the_asked_burstiness() -> None:
    gaps = _gaps(Shape(requests=8000, arrivals="gamma", rate=5.0, cv=3.0, prompt=1))
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(3.0, rel=0.15)


def test_clients_of_a_group_share_their_prefix_and_nothing_more() -> None:
    asks = synthesise(Shape(requests=8, clients=4, groups=2, shared=50, prompt=20))
    prefixes = [" ".join(ask.prompt.split()[:50]) for ask in asks]
    assert prefixes[0] == prefixes[2] == prefixes[4]
    assert prefixes[0] != prefixes[1]
    assert len({ask.prompt for ask in asks}) == 8


def test_a_trace_survives_and_can_be_replayed_faster(tmp_path: Path) -> None:
    asks = synthesise(Shape(requests=10, clients=3))
    save_trace(asks, tmp_path / "trace.jsonl")
    assert load_trace(tmp_path / "trace.jsonl") == asks
    faster = load_trace(tmp_path / "trace.jsonl", scale=2.0)
    assert [a.at for a in faster] == [a.at / 2 for a in asks]


@pytest.mark.parametrize("line", ["{", '{"at": 1}', '{"at": "x", "prompt": "", "max_tokens": 1}'])
def test_a_bad_trace_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"at": 0, "prompt": "a", "max_tokens": 1}\n' + line + "\n")
    with pytest.raises(ConfigError, match=r"t\.jsonl:2"):
        load_trace(tmp_path / "t.jsonl")


@pytest.mark.parametrize("bad", [{"requests": 0}, {"rate": 0.0}, {"cv": -1.0}, {"concurrency": 0}])
def test_impossible_shapes_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        synthesise(Shape(**bad))  # type: ignore[arg-type]
