"""A simulated device makes every decision of a real engine's log: a replay, plan by plan.

The log (``record_log``) is of a real run on a real clock. Replayed, requests come at the same steps
and each step takes as long as it did; the scheduler learns its costs from that, and memory is
counted pages. Every plan must be the logged one: who, from where, how many tokens.
"""

from __future__ import annotations

import json
from typing import Any

from engine.record_log import LOG
from tenfold.core.clock import VirtualClock
from tenfold.core.messages import Generate
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import EngineRequest, KVGroup, ModelFacts, SamplingParams
from tenfold.costs.step import StepModel
from tenfold.engine.engine import Engine
from tenfold.engine.sequence import Choice, Sequence, StepPlan
from tenfold.engine.simulated import SimulatedRunner
from tenfold.engine.simulated_device import SimulatedDevice, SimulatedModel

Plan = list[tuple[str, int, int]]


class Replayed(SimulatedRunner):
    """Steps take as long as they did, and say what was said."""

    def __init__(self, clock: VirtualClock, seconds: list[float], said: dict[str, Any]) -> None:
        super().__init__(clock, StepModel(), self._said)
        self.seconds = seconds
        self.said = said
        self.plans: list[Plan] = []

    def _said(self, seq: Sequence, ahead: int) -> int:
        token: int = self.said[seq.request.id][seq.generated + ahead]
        return token

    def execute(self, plan: StepPlan) -> list[Choice]:
        self.clock.advance(self.seconds[len(self.plans)])
        self.plans.append([(p.seq.request.id, p.start, p.count) for p in plan.slices])
        return [self._choose(piece) for piece in plan.slices if piece.samples]


def replay(lines: list[dict[str, Any]]) -> tuple[list[Plan], int]:
    """The plans of a simulated run under the log's circumstances, and how often one gave way."""
    setup, said = lines[0], lines[-1]["tokens"]
    steps = [line for line in lines if "slices" in line]
    asked = [line for line in lines if "prompt" in line]
    settings = DeviceSettings.of(**setup["settings"])
    clock = VirtualClock()
    device = SimulatedDevice(settings)
    engine = Engine(device, clock, lambda event: None)
    facts = ModelFacts(**setup["facts"])
    facts.weight_bytes = setup["weight_pages"] * settings.page_bytes
    groups = [KVGroup(**group | {"layers": tuple(group["layers"])}) for group in setup["groups"]]
    runner = Replayed(clock, [step["seconds"] for step in steps], said)
    model = SimulatedModel(facts, groups, StepModel(), runner)
    batcher = device.attach(engine, model, clock).batcher
    while asked or engine.has_work:
        while asked and asked[0]["steps"] == len(runner.plans):
            one = asked.pop(0)
            sampling = SamplingParams(max_tokens=one["output"], temperature=0.0, ignore_eos=True)
            request = EngineRequest(one["id"], "m", one["client"], one["prompt"], sampling, 0.0)
            engine.handle(Generate(request))
        engine.step()
    assert engine.check() == []
    return runner.plans, batcher.preemptions


def test_every_decision_of_a_real_engine_s_log_is_made_again() -> None:
    lines = [json.loads(line) for line in LOG.read_text().splitlines()]
    logged = [[tuple(one) for one in line["slices"]] for line in lines if "slices" in line]
    plans, preemptions = replay(lines)
    assert plans == logged
    assert preemptions == lines[0]["preemptions"] > 0
    assert len(plans) > 100
