"""Many models on many simulated devices, from one file: the engine's own residency, deadlines and
placement, with waking that takes the link's time."""

from __future__ import annotations

from typing import Any

import pytest

from tenfold.core.errors import ConfigError
from tenfold.costs.presets import LINK_SHARE, PCIE5
from tenfold.costs.shapes import SHAPES, shape
from tenfold.fleet.simulator.cluster import Cluster
from tenfold.fleet.simulator.config import read_simulation
from tenfold.fleet.simulator.settings import Simulation
from tenfold.fleet.simulator.simulate import Result, held_models, simulate
from tenfold.fleet.simulator.worker import SimulatedWorker
from tenfold.fleet.workloads.trace import Asked, Speaker

SMALL = {"name": "small", "shape": "llama3.2-1b", "count": 4, "ttft": 0.5, "tpot": 0.1}
BIG = {"name": "big", "shape": "llama3.1-8b", "ttft": 1.0, "tpot": 0.1}
BURSTY = {"kind": "bursty", "rate": 6.0, "burst": 20.0, "outputs": 0.2}


def made(
    models: list[dict[str, Any]] | None = None,
    workloads: list[dict[str, Any]] | None = None,
    **tables: dict[str, Any],
) -> Simulation:
    tree: dict[str, Any] = {
        "run": {"seconds": 60.0, "drain": True} | tables.get("run", {}),
        "cluster": {"workers": 2, "device": "h100", "memory": "24GiB"} | tables.get("cluster", {}),
        "residency": {"mode": "elastic"} | tables.get("residency", {}),
        "placement": {"policy": "balanced"} | tables.get("placement", {}),
        "deadlines": tables.get("deadlines", {}),
        "model": models if models is not None else [SMALL, BIG],
        "workload": workloads or [BURSTY],
    }
    return read_simulation(tree, "test")


def asked_once(model: str, at: float) -> Any:
    """A workload of one call at a time."""
    return Rows([Asked(at, model, "c", 60, 10)])


class Rows:
    """A workload of these requests."""

    def __init__(self, rows: list[Asked]) -> None:
        self.rows = rows

    def calls(self, seed: int, seconds: float) -> Any:
        speaker = Speaker(seed)
        return iter([speaker.call(row) for row in self.rows])


def everything_answered(result: Result) -> bool:
    return all(one.finished for one in result.run.calls) and len(result.run.calls) > 0


# --- the file -----------------------------------------------------------------------------------
def test_tables_of_models_are_shapes_and_what_they_say_themselves() -> None:
    simulation = made([SMALL | {"layers": 8}, BIG])
    small, big = simulation.models
    assert (small.parameters, small.heads, small.layers) == (1.236e9, 32, 8)
    assert big.model.kv_token_bytes == 2 * 32 * 8 * 128 * 2
    assert list(simulation.by_name) == ["small-0", "small-1", "small-2", "small-3", "big"]
    assert set(simulation.workloads[0].named) == set(simulation.by_name)  # type: ignore[attr-defined]
    assert simulation.residency.ladder and simulation.placement.policy == "balanced"


