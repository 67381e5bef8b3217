"""Engines for tests: over made-up tokens and a virtual clock, or over a real tiny model."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from tenfold.core.clock import VirtualClock
from tenfold.core.messages import (
    Event,
    Generate,
    RequestFailed,
    RequestStarted,
    StepDone,
)
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import EngineRequest, KVGroup, ModelFacts, SamplingParams
from tenfold.costs.step import FixedStepModel, StepCosts, StepModel
from tenfold.engine.batcher import Batcher
from tenfold.engine.engine import Engine
from tenfold.engine.executor import Executor
from tenfold.engine.sequence import Choice, StepPlan
from tenfold.engine.simulated import CountingPages, SimulatedRunner
from tenfold.engine.simulated_device import SimulatedDevice, SimulatedModel
from tenfold.engine.speculator import Speculator

BLOCK = 4
PAGE = 4096
GLOBAL = KVGroup("global", (0, 1), 1, 16)  # a block of 4 tokens: 1024 bytes in float32


def costs() -> StepModel:
    """A step: 10 ms, and a millisecond a prompt token or decoding sequence."""
    return FixedStepModel(StepCosts(0.01, 0.001, 0.001, 1e-6, 1e-6))


class Recorder:
    """An executor that writes down every plan before another runs it."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.time = inner.time
        self.plans: list[list[tuple[str, int, int]]] = []

    def execute(self, plan: StepPlan) -> list[Choice]:
        self.plans.append([(p.seq.request.id, p.start, p.count) for p in plan.slices])
        return self.inner.execute(plan)

    def forget(self, request_id: str) -> None:
        self.inner.forget(request_id)


@dataclass
class Heard:
    """Events of an engine, sorted by request."""

    events: list[Event] = field(default_factory=list)
    tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    finished: dict[str, str] = field(default_factory=dict)
    failed: dict[str, RequestFailed] = field(default_factory=dict)
    started: dict[str, RequestStarted] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, RequestFailed):
            self.failed[event.request_id] = event
        if isinstance(event, StepDone):
            for start in event.started:
                self.started[start.request_id] = start
                self.order.append(start.request_id)
            for output in event.outputs:
                self.tokens[output.request_id] += output.token_ids
                if output.finish:
                    self.finished[output.request_id] = output.finish


class Sim:
    """An engine under a virtual clock, with as many simulated models as wanted."""

    def __init__(self, **settings: object) -> None:
        self.clock = VirtualClock()
        self.heard = Heard()
        values = {"name": "sim:0", "block_tokens": BLOCK, "page_bytes": PAGE, **settings}
        self.settings = DeviceSettings.of(**values)  # type: ignore[arg-type]
        self.device = SimulatedDevice(self.settings)
        self.engine = Engine(self.device, self.clock, self.heard)
        self.recorders: dict[str, Recorder] = {}

    def add(
        self,
        name: str = "m",
        pages: CountingPages | None = None,
        *,
        blocks: int = 64,
        context: int = 1000,
        groups: tuple[KVGroup, ...] = (GLOBAL,),
        executor: Executor | None = None,
        drafts: Speculator | None = None,
        price: float = 1.0,
    ) -> Batcher:
        """Attach a model whose KV draws on ``pages`` (shared between models if given twice).

        ``drafts``: in place of what the settings say."""
        recorder = Recorder(executor or SimulatedRunner(self.clock, costs()))
        self.recorders[name] = recorder
        model = SimulatedModel(
            ModelFacts(name, "generate", "sim", context, 100, 8, 0, 0, 0, [99]),
            groups,
            costs(),
            recorder,
            pages=pages or CountingPages(blocks * len(groups)),
            blocks=blocks,
            drafts=drafts,
            price=price,
        )
        return self.device.attach(self.engine, model, self.clock).batcher

    def ask(self, id: str, prompt: list[int], output: int = 8, **fields: object) -> None:
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        values = {"model": "m", "client": "c", "arrival": self.clock.now(), **fields}
        self.engine.handle(
            Generate(EngineRequest(id=id, prompt=prompt, sampling=sampling, **values))
        )  # type: ignore[arg-type]

    def run(self, steps: int = 10_000) -> int:
        """Step until idle; the number of steps taken. Fails if it does not come to rest."""
        for step in range(steps):
            if not self.engine.step():
                assert self.engine.check() == []
                return step
        raise AssertionError(f"still busy after {steps} steps")
