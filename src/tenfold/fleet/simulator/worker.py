"""One simulated worker: a whole engine - loop, batcher, caches, policy - over a device that only
counts, with a clock of its own.

The engine does not know that it is simulated. What a step brings is heard when the step ends; what
is sent while one runs waits for its end, as in a worker process.
"""

from __future__ import annotations

from bisect import bisect_right
from math import inf
from typing import cast

from tenfold.core.clock import VirtualClock
from tenfold.core.messages import AskPrefixes, Event, Generate, SetShares
from tenfold.core.settings import DeviceSettings, ScheduleSettings, Share
from tenfold.core.types import EngineRequest, KVGroup, ModelFacts, SamplingParams
from tenfold.costs.step import StepModel
from tenfold.engine.engine import Engine
from tenfold.engine.instance import GenerateInstance
from tenfold.engine.leap import LeapingInstance
from tenfold.engine.simulated import SimulatedRunner
from tenfold.engine.simulated_device import SimulatedDevice, SimulatedModel
from tenfold.fleet.simulator.settings import ClusterSettings
from tenfold.fleet.workloads.prompt import LAST_TOKEN, Prompt
from tenfold.kvcache.hashing import Tokens

MODEL = "model"
"""The one model of every worker."""


PAGE_BLOCKS = 64
"""In a page, where there are many."""


class SimulatedWorker:
    """``due``: when what it does now is over; None while it does nothing."""

    def __init__(
        self,
        name: str,
        cluster: ClusterSettings,
        schedule: ScheduleSettings,
        costs: StepModel,
        memory_bytes: int,
    ) -> None:
        self.name = name
        self.clock = VirtualClock()
        self.heard: list[Event] = []
        self.due: float | None = None
        self.version = 0
        """Grows whenever ``due`` changes."""
        self._inbox: list[EngineRequest] = []
        self._ahead: list[float] = []
        self.device = SimulatedDevice(_device(name, cluster, schedule, memory_bytes))
        self.engine = Engine(self.device, self.clock, self.heard.append)
        self.instance = self.device.attach(
            self.engine,
            _model(cluster, costs, self.clock),
            self.clock,
            LeapingInstance if cluster.leaps else GenerateInstance,
        )
        self.instance.batcher.hash_prompt = _hash_prompt
        # A leap has no times within at which news could be told: only an answer's end tells them.
        self.instance.news.interval = inf
        self.instance.batcher.line.explains = False

    def begin(self, shares: list[Share], *, tell_prefixes: bool) -> list[Event]:
        """Before anything else: what a server says to a worker that has come up."""
        self.engine.handle(SetShares(shares))
        if tell_prefixes:
            self.engine.handle(AskPrefixes())
        return self._take([])

    def send(self, request: EngineRequest, now: float) -> list[Event]:
        """A request arrives. It is taken up when the step that runs is over; what comes of it at
        once is returned."""
        if self.due is None:
            self.clock.move_to(now)
            return self._take([request])
        self._inbox.append(request)
        if self._ahead:  # the leap ends with the step that runs now
            steps = bisect_right(self._ahead, now) + 1
            del self._ahead[steps:]
            self._plan_end(self._ahead[-1])
        return []

    def finish(self) -> list[Event]:
        """What is due is over: what it brought. The next thing is begun."""
        if self._ahead:  # the engine's loop has nothing to decide
            self._leap(len(self._ahead))
        requests, self._inbox = self._inbox, []
        return self._take(requests)

    def stop(self, now: float) -> list[Event]:
        """The simulation ends: what has come by now, if a leap is under way."""
        if not self._ahead or not (steps := bisect_right(self._ahead, now)):
            return []
        self._leap(steps)
        return self.heard

    def _leap(self, steps: int) -> None:
        assert isinstance(self.instance, LeapingInstance)
        self.instance.leap = steps
        self._ahead = []
        self.heard += self.instance.step(1) or []

    def _take(self, requests: list[EngineRequest]) -> list[Event]:
        """Queue requests and begin the next step; what was heard before it."""
        for request in requests:
            self.engine.handle(Generate(request))
        heard = list(self.heard)
        self.heard.clear()
        self._begin()
        return heard

    def _begin(self) -> None:
        """Take the next step, whose outcome is kept until it is due; or plan a leap."""
        if not self.engine.has_work:
            self._plan_end(None)
            return
        if isinstance(self.instance, LeapingInstance):
            self._ahead = self.instance.ahead()
            if self._ahead:
                self._plan_end(self._ahead[-1])
                return
        self.engine.step()
        self._plan_end(self.clock.now())

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
    id: str, client: str, prompt: Prompt, sampling: SamplingParams, now: float
) -> EngineRequest:
    """A request as the engine takes it."""
    return EngineRequest(id, MODEL, client, cast(list[int], prompt), sampling, now)


def _device(
    name: str, cluster: ClusterSettings, schedule: ScheduleSettings, memory_bytes: int
) -> DeviceSettings:
    """Pages hold whole blocks here: where a block lies is no matter of scheduling."""
    block_bytes = cluster.kv_token_bytes * cluster.block_tokens
    many = memory_bytes // block_bytes >= PAGE_BLOCKS * PAGE_BLOCKS
    return DeviceSettings(
        name=name,
        memory_bytes=memory_bytes,
        page_bytes=block_bytes * (PAGE_BLOCKS if many else 1),
        block_tokens=cluster.block_tokens,
        prefix_cache=cluster.prefix_cache,
        max_running=cluster.max_running,
        max_step_tokens=cluster.max_step_tokens,
        itl_target=cluster.itl_target,
        prefill_share=cluster.prefill_share,
        schedule=schedule,
    )


def _model(cluster: ClusterSettings, costs: StepModel, clock: VirtualClock) -> SimulatedModel:
    facts = ModelFacts(
        name=MODEL,
        kind="generate",
        family="simulated",
        context_length=cluster.context,
        vocab_size=LAST_TOKEN,
        hidden_size=cluster.kv_heads * cluster.head_dim,
        parameters=round(cluster.parameters),
        weight_bytes=round(cluster.model.weight_bytes),
        kv_bytes_per_token=cluster.kv_token_bytes,
    )
    # A group of one layer as wide as all of them: only a block's bytes matter.
    group = KVGroup("all", (0,), 1, max(1, cluster.kv_token_bytes // 4), dtype="f16")
    steps = StepModel() if cluster.learn else costs
    return SimulatedModel(facts, [group], steps, SimulatedRunner(clock, costs))
