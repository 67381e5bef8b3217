"""A decode step that takes up the last one's plan is the step that would have been planned anew."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.harness import BLOCK, GLOBAL, Sim, costs
from tenfold.core.messages import Abort
from tenfold.core.types import KVGroup
from tenfold.engine.batcher import Batcher, _shape
from tenfold.engine.sequence import Choice, StepPlan
from tenfold.engine.simulated import CountingPages, SimulatedRunner

SLIDING = KVGroup("sliding", (0,), 1, 16, window=6)


class Watcher(SimulatedRunner):
    """Checks every plan against the sequences it is made of, and counts the taken up ones."""

    taken_up = 0

    def execute(self, plan: StepPlan) -> list[Choice]:
        assert plan.shape == _shape(plan.slices)
        for piece in plan.slices:
            assert piece.start == piece.seq.computed
            if plan.again:
                assert piece.seq.decoding and piece.samples and piece.count == 1
        self.taken_up += plan.again
        return super().execute(plan)


def run(seed: int, pages: int, groups: tuple[KVGroup, ...]) -> tuple[Any, int]:
    """Requests that come, end and are aborted at random times, on too few pages."""
    rng = random.Random(seed)
    sim = Sim(max_running=4)
    watcher = Watcher(sim.clock, costs())
    sim.add(pages=CountingPages(pages), blocks=64, groups=groups, executor=watcher)
    for i in range(14):
        sim.ask(f"r{i}", [rng.randrange(9) for _ in range(rng.randrange(1, 12))], rng.randrange(40))
        for _ in range(rng.randrange(25)):
            sim.engine.step()
        if rng.random() < 0.3:
            sim.engine.handle(Abort(f"r{rng.randrange(i + 1)}"))
    sim.run()
    return (sim.recorders["m"].plans, sim.heard.tokens, sim.heard.finished), watcher.taken_up


@pytest.mark.parametrize("groups", [(GLOBAL,), (GLOBAL, SLIDING)], ids=["global", "sliding"])
@pytest.mark.parametrize("pages", [9, 64])
def test_the_same_steps_as_when_every_step_is_planned(
    groups: tuple[KVGroup, ...], pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [run(seed, pages, groups) for seed in range(6)]
    assert all(taken_up > 20 for _, taken_up in short)
    monkeypatch.setattr(Batcher, "_moved_on", lambda self, plan: False)
    long = [run(seed, pages, groups) for seed in range(6)]
    assert [steps for steps, _ in short] == [steps for steps, _ in long]
    assert all(taken_up == 0 for _, taken_up in long)


def test_a_block_that_cannot_be_had_leads_to_a_plan_that_makes_room() -> None:
    sim = Sim()
    watcher = Watcher(sim.clock, costs())
    batcher = sim.add(pages=CountingPages(2), blocks=8, executor=watcher)
    sim.ask("a", [1] * BLOCK, 14)
    sim.ask("b", [2] * BLOCK, 14)
    sim.run()
    assert batcher.preemptions > 0 and watcher.taken_up > 5
    assert [len(sim.heard.tokens[name]) for name in "ab"] == [14, 14]
