"""Percentiles equal numpy's; failures are counted, never averaged in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.bench.load import LoadGenerator, Record
from tenfold.bench.plot import gaps_plot, latency_plot
from tenfold.bench.report import percentile, summarise, write_json
from tenfold.bench.workload import Shape, synthesise
from tenfold.client.scripted import ScriptedClient
from tenfold.core.errors import Overloaded


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_percentiles_equal_numpys(values: list[float], share: float) -> None:
    ranked = sorted(values)
    assert percentile(ranked, share) == pytest.approx(np.quantile(ranked, share), abs=1e-6)


def test_ttft_counts_from_when_the_request_was_due() -> None:
    record = Record("c", due=1.0, sent=1.5, token_times=[2.0, 2.25, 2.5], done=2.5, output_tokens=3)
    summary = summarise([record, Record("c", due=0.0, done=0.1, error="rate_limit_exceeded: full")])
    assert summary.ttft.p50 == 1.0
    assert summary.itl.p50 == 0.25
    assert (summary.requests, summary.failed) == (2, 1)
    assert summary.output_rate == pytest.approx(3 / 2.5)
    assert summary.errors == {"rate_limit_exceeded: full": 1}


def test_the_generator_records_answers_and_refusals() -> None:
    def answers(request: object) -> str | Overloaded:
        return Overloaded("full") if len(client.asked) % 3 == 0 else "one\ntwo\n"

    client = ScriptedClient(answers)
    asks = synthesise(Shape(requests=9, arrivals="closed", prompt=4))
    records = asyncio.run(LoadGenerator(client, "m").run(asks, concurrency=2))
    assert sum(bool(r.error) for r in records) == 3
    assert all(r.output_tokens == 2 and len(r.token_times) == 2 for r in records if not r.error)


def test_results_carry_the_machine_and_plots_are_pictures(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", "x", {"value": 1})
    body = json.loads((tmp_path / "r.json").read_text())
    assert body["machine"]["cpu"] and body["machine"]["command"] and body["value"] == 1
    record = Record("c", 0.0, token_times=[0.1, 0.2, 1.3], done=1.3, output_tokens=3)
    latency_plot([record], tmp_path / "a.png", "a")
    gaps_plot([([1.0, 2.0], [0.1, 0.2])], 0.2, tmp_path / "c.png", "c")
    for name in "ac":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
