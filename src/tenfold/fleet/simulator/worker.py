"""One simulated worker: a whole engine - loop, batcher, caches, policies - over a device that only
counts, with a clock of its own.

The engine does not know that it is simulated. What a step brings is heard when the step ends; what
is sent while one runs waits for its end, as in a worker process.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import cast

from tenfold.core.clock import VirtualClock
from tenfold.core.messages import AskPrefixes, Command, Event, ModelOptions, SetShares
from tenfold.core.settings import DeviceSettings, Share
from tenfold.core.types import EngineRequest, KVGroup, ModelFacts, SamplingParams
from tenfold.costs.presets import ModelShape
from tenfold.costs.step import StepModel
from tenfold.engine.engine import Engine
from tenfold.engine.instance import GenerateInstance
from tenfold.engine.leap import LeapingInstance
from tenfold.engine.simulated import SimulatedRunner
from tenfold.engine.simulated_device import SimulatedDevice, SimulatedModel
from tenfold.fleet.simulator.settings import Simulation
from tenfold.fleet.workloads.prompt import LAST_TOKEN, Prompt
from tenfold.kvcache.hashing import Tokens

MODEL = "model"
"""The one model of every worker, where a simulation names none."""

PAGE_BLOCKS = 64
"""In a page, where there are many."""

PAGE_BYTES = 2 << 20
"""Of workers with several models, whose blocks differ in size."""

MOST_LOOKS = 8
"""At models' residency in a row, without a step between them."""

LEAST_WAIT = 1e-4
"""Seconds between two looks at models' residency while nothing else happens."""


@dataclass(slots=True)
class HeldModel:
    """A model, or a part of one, as a worker holds it. ``wake`` and ``cold``: seconds that its
    weights take from the host's memory and from a disk."""

    name: str
    shape: ModelShape
    context: int
    hidden: int
    steps: StepModel
    wake: float = 0.0
    cold: float = 0.0
    options: ModelOptions = field(default_factory=ModelOptions)


class SimulatedWorker:
    """``due``: when what it does now is over; None while it does nothing."""

    def __init__(
        self, name: str, simulation: Simulation, memory_bytes: int, models: Iterable[HeldModel] = ()
    ) -> None:
        self.name = name
        self.clock = VirtualClock()
        self.heard: list[Event] = []
        self.due: float | None = None
        self.version = 0
        """Grows whenever ``due`` changes."""
        self._cluster = simulation.cluster
        self._inbox: list[Command] = []
        self._ahead: list[float] = []
        self._leaping: LeapingInstance | None = None
        self._waits = False
        """Nothing runs; at ``due`` residency wants another look."""
        self.device = SimulatedDevice(_device(name, simulation, memory_bytes))
        self.engine = Engine(self.device, self.clock, self.heard.append)
        self.instances: dict[str, GenerateInstance] = {}
        for model in models:
            self.attach(model)

    def attach(self, model: HeldModel) -> None:
        """Hold one more model. Raises OutOfMemory where it has no room."""
        leaps = self._cluster.leaps
        instance = self.device.attach(
            self.engine,
            _model(model, self.clock, learn=self._cluster.learn),
            self.clock,
            LeapingInstance if leaps else GenerateInstance,
        )
        instance.batcher.hash_prompt = _hash_prompt
        # A leap has no times within at which news could be told: only an answer's end tells them.
        instance.news.interval = inf
        instance.batcher.line.explains = False
        self.instances[model.name] = instance

    def begin(self, shares: list[Share], *, tell_prefixes: bool) -> list[Event]:
        """Before anything else: what a server says to a worker that has come up."""
        self.engine.handle(SetShares(shares))
        if tell_prefixes:
            self.engine.handle(AskPrefixes())
        return self._take([])

    def send(self, command: Command, now: float) -> list[Event]:
        """A command arrives. It is taken up when the step that runs is over; what comes of it at
        once is returned."""
        if self.due is None or self._waits:
            self.clock.move_to(now)
            return self._take([command])
        self._inbox.append(command)
        if self._ahead:  # the leap ends with the step that runs now
            steps = bisect_right(self._ahead, now) + 1
            del self._ahead[steps:]
            self._plan_end(self._ahead[-1])
        return []

    def finish(self) -> list[Event]:
        """What is due is over: what it brought. The next thing is begun."""
        if self._ahead:  # the engine's loop has nothing to decide
            self._leap(len(self._ahead))
        elif self._waits and self.due is not None:
            self.clock.move_to(self.due)
        commands, self._inbox = self._inbox, []
        return self._take(commands)

    def stop(self, now: float) -> list[Event]:
        """The simulation ends: what has come by now, if a leap is under way."""
        if not self._ahead or not (steps := bisect_right(self._ahead, now)):
            return []
        self._leap(steps)
        return self.heard

    def _leap(self, steps: int) -> None:
        assert self._leaping is not None
        self._leaping.leap = steps
        self._ahead = []
        self.heard += self._leaping.step(1) or []

    def _take(self, commands: list[Command]) -> list[Event]:
        """Take commands and begin the next step; what was heard before it."""
        for command in commands:
            self.engine.handle(command)
        heard = list(self.heard)
        self.heard.clear()
        if not self._begin():  # nothing was computed: what was heard is not a step's outcome
            heard += self.heard
            self.heard.clear()
        return heard

    def _begin(self) -> bool:
        """Take the next step, whose outcome is kept until it is due; or plan a leap, or wait. Gives
        whether a step was taken."""
        self._waits = False
        if not self.engine.has_work and not self._look():
            return False
        quiet = self.engine.residents.quiet_until()
        if quiet > self.clock.now() and (only := self._only_one()) is not None:
            ends = only.ahead()
            self._ahead = ends[: bisect_right(ends, quiet)] if quiet < inf else ends
            if self._ahead:
                self._leaping = only
                self._plan_end(self._ahead[-1])
                return False
        self.engine.step()
        self._plan_end(self.clock.now())
        return True

    def _look(self) -> bool:
        """Nobody who is awake has work: let models sleep and wake. Gives whether there is work
        then; if not, when to look again is planned."""
        residents = self.engine.residents
        for _ in range(MOST_LOOKS):
            residents.tend()
            if self.engine.has_work:
                return True
            if not residents.changed:
                break
        due = residents.due()
        self._waits = due < inf
        self._plan_end(max(due, self.clock.now() + LEAST_WAIT) if self._waits else None)
        return False

    def _only_one(self) -> LeapingInstance | None:
        """The model that has work, if no other has any and it can leap."""
        busy = [one for one in self.instances.values() if one.has_work]
        return busy[0] if len(busy) == 1 and isinstance(busy[0], LeapingInstance) else None

    def _plan_end(self, due: float | None) -> None:
        self.due = due
        self.version += 1


