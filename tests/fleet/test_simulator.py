"""A simulated cluster: nothing is lost, a seed gives the same run again, and no torch is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tenfold.core.errors import ConfigError
from tenfold.fleet.simulator.config import read_simulation
from tenfold.fleet.simulator.simulate import Result, simulate
from tenfold.fleet.simulator.worker import SimulatedWorker

CLUSTER = {"workers": 2, "memory": "16GiB", "max_running": 6}
TREES = {"kind": "tree-of-thoughts", "clients": 3, "scale": 0.05, "scenario": "requests"}


def run(workload: dict[str, Any] | None = None, **tables: dict[str, Any]) -> Result:
    tree: dict[str, Any] = {
        "run": {"seconds": 5.0} | tables.get("run", {}),
        "cluster": CLUSTER | tables.get("cluster", {}),
        "schedule": {"policy": "dlpm", "quantum": 50.0} | tables.get("schedule", {}),
        "routing": tables.get("routing", {}),
        "weights": tables.get("weights", {}),
        "workload": [workload or TREES],
    }
    return simulate(read_simulation(tree, "test"))


@pytest.mark.parametrize(
    "routing", ["round-robin", "least-loaded", "cache-aware", "preble-like", "d2lpm"]
)
def test_a_drained_run_answers_everything_and_leaves_nothing(
    routing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers: list[SimulatedWorker] = []
    begin = SimulatedWorker.begin
    monkeypatch.setattr(
        SimulatedWorker,
        "begin",
        lambda self, *a, **k: (workers.append(self), begin(self, *a, **k))[1],
    )
    result = run(run={"seconds": 2.0, "drain": True}, routing={"policy": routing})
    assert result.summary.finished == result.summary.requests == len(result.run.calls) > 300
    assert result.run.seconds > 2.0 and max(one.at for one in result.run.calls) > 2.0
    for one in result.run.calls:
        assert one.at <= one.started < one.first <= one.last
        assert 0 <= one.cached_tokens < one.prompt_tokens
    assert {one.worker for one in result.run.calls} == {"worker-0", "worker-1"}
    for worker in workers:
        assert worker.engine.check() == [] and not worker.engine.has_work
        assert worker.instances["model"].batcher.cache.stats().sequences == 0


def test_programs_end_with_their_last_call() -> None:
    result = run(run={"seconds": 1.0, "drain": True})
    ends: dict[str, float] = {}
    for one in result.run.calls:
        ends[one.program] = max(ends.get(one.program, 0.0), one.last)
    assert {one.name: one.ended for one in result.run.programs} == ends


def test_the_same_seed_gives_the_same_result() -> None:
    first, again, other = (run(run={"seed": seed}).to_json() for seed in (1, 1, 2))
    assert first == again != other


def test_fair_policies_are_fairer_and_lpm_hits_more() -> None:
    greedy = {"kind": "plain", "clients": 4, "concurrent": 8, "scenario": "requests", "factor": 6.0,
              "prefix": 300, "prefixes": 3, "prompt": 30, "output": 20}  # fmt: skip
    tables: dict[str, Any] = {"cluster": {"workers": 1, "memory": "15.25GiB"}}
    of = {
        policy: run(greedy, schedule={"policy": policy}, run={"seconds": 12.0}, **tables)
        for policy in ("fcfs", "lpm", "vtc", "dlpm")
    }
    fair = {name: one.summary.jain for name, one in of.items()}
    hits = {name: one.summary.hit_rate for name, one in of.items()}
    assert min(fair["vtc"], fair["dlpm"]) > 0.9 > 0.6 > max(fair["fcfs"], fair["lpm"])
    assert hits["lpm"] > hits["dlpm"] > 1.5 * hits["vtc"]
    for one in of.values():
        for drift in one.drift:
            assert 0 <= drift.share < 1


def test_shares_follow_weights() -> None:
    even = {"kind": "plain", "clients": 2, "concurrent": 12, "prefix": 0, "spread": 0.0}
    result = run(even, weights={"plain-0": 3.0}, cluster={"workers": 1}, run={"seconds": 30.0})
    clients = result.summary.clients
    ratio = clients["plain-0"].contended_service / clients["plain-1"].contended_service
    assert ratio == pytest.approx(3.0, rel=0.1)


def test_a_busy_router_holds_requests_up() -> None:
    plain = {"kind": "plain", "clients": 2, "rate": 20.0, "output": 2}
    free, busy = (run(plain, cluster={"router_ms": ms}).summary for ms in (0.0, 30.0))
    assert free.ttft.p50 < 0.1
    assert busy.ttft.p50 > free.ttft.p50 + 0.03


def test_a_scheduler_may_have_to_learn_what_steps_cost() -> None:
    known, learnt = (run(cluster={"learn": learn}).summary for learn in (False, True))
    assert learnt.finished == pytest.approx(known.finished, rel=0.2)


def test_a_prompt_that_can_never_run_fails_and_its_client_goes_on() -> None:
    long = {"kind": "plain", "clients": 1, "prefix": 4000, "spread": 0.0}
    result = run(long, cluster={"context": 1000}, run={"seconds": 2.5})
    assert result.summary.failed == result.summary.requests > 1
    assert {one.error for one in result.run.calls} == {"context_length_exceeded"}


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"cluster": {"memory": "10GiB"}}, "weights"),
        ({"cluster": {"workers": 0}}, "0 workers"),
        ({"run": {"warm_up": 5.0}}, "warm-up"),
        ({"cluster": {"device": "a1000"}}, "a100-80g"),
        ({"routing": {"policy": "random"}}, "least-loaded"),
        ({"schedule": {"policy": "edf"}}, "dlpm"),
    ],
)
def test_what_cannot_be_simulated_is_refused(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError if "weights" not in said else Exception, match=said):
        run(**tables)


def test_no_torch_in_a_simulation(tmp_path: Path) -> None:
    config = tmp_path / "sim.toml"
    config.write_text("[run]\nseconds = 1\n[[workload]]\nkind = 'chat'\n")
    script = (
        "import sys\n"
        "from tenfold.cli.main import app\n"
        f"app(['simulate', {str(config)!r}, '--json'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"simulated": true' in done.stdout
