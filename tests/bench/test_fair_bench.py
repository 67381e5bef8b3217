"""The comparison of fair policies: its driver, its scores and its table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tenfold.bench.fair.cells import Cell, Rival, real_cells, simulated_cells
from tenfold.bench.fair.drive import Driver
from tenfold.bench.fair.result import Scores, scores, together
from tenfold.bench.fair.run import COLUMNS, Plan, compare, table
from tenfold.client.base import Client
from tenfold.core.errors import ConfigError, Overloaded
from tenfold.core.types import Usage
from tenfold.fleet.types import Delta, Finished, GenerateEvent, GenerateRequest, TextPrompt
from tenfold.fleet.workloads.outcome import Outcome, ProgramOutcome, Run
from tenfold.fleet.workloads.trees import TreeOfThoughts


class Echo(Client):
    """Answers with as many tokens as were asked for; refuses the client it is told to."""

    def __init__(self, refused: str = "") -> None:
        self.asked: list[GenerateRequest] = []
        self.refused = refused

    async def stream(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        self.asked.append(request)
        await asyncio.sleep(0)
        if request.client == self.refused:
            raise Overloaded("no")
        count = request.sampling.max_tokens or 0
        for token in range(count):
            yield Delta(0, token_ids=[token + 2000])
        assert isinstance(request.prompt, TextPrompt)
        yield Finished(Usage(len(request.prompt.text), count, 5), 0.0)

    async def embed(self, model: str, texts: list[str]) -> list[list[float]]:
        raise AssertionError

    async def models(self) -> list[str]:
        return ["m"]


def small(**changes: object) -> TreeOfThoughts:
    values = {"clients": 2, "question": 8, "output": 3, "spread": 0.0, "levels": 2, "branch": 2}
    return TreeOfThoughts(**(values | changes))  # type: ignore[arg-type]


def test_a_tree_s_calls_wait_for_their_parents_and_carry_their_path() -> None:
    client = Echo()
    run = asyncio.run(Driver(client, "m").drive(small(clients=1).calls(0, 1e-9), 5.0))
    assert len(run.calls) == 6 and len(run.programs) == 1
    assert all(one.finished and one.cached_tokens == 5 for one in run.calls)
    roots, leaves = client.asked[:2], client.asked[2:]
    for leaf in leaves:
        said = leaf.prompt.text
        assert isinstance(said, list)
        assert any(said[: len(root.prompt.text) + 3] == [*root.prompt.text, 2000, 2001, 2002]  # type: ignore[misc]
                   for root in roots)  # fmt: skip
    assert run.programs[0].ended >= max(one.last for one in run.calls) - 1e-3


def test_a_refused_call_is_written_down_and_nobody_waits_for_it() -> None:
    client = Echo(refused="tree-0")
    run = asyncio.run(Driver(client, "m").drive(small().calls(0, 1e-9), 5.0))
    refused = [one for one in run.calls if one.client == "tree-0"]
    assert {one.error for one in refused} == {Overloaded.code}
    assert sum(one.finished for one in run.calls) == 6


def run_of(*calls: Outcome) -> Run:
    ended = [
        ProgramOutcome(one.program, one.client, one.at, one.last) for one in calls if one.finished
    ]
    return Run(100.0, list(calls), ended)


def outcome(client: str, name: str, at: float, last: float, done: bool = True) -> Outcome:
    return Outcome(
        name, client, name, at, 10, started=at, first=at + 1 if done else -1.0, last=last,
        output_tokens=5, finished=done,
    )  # fmt: skip


def test_who_starves_counts_as_much_as_who_is_served() -> None:
    cell = Cell("x", "", (), "bad", seconds=100.0)
    quick = [outcome("good-0", f"a{n}", 20.0 + n, 22.0 + n) for n in range(20)]
    starved = outcome("good-1", "b", 10.0, 0.0, done=False)
    greedy = [outcome("bad-0", f"c{n}", 20.0, 90.0) for n in range(5)]
    found = scores(cell, run_of(*quick, starved, *greedy), 0.5)
    assert found.p50 == pytest.approx((2.0 + 90.0) / 2)
    assert found.ttft == pytest.approx((1.0 + 90.0) / 2)
    assert found.jain < 0.75 and found.drift == 0.5


def test_intervals_are_student_s() -> None:
    runs = [Scores(rate, 1.0, 1.0, 0.5, 1.0, 2.0, 1.0, 0.1, 0) for rate in (9.0, 10.0, 11.0)]
    found = together(runs)
    assert found["rate"]["mean"] == 10.0
    assert found["rate"]["half"] == pytest.approx(4.30 / 3**0.5)
    assert found["drift"]["worst"] == 0.1


def test_names_choose_cells_and_rivals() -> None:
    plan = Plan(False, only=("thoughts, S2",), rivals=("dlpm", "optim"))
    assert [one.name for one in plan.cells()] == ["tree-of-thoughts, S2"]
    assert [one.name for one in plan.competing()] == ["dlpm", "dlpm, optimistic"]
    assert [one.name for one in Plan(False, rivals=("lpm",)).competing()] == ["lpm"]
    with pytest.raises(ConfigError, match=r"no cell is named like chess; there are: .*thoughts"):
        Plan(True, only=("chess",)).cells()
    with pytest.raises(ConfigError, match="no policy is named like edf"):
        Plan(True, rivals=("edf",)).competing()
    assert len({one.name for one in (*real_cells(), *simulated_cells())}) == 9


def test_a_simulated_comparison_shows_what_fairness_is_for() -> None:
    plan = Plan(True, seeds=1, seconds=4.0, only=("judge",), rivals=("robin + lpm", "d2lpm"))
    said: list[str] = []
    [found] = compare(plan, None, said.append)
    assert len(said) == 2 and found["simulated"] and found["workers"] == 8
    lpm, fair = found["rivals"].values()
    assert fair["jain"]["mean"] > lpm["jain"]["mean"]
    assert 0 < fair["drift"]["worst"] < 1
    rows = table(found)
    assert [row[0] for row in rows] == list(found["rivals"]) and len(rows[0]) == len(COLUMNS)
    assert Rival("x", "dlpm").schedule().admission == "reserve"
