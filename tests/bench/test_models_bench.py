"""The comparison of ways to share memory: curves, claims, what is kept, and a tiny run of all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.bench.estimate import Estimate
from tenfold.bench.models import simulated
from tenfold.bench.models.alone import Alone, budgets, representative
from tenfold.bench.models.command import Files, compare_models
from tenfold.bench.models.curves import Rival, best, sustained, trace_of_load
from tenfold.bench.models.fleet import FLEET, TINY_FLEET, sources
from tenfold.bench.models.modes import BASELINES, COMPETING, FASTER, MODES, chosen
from tenfold.bench.models.point import Target, score
from tenfold.bench.models.report import claims, curve_rows, half_load, sweep_rows
from tenfold.bench.models.run import Plan
from tenfold.bench.models.store import Store
from tenfold.core.errors import ConfigError
from tenfold.core.messages import ModelStats
from tenfold.core.settings import ResidencySettings
from tenfold.fleet.simulator.settings import ModelSettings
from tenfold.fleet.workers import InlineWorker
from tenfold.fleet.workloads.bursty import Bursty
from tenfold.fleet.workloads.outcome import Outcome, Run
from tenfold.fleet.workloads.trace import Asked
from tenfold.models.tiny import FAMILIES


# --- curves -------------------------------------------------------------------------------------
def test_a_curve_crosses_a_level_between_two_loads() -> None:
    curve = {1.0: 1.0, 2.0: 0.9, 4.0: 0.5}
    assert sustained(curve, 0.9) == 2.0
    assert sustained(curve, 0.95) == pytest.approx(1.5)
    assert sustained(curve, 0.7) == pytest.approx(3.0)
    assert sustained(curve, 0.4) == 4.0
    assert sustained({1.0: 0.3}, 0.5) == 0.0


def test_what_comes_back_above_a_level_later_does_not_count() -> None:
    assert sustained({1.0: 1.0, 2.0: 0.5, 3.0: 1.0}, 0.99) < 2.0


@given(st.dictionaries(st.integers(1, 20), st.floats(0, 1), min_size=1, max_size=8),
       st.floats(0.05, 0.99))  # fmt: skip
def test_a_higher_level_is_never_sustained_longer(curve: dict[int, float], level: float) -> None:
    loads = {float(load): share for load, share in curve.items()}
    assert 0.0 <= sustained(loads, level) <= sustained(loads, level / 2) <= max(loads)


def test_lengths_that_stand_for_a_trace_have_its_quantiles() -> None:
    rows = [Asked(float(n), "m", "c", (7 * n) % 1000 + 1, 5) for n in range(1000)]
    chosen = representative(rows, 50)
    assert sorted(row.prompt for row in chosen) == [20 * n + 11 for n in range(50)]
    assert [row.at for row in chosen] == sorted(row.at for row in chosen)
    assert representative(rows[:3], 50) == rows[:3]


@pytest.mark.parametrize(
    ("ours", "met"),
    [([99.0, 99.1, 98.9], True), ([90.0, 90.1, 89.9], False), ([80.0, 120.0], None)],
)
def test_overhead_is_judged_where_its_interval_does_not_hold_the_limit(
    ours: list[float], met: bool | None
) -> None:
    [claim] = claims({"overhead": {"elastic": ours, "static": [100.0] * len(ours)}})
    assert claim.met is met


def test_estimates_are_of_seeds_and_rivals_are_ranked() -> None:
    assert Estimate.of([2.0]) == (2.0, 0.0)
    assert Estimate.of([1.0, 2.0, 3.0]).half == pytest.approx(4.30 / 3**0.5)
    assert Estimate.of([0.0, 1.0] * 15).half == pytest.approx(2.045 * 0.5085 / 30**0.5, rel=2e-3)
    quick = Rival("quick", [{1.0: 1.0, 2.0: 0.4}, {1.0: 1.0, 2.0: 0.6}])
    slow = Rival("slow", [{1.0: 0.8, 2.0: 0.1}, {1.0: 0.8, 2.0: 0.1}])
    assert best([slow, quick], 0.5) is quick and best([], 0.5) is None
    assert quick.falls_below(0.7) and not quick.falls_below(0.5)
    assert quick.at(2.0) == Estimate.of([0.4, 0.6]) and quick.at(3.0) is None


@pytest.mark.parametrize("load", [1.0, 2.0, 5.0])
def test_a_point_has_its_load_and_enough_requests(load: float) -> None:
    base = Bursty(models=4, rate=2.0, burst=20.0).rows(0, 1200.0)
    rows = trace_of_load(base, load, 60.0, 300, seed=1)
    seconds = max(60.0, 300 / load)
    assert len(rows) == pytest.approx(load * seconds, rel=0.1) and len(rows) >= 270
    assert rows[-1].at < seconds + 1 and {row.model for row in rows} <= {r.model for r in base}


# --- scores and budgets -------------------------------------------------------------------------
def outcome(model: str, ttft: float, last: float = 2.0, **fields: Any) -> Outcome:
    first = -1.0 if ttft < 0 else ttft
    values = {"first": first, "last": last, "output_tokens": 3, "finished": True, "model": model}
    return Outcome("r", "c", "p", 0.0, 5, **{**values, **fields})


def test_what_is_late_lost_or_refused_is_missed() -> None:
    run = Run(10.0, [
        outcome("a", 0.5), outcome("a", 1.5),
        outcome("a", -1.0, finished=False), outcome("a", 0.5, error="overloaded", finished=False),
        outcome("a", 0.9, last=9.0), outcome("b", 3.0),
    ])  # fmt: skip
    targets = {"a": Target(1.0, 1.0), "b": Target(4.0, 1.0)}
    point = score(run, targets, {"a": ModelStats("a", "ready", wakes=3, preemptions=2)})
    one = point.models["a"]
    assert (one.asked, one.met, one.both, one.failed, one.unanswered) == (5, 2, 1, 1, 1)
    assert (one.wakes, one.preemptions, point.models["b"].wakes) == (3, 2, 0)
    assert point.asked == 6 and point.met == 3 and point.attainment == 0.5
    assert point.output_rate == pytest.approx(1.8)
    assert json.loads(json.dumps(point.to_json()))["attainment"] == 0.5


def test_budgets_follow_from_weights_and_the_longest_requests() -> None:
    alone = {name: Alone(0.1, 0.02, 300, 2, 7, 40) for name in "ab"}
    rows = [Asked(0.0, "a", "c", 60, 40)] * 100
    found = budgets(alone, rows, 10)
    assert found["A"] == 600 + 0.25 * 2 * 100 * 10 * 2 + 7
    assert found["B"] == 200 + 7
    assert alone["a"].target == Target(0.5, 0.1)
    assert Alone.from_json(json.loads(json.dumps(alone["a"].to_json()))) == alone["a"]


# --- who competes -------------------------------------------------------------------------------
def test_the_fleet_has_both_real_models_twice_and_other_families() -> None:
    assert len(FLEET) == 8
    kinds = [one.source for one in FLEET]
    assert kinds.count("smollm2-135m") == kinds.count("gemma3-270m") == 2
    made = {kind.partition(":")[2] for kind in kinds if ":" in kind}
    assert len(made) == 4 and made <= set(FAMILIES)


def test_made_models_are_written_once(tmp_path: Path) -> None:
    found = sources(TINY_FLEET, tmp_path, small=True)
    stamps = [Path(one.path, "model.safetensors").stat().st_mtime_ns for one in found.values()]
    again = sources(TINY_FLEET, tmp_path, small=True)
    assert stamps == [
        Path(one.path, "model.safetensors").stat().st_mtime_ns for one in again.values()
    ]
    assert len({one.path for one in found.values()}) == len(TINY_FLEET)


def test_all_modes_wait_as_much_shorter_as_the_trace_is_faster() -> None:
    plain = ResidencySettings()
    for name in {*COMPETING["A"], *COMPETING["B"]}:
        settings = MODES[name].residency()
        assert settings.idle_seconds == plain.idle_seconds / FASTER
        assert settings.keep_alive == plain.keep_alive / FASTER
    assert MODES["elastic"].deadlines(margin=2.0).margin == 2.0
    assert not set(BASELINES["B"]) & {"static", "quota"}
    with pytest.raises(ConfigError, match="no mode is named 'magic'"):
        chosen(["magic"])


# --- the report ---------------------------------------------------------------------------------
def points(curves: dict[str, dict[float, float]]) -> dict[str, Any]:
    return {
        f"{mode}|{load:g}|{seed}": {"fits": True, "attainment": share}
        for mode, curve in curves.items()
        for load, share in curve.items()
        for seed in range(2)
    }


def test_claims_are_read_off_the_curves() -> None:
    parts = {"A": points({
        "elastic": {1.0: 1.0, 2.0: 1.0, 3.0: 0.95, 4.0: 0.5},
        "static": {1.0: 1.0, 2.0: 0.8, 4.0: 0.2}, "quota": {1.0: 1.0, 2.0: 0.9, 4.0: 0.1},
    })}  # fmt: skip
    assert half_load(parts, "A") == 3.0
    half, near = claims(parts)
    assert half.met and "95.0%" in half.found and "at 3 requests/s" in half.what
    assert near.met and "against quota" in near.what
    _, rows = curve_rows(parts, "A")
    assert [row[0] for row in rows] == ["elastic", "static", "quota"]


def test_the_half_is_of_all_seeds_together() -> None:
    """One seed's trace may be kinder than the other's; both count."""
    parts = {"A": points({"elastic": {1.0: 1.0, 2.0: 0.9}, "static": {1.0: 1.0, 2.0: 0.2}})}
    parts["A"]["static|2|1"]["attainment"] = 0.6
    assert half_load(parts, "A") == pytest.approx(1.83, abs=0.01)
    parts["A"]["static|2|1"]["attainment"] = 0.9
    assert half_load(parts, "A") == 0.0


def test_a_ratio_that_is_too_small_is_said_to_be() -> None:
    parts = {"B": points({"elastic": {1.0: 1.0, 2.0: 0.9}, "swap": {1.0: 1.0, 2.0: 0.8}})}
    [near] = claims(parts)  # nobody falls to a half
    assert near.met is False and "2 x" in near.least
    above = {"B": points({"elastic": {1.0: 1.0, 2.0: 1.0}, "swap": {1.0: 0.9, 2.0: 0.3}})}
    [near] = claims(above)
    assert near.met is True and "at least 2.00" in near.found and "low enough" in near.found


def test_what_does_not_fit_is_shown_as_that() -> None:
    parts = {"B": points({"elastic": {1.0: 1.0}}) | {"static|1|0": {"fits": False, "why": "no"}}}
    _, rows = curve_rows(parts, "B")
    assert rows[1][:2] == ["static", "does not fit"] and claims(parts) == []


def test_waking_overhead_bursts_and_devices_have_their_claims() -> None:
    parts: dict[str, Any] = {
        "wake": {"smol-a": {"beyond_p50": 0.1, "beyond_worst": 0.2, "weights": 92 << 20},
                 "gemma-a": {"beyond_p50": 0.9, "beyond_worst": 1.0, "weights": 9}},
        "overhead": {"elastic": [97.5, 99.0], "static": [100.0, 100.0]},
        "simulated": {"elastic|0": {"needed": 12, "attainment": {}},
                      "quota|0": {"needed": 20, "attainment": {}},
                      "swap|0": {"needed": None, "attainment": {}}},
    }  # fmt: skip
    wake, other, overhead, devices = claims(parts)
    assert wake.met is True and other.met is None and overhead.met is None
    assert "1.7%" in overhead.found or "1.8%" in overhead.found
    assert devices.met is False and "12.0" in devices.found


def test_sweeps_are_by_value() -> None:
    parts = {"margin": {f"{v:g}|2|{seed}": {"attainment": v / 4} for v in (2.0, 0.5, 1.0)
                        for seed in range(2)}}  # fmt: skip
    assert {value: at.mean for value, at in sweep_rows(parts, "margin").items()} == {
        0.5: 0.125, 1.0: 0.25, 2.0: 0.5,
    }  # fmt: skip


# --- what is kept -------------------------------------------------------------------------------
def test_results_are_gone_on_with_and_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    Store(path, {"seeds": 3}).add("A", "x", {"attainment": 1.0})
    assert Store(path, {"seeds": 3}).part("A") == {"x": {"attainment": 1.0}}
    with pytest.raises(ConfigError, match="another seeds"):
        Store(path, {"seeds": 4})
    assert Store(path, {"seeds": 4}, fresh=True).part("A") == {}
    assert json.loads(path.read_text())["machine"]["cores"] >= 1


def test_plans_that_name_what_is_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="no cell is named 'C'"):
        Plan(cells=["C"]).check()
    with pytest.raises(ConfigError, match="loads must ascend"):
        Plan(loads=[2.0, 1.0]).check()


# --- all of it, tiny ----------------------------------------------------------------------------
@pytest.mark.slow
def test_a_tiny_comparison_runs_and_goes_on(tmp_path: Path) -> None:
    plan = Plan(
        cells=["targets", "A", "B", "wake", "overhead", "margin"],
        modes=["elastic", "static"], seeds=1, loads=[20.0], seconds=1.0, requests=20, rounds=2,
    )  # fmt: skip
    timed: list[str] = []
    files = Files(tmp_path)
    body = compare_models(
        plan, files, tiny=True, threads=1, before=timed.append, make_worker=InlineWorker
    )
    parts = body["parts"]
    assert len(parts["alone"]) == len(TINY_FLEET) and parts["budgets"]["bytes"]["B"] > 0
    assert parts["A"]["elastic|20|0"]["asked"] >= 19 and parts["A"]["elastic|20|0"]["met"] > 0
    assert parts["B"]["static|20|0"]["fits"] is False
    assert parts["B"]["elastic|20|0"]["fits"] is True
    assert sum(one["wakes"] for one in parts["B"]["elastic|20|0"]["models"].values()) > 0
    assert set(parts["wake"]) == {one.name for one in TINY_FLEET}
    assert all(rate > 0 for rate in parts["overhead"]["static"]) and len(parts["margin"]) == 5
    assert any("A: elastic" in line for line in timed)
    for name in ("models.json", "models.md", "models.png", "models-sweeps.png"):
        assert (tmp_path / name).stat().st_size > 0
    timed.clear()
    compare_models(plan, files, tiny=True, threads=1, before=timed.append, make_worker=InlineWorker)
    assert timed == []


# --- simulated ----------------------------------------------------------------------------------
def test_58_models_have_the_published_sizes() -> None:
    fleet = simulated.fleet_58()
    sizes = [one.parameters / 1e9 for one in fleet for _ in range(one.count)]
    assert len(sizes) == 58
    assert [sum(low <= size < high for size in sizes) for low, high in
            ((1, 3.5), (3.5, 8.5), (8.5, 30.5), (30.5, 71))] == [43, 8, 3, 4]  # fmt: skip
    assert {one.parts for one in fleet if one.parameters > 60e9} == {4, 8}
    assert simulated.target(1.2e9) == pytest.approx(0.2)
    assert simulated.target(70e9) == pytest.approx(0.65)


@given(st.integers(1, 70))
def test_the_fewest_devices_are_found(needed: int) -> None:
    tried: list[int] = []

    def attains(count: int) -> float:
        tried.append(count)
        return 1.0 if count >= needed else 0.5

    found = simulated.search(attains, simulated.COUNTS)
    fits = [count for count in simulated.COUNTS if count >= needed]
    assert found["needed"] == (fits[0] if fits else None)
    assert len(tried) <= len(simulated.COUNTS).bit_length()
    assert set(found["attainment"]) == {str(count) for count in tried}


def test_a_simulated_comparison_of_a_few_models(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [ModelSettings(**simulated.shape("llama3.2-1b")._asdict(), name="m", count=3, ttft=0.3)]
    monkeypatch.setattr(simulated, "fleet_58", lambda: few)
    monkeypatch.setattr(simulated, "COUNTS", (1, 2))
    monkeypatch.setattr(simulated, "SECONDS", 10.0)
    monkeypatch.setattr(
        simulated, "simulation", lambda *a, **k: _small(simulation(*a, **k)),
    )  # fmt: skip
    said: list[str] = []
    found = dict(simulated.measure_devices(1, {"swap|0"}, said.append))
    assert set(found) == {"elastic|0", "quota|0"}
    assert found["elastic|0"]["needed"] == 1 and found["elastic|0"]["attainment"]["1"] > 0.99
    swept = dict(simulated.measure_thresholds(1, set(), said.append))
    assert len(swept) == len(simulated.THRESHOLDS) and len(said) >= len(swept)


simulation = simulated.simulation


def _small(made: Any) -> Any:
    made.run = replace(made.run, seconds=10.0, warm_up=0.0)
    made.workloads = [replace(made.workloads[0], rate=5.0, burst=4.0)]
    return made
