"""Steps taken several at a time change nothing: the same log, to the last bit, as one by one."""

from __future__ import annotations

from typing import Any

import pytest

from tenfold.fleet.simulator.config import read_simulation
from tenfold.fleet.simulator.simulate import simulate
from tenfold.fleet.workloads.outcome import Outcome

TREES = {"kind": "tree-of-thoughts", "clients": 3, "scale": 0.1, "scenario": "requests"}
CHAT = {"kind": "chat", "clients": 5, "rate": 3.0, "pause": 0.2, "scale": 0.5}
PLAIN = {"kind": "plain", "clients": 6, "rate": 2.0, "prefix": 100, "prompt": 20, "output": 90}
SAME = {"kind": "vtc", "suite": "overload", "alike": True, "scale": 0.4, "rate_scale": 8.0}


def log(leaps: bool, workload: dict[str, Any], **settings: Any) -> tuple[list[Any], int]:
    """Everything that became of calls, and how often one gave way."""
    cluster = {"workers": 3, "memory": "17GiB", "max_running": 8, "leaps": leaps, "block_tokens": 4}
    tree = {
        "run": {"seconds": 4.0, "seed": settings.pop("seed", 1)},
        "cluster": cluster | settings.pop("cluster", {}),
        "schedule": {"quantum": 60.0} | settings.pop("schedule", {}),
        "routing": {"quantum": 300.0} | settings.pop("routing", {}),
        "workload": [workload],
    }
    result = simulate(read_simulation(tree, "test"))
    return [_row(one) for one in result.run.calls], result.preemptions


def _row(one: Outcome) -> tuple[Any, ...]:
    tokens = (one.prompt_tokens, one.cached_tokens, one.output_tokens)
    times = (one.at, one.started, one.first, one.last)
    return (one.id, one.client, one.program, one.worker, *tokens, *times, one.finished, one.error)


ROUTING = {"fcfs": "round-robin", "lpm": "cache-aware", "vtc": "least-loaded", "dlpm": "d2lpm"}


@pytest.mark.parametrize("workload", [TREES, CHAT, PLAIN, SAME], ids=lambda w: w["kind"])
@pytest.mark.parametrize("policy", ROUTING)
def test_the_same_log_with_leaps_and_without(workload: dict[str, Any], policy: str) -> None:
    routing = ROUTING[policy]
    settings: dict[str, Any] = {"schedule": {"policy": policy}, "routing": {"policy": routing}}
    rows, _ = log(True, workload, **settings)
    assert rows == log(False, workload, **settings)[0]
    assert len(rows) > 30


CROWD = {"kind": "chat", "clients": 5, "concurrent": 2, "rate": 0.0, "pause": 0.01, "scale": 0.5}
FEW = {"kind": "plain", "clients": 3, "prefix": 20, "prompt": 20, "output": 125}


@pytest.mark.parametrize("workload", [CROWD, FEW], ids=["crowd", "few"])
@pytest.mark.parametrize("admission", ["optimistic", "reserve"])
def test_also_where_memory_is_short(workload: dict[str, Any], admission: str) -> None:
    """Weights take 14.96 GiB and leave 515 tokens: blocks are evicted, and sequences give way."""
    settings: dict[str, Any] = {
        "cluster": {"memory": "15.02GiB", "workers": 1},
        "schedule": {"policy": "dlpm", "admission": admission},
    }
    rows, preemptions = log(True, workload, **settings)
    assert rows == log(False, workload, **settings)[0]
    assert (preemptions > 0) == (admission == "optimistic")