@pytest.mark.parametrize(
    ("models", "tables", "said"),
    [
        ([SMALL | {"shapes": "x"}], {}, "did you mean shape"),
        ([SMALL | {"shape": "llama9"}], {}, "no shape is named 'llama9'"),
        ([SMALL, SMALL], {}, "there is a model small-0 already"),
        ([BIG | {"parts": 3}], {}, "at most a part for each of the 2 workers"),
        ([BIG | {"count": 0}], {}, "count is 0"),
        ([BIG], {"residency": {"mood": "x"}}, "did you mean mode"),
        ([BIG], {"placement": {"policy": "best"}}, "policy"),
        ([BIG], {"deadlines": {"margin": 0}}, "greater than 0"),
    ],
)
def test_tables_that_are_wrong_are_refused(
    models: list[dict[str, Any]], tables: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        made(models, **tables)


def test_a_workload_asks_the_model_it_names() -> None:
    result = simulate(made(workloads=[{"kind": "chat", "model": "big", "turns": 3.0}]))
    assert everything_answered(result)
    assert {one.model for one in result.run.calls} == {"big"}
    assert max(int(one.program.rpartition("/")[2]) for one in result.run.calls) > 1
    with pytest.raises(ConfigError, match="no \\[\\[model\\]\\] is named 'bigger'"):
        made(workloads=[{"kind": "chat", "model": "bigger"}])
    with pytest.raises(ConfigError, match="asks for 'a'"):
        simulate(made([], [BURSTY | {"named": ["a"]}], placement={"policy": "replicate"}))


def test_shapes_weigh_what_their_names_say() -> None:
    for name in SHAPES:
        said = name.rpartition("-")[2]
        billions = float(said[:-1]) / (1000 if said.endswith("m") else 1)
        assert shape(name).parameters / 1e9 == pytest.approx(billions, rel=0.35), name
    with pytest.raises(ConfigError, match="no shape"):
        shape("gpt")


# --- running ------------------------------------------------------------------------------------
def test_all_models_are_answered_and_nothing_is_left() -> None:
    simulation = made()
    result = simulate(simulation)
    assert everything_answered(result)
    assert set(result.models) == set(simulation.by_name)
    assert sum(one.asked for one in result.models.values()) == len(result.run.calls)
    assert result.attainment > 0.97 and result.drift == []
    body = result.to_json()
    assert body["attainment"] == result.attainment and set(body["models"]) == set(result.models)


def test_the_same_seed_gives_the_same_result_again() -> None:
    first, again, other = (simulate(made(run={"seed": n})).to_json() for n in (1, 1, 2))
    assert first == again != other


def test_waking_takes_weights_over_the_link() -> None:
    """One device that holds one model at a time: a request for the other waits for its weights."""
    cluster = {"workers": 1, "memory": "20GiB"}
    one = BIG | {"count": 2, "asleep": True}
    simulation = made([one], cluster=cluster, placement={"policy": "static"})
    simulation.workloads = [asked_once("big-0", 1.0), asked_once("big-0", 5.0),
                            asked_once("big-1", 20.0)]  # fmt: skip
    result = simulate(simulation)
    cold, warm, other = (call.first - call.at for call in result.run.calls)
    link = 2 * shape("llama3.1-8b").parameters / (LINK_SHARE * PCIE5)
    assert warm < 0.05 and cold == pytest.approx(warm + link, abs=0.01)
    assert other == pytest.approx(warm + link, abs=0.01)
    told = result.models
    assert told["big-0"].wakes == 1 and told["big-0"].sleeps == 2 and told["big-1"].wakes == 1
    simulation.cluster.link = 1e9
    slow = simulate(simulation).run.calls[0]
    assert slow.first - slow.at == pytest.approx(warm + 16.06, abs=0.02)


def test_leaps_change_nothing_that_is_seen() -> None:
    """Counts, homes and times, to a step's length: policies look at the clock between steps."""
    tables = {"cluster": {"memory": "22GiB"}, "run": {"seconds": 40.0}}
    with_leaps = simulate(made(**tables))
    without = simulate(made(cluster={"leaps": False, "memory": "22GiB"}, run={"seconds": 40.0}))
    assert with_leaps.attainment == pytest.approx(without.attainment, abs=0.01)
    for mine, theirs in zip(with_leaps.run.calls, without.run.calls, strict=True):
        assert (mine.model, mine.output_tokens) == (theirs.model, theirs.output_tokens)
        assert mine.first == pytest.approx(theirs.first, abs=0.25)


@pytest.mark.parametrize("mode", ["swap", "ttl", "cold"])
def test_baselines_answer_what_elastic_answers(mode: str) -> None:
    tight: dict[str, Any] = {"workers": 1, "memory": "19GiB"}
    result = simulate(made(cluster=tight, residency={"mode": mode}))
    assert everything_answered(result)
    assert sum(one.wakes for one in result.models.values()) > 0


def test_modes_without_sleep_refuse_more_than_fits() -> None:
    tight: dict[str, Any] = {"workers": 1, "memory": "24GiB"}
    for mode in ("static", "quota"):
        with pytest.raises(ConfigError, match=r"does not fit|weights"):
            simulate(made(cluster=tight, residency={"mode": mode}))
    assert everything_answered(simulate(made(cluster=tight)))


def test_replicated_models_are_spread_by_the_router() -> None:
    result = simulate(made([SMALL], placement={"policy": "replicate"}))
    assert everything_answered(result)
    assert {one.worker for one in result.run.calls} == {"worker-0", "worker-1"}


def test_a_model_in_parts_has_a_token_when_its_last_part_has() -> None:
    """Half the weights to read for each part, so a token comes in less time than alone."""

    def tpot(parts: int) -> float:
        simulation = made([BIG | {"parts": parts}], [{"kind": "plain", "model": "big", "rate": 0.1,
                                                      "clients": 1, "output": 40}])  # fmt: skip
        result = simulate(simulation)
        assert everything_answered(result)
        assert len(result.models["big"].homes) == parts
        assert all(one.output_tokens > 1 for one in result.run.calls)
        return result.models["big"].tpot.p50

    alone, both = tpot(1), tpot(2)
    assert 0.5 * alone < both < 0.75 * alone
    with pytest.raises(ConfigError, match=r"2 parts and placement\.policy is replicate"):
        simulate(made([BIG | {"parts": 2}], placement={"policy": "replicate"}))


def test_a_part_is_a_share_of_the_whole() -> None:
    whole, part = (held_models(made([BIG | {"parts": n}]))["big"] for n in (1, 2))
    assert part.shape.weight_bytes == whole.shape.weight_bytes / 2
    assert part.wake == whole.wake / 2


def test_models_that_press_on_each_other_move_apart() -> None:
    """Three models share a device by weight; two of them get all requests, and part."""
    heavy = {"kind": "plain", "rate": 3.0, "prompt": 400, "output": 50, "clients": 2}
    models = [BIG | {"name": "idle"}, BIG | {"name": "busy", "count": 2}]
    simulation = made(
        models,
        [heavy | {"model": "busy-0", "name": "x"}, heavy | {"model": "busy-1", "name": "y"}],
        cluster={"memory": "50GiB"},
        run={"seconds": 30.0},
        placement={"period": 2.0},
    )
    result = simulate(simulation)
    assert everything_answered(result)
    assert result.models["busy-0"].homes != result.models["busy-1"].homes
    assert result.moves <= 3


def test_what_waits_for_a_sleeper_goes_on_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models share a device that holds one of them, and take turns. When the other device is
    left, one of them goes there with all that waits for it, and nobody waits any more."""
    sent: list[tuple[str, str, int]] = []
    send_on = Cluster._send_on

    def watched(self: Cluster, model: str, source: SimulatedWorker, now: float) -> None:
        held = [live for live in self._live.values() if live.call.model == model]
        waiting = [live for live in held if live.outcome.started < 0]
        send_on(self, model, source, now)
        assert all(live.worker is not source for live in waiting)
        sent.append((model, source.name, len(waiting)))

    monkeypatch.setattr(Cluster, "_send_on", watched)
    names = ("a", "b", "c")

    def run(until: dict[str, float]) -> Result:
        simulation = made(
            [BIG | {"name": name} for name in names],
            placement={"period": 2.0},
            residency={"idle_seconds": 3.0, "evict": "always"},
            run={"seconds": 30.0},
        )
        rows = [
            Asked(at / 20, name, "c", 200, 30)
            for at in range(600)
            for name, end in until.items()
            if at / 20 < end
        ]
        simulation.workloads = [Rows(rows)]
        return simulate(simulation)

    begun = run(dict.fromkeys(names, 0.5)).models
    homes = [begun[name].homes for name in names]
    alone = next(name for name in names if homes.count(begun[name].homes) == 1)
    sent.clear()
    result = run({name: 8.0 if name == alone else 30.0 for name in names})
    assert everything_answered(result)
    busy = [result.models[name].homes for name in names if name != alone]
    assert busy[0] != busy[1]
    assert any(count for _, _, count in sent)
    calm = [one.first - one.at for one in result.run.calls if one.at > 20]
    assert max(calm) < 0.5


def test_memory_that_moves_serves_more_than_memory_that_does_not() -> None:
    """Bursts of one model at a time: elastic gives each of them what the others do not use."""
    tables: dict[str, Any] = {"cluster": {"workers": 1, "memory": "9.8GiB", "prefix_cache": False},
                              "placement": {"policy": "static"},
                              "run": {"seconds": 10.0}}  # fmt: skip
    load = {"kind": "bursty", "rate": 30.0, "burst": 5.0, "group": 1.0, "active": 0.25}
    of = {
        mode: simulate(made([SMALL], [load], residency={"mode": mode}, **tables)).attainment
        for mode in ("elastic", "static")
    }
    assert of["elastic"] > of["static"]