class _Exactly(SamplingParams):
    """So many tokens. What is made here needs no looking through, a million times over."""

    __slots__ = ()

    def check(self) -> None:
        """Nothing can be wrong."""


def _hash_prompt(request: EngineRequest, tokens: Tokens, block_tokens: int) -> list[int]:
    prompt = cast(Prompt, request.prompt)
    return prompt.hashes(block_tokens).copy()


def exactly(output: int) -> SamplingParams:
    """For so many tokens."""
    return _Exactly(max_tokens=output, temperature=0.0, ignore_eos=True)


def engine_request(
    id: str, model: str, client: str, prompt: Prompt, sampling: SamplingParams, now: float
) -> EngineRequest:
    """A request as the engine takes it."""
    return EngineRequest(id, model, client, cast(list[int], prompt), sampling, now)


def _device(name: str, simulation: Simulation, memory_bytes: int) -> DeviceSettings:
    """Pages of one model hold whole blocks here: where a block lies is no matter of scheduling."""
    cluster = simulation.cluster
    page = PAGE_BYTES
    if not simulation.models:
        block_bytes = cluster.kv_token_bytes * cluster.block_tokens
        many = memory_bytes // block_bytes >= PAGE_BLOCKS * PAGE_BLOCKS
        page = block_bytes * (PAGE_BLOCKS if many else 1)
    return DeviceSettings(
        name=name,
        memory_bytes=memory_bytes,
        page_bytes=page,
        block_tokens=cluster.block_tokens,
        prefix_cache=cluster.prefix_cache,
        max_running=cluster.max_running,
        max_step_tokens=cluster.max_step_tokens,
        itl_target=cluster.itl_target,
        prefill_share=cluster.prefill_share,
        schedule=simulation.schedule,
        residency=simulation.residency,
        deadlines=simulation.deadlines,
    )


def _model(model: HeldModel, clock: VirtualClock, *, learn: bool) -> SimulatedModel:
    shape = model.shape
    token = max(1, round(shape.kv_token_bytes))
    facts = ModelFacts(
        name=model.name,
        kind="generate",
        family="simulated",
        context_length=model.context,
        vocab_size=LAST_TOKEN,
        hidden_size=model.hidden,
        parameters=round(shape.parameters),
        weight_bytes=round(shape.weight_bytes),
        kv_bytes_per_token=token,
    )
    # A group of one layer as wide as all of them: only a block's bytes matter.
    group = KVGroup("all", (0,), 1, max(1, token // 4), dtype="f16")
    return SimulatedModel(
        facts,
        [group],
        StepModel() if learn else model.steps,
        SimulatedRunner(clock, model.steps),
        wake_seconds=model.wake,
        cold_seconds=model.cold,
        options=model.options,
    )
