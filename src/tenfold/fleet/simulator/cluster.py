"""The simulation's loop: calls arrive, a routing policy picks workers, steps end - in the order of
a virtual clock that all workers share.

What decides is what decides in a server: ``scheduling.admission`` says who may wait, a policy of
``scheduling.routing`` says where, and each worker is an ``Engine``. Here is only the order of
events. Does not know what steps cost, nor why clients ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf

from tenfold.core.errors import ConfigError, Overloaded
from tenfold.core.messages import (
    Abort,
    Command,
    Event,
    Generate,
    ModelMoved,
    PrefixUpdate,
    RequestFailed,
    StepDone,
    TokenOutput,
)
from tenfold.core.settings import Share
from tenfold.core.types import SamplingParams
from tenfold.fleet.simulator.homes import Homes
from tenfold.fleet.simulator.worker import MODEL, SimulatedWorker, engine_request, exactly
from tenfold.fleet.workloads.base import Call, answered, asked, failed
from tenfold.fleet.workloads.outcome import Outcome, ProgramOutcome, Run
from tenfold.scheduling.admission import AdmissionController, Limits
from tenfold.scheduling.routing.base import Routed, RoutingPolicy

Progress = Callable[[float, int], None]
"""Told of the simulated time, and how many calls have ended."""

REPORT_EVERY = 1024
"""Events between two reports of progress."""


@dataclass(slots=True)
class _Live:
    """A call under way. ``worker``: where its tokens are counted; ``others``: those that compute
    the other parts of its model. ``begun`` and ``ended``: how many parts have had a first, and
    their last token. ``answer``: its tokens, where something follows from them."""

    call: Call
    outcome: Outcome
    worker: SimulatedWorker | None = None
    others: tuple[SimulatedWorker, ...] = ()
    begun: set[str] = field(default_factory=set)
    ended: int = 0
    answer: list[int] = field(default_factory=list)


class Cluster:
    """Workers behind one router. ``limits``: how much may wait; None for anything.
    ``router_seconds``: what the router spends on a request. ``homes``: where each of several models
    is; None for one that every worker holds."""

    def __init__(
        self,
        workers: list[SimulatedWorker],
        router: RoutingPolicy,
        *,
        block_tokens: int,
        shares: list[Share],
        limits: Limits | None = None,
        router_seconds: float = 0.0,
        progress: Progress | None = None,
        homes: Homes | None = None,
    ) -> None:
        self.workers = {worker.name: worker for worker in workers}
        self._among = frozenset(self.workers)
        self.router = router
        self.admission = None if limits is None else AdmissionController(limits)
        self._block_tokens = block_tokens
        self._router_seconds = router_seconds
        self._router_free = 0.0
        self._progress = progress
        self.homes = homes
        self._live: dict[str, _Live] = {}
        self._samplings: dict[int, SamplingParams] = {}
        self._ids = count(1)
        self._order = count()
        self._steps: list[tuple[float, int, int, SimulatedWorker]] = []
        self._later: list[tuple[float, int, Call]] = []
        self._arrived: list[tuple[float, int, _Live]] = []
        self._ended = 0
        self._run = Run(0.0)
        self._numbers = {worker.name: number for number, worker in enumerate(workers)}
        if homes is not None:
            homes.send, homes.send_on = self.give, self._send_on
        for worker in workers:
            router.join(worker.name)
            self._hear(worker, worker.begin(shares, tell_prefixes=router.follows_caches))
        for share in shares:
            router.set_weight(share.name, share.weight)

    def run(self, calls: Iterator[Call], seconds: float, *, drain: bool = False) -> Run:
        """Everything until ``seconds``; with ``drain``, until all that was asked by then is done.
        Once only."""
        fresh = next(calls, None)
        end = inf if drain else seconds
        now, events = 0.0, 0
        steps, later, arrived = self._steps, self._later, self._arrived
        period = self.homes.period if self.homes is not None else 0.0
        look = period or inf
        while True:
            while steps and steps[0][2] != steps[0][3].version:
                heappop(steps)  # it is due at another time by now
            step = steps[0][0] if steps else inf
            asked = fresh.at if fresh is not None else inf
            if later and later[0][0] < asked:
                asked = later[0][0]
            sent = arrived[0][0] if arrived else inf
            at = min(step, asked, sent, look)
            if at > end or at == inf or (at > seconds and not self._live and not later):
                break
            now = at
            if look == at:
                assert self.homes is not None
                self.homes.look(at)
                look += period
            elif step == at:
                self._finish_step()
            elif sent == at:
                self._dispatch(heappop(arrived)[2], at)
            elif fresh is not None and fresh.at == asked:
                self._ask(fresh)
                fresh = next(calls, None)
            else:
                self._ask(heappop(later)[2])
            events += 1
            if self._progress is not None and events % REPORT_EVERY == 0:
                self._progress(now, self._ended)
        self._run.seconds = now if drain else seconds
        if not drain:
            for worker in self.workers.values():
                self._hear(worker, worker.stop(seconds))
        return self._run

    # --- a call's way ---------------------------------------------------------------------------
    def _ask(self, call: Call) -> None:
        """A client sends a call; the router takes it when it is free."""
        id = str(next(self._ids))
        prompt = len(call.prompt)
        asked(call)
        outcome = Outcome(id, call.client, call.program.name, call.at, prompt)
        self._run.calls.append(outcome)
        outcome.model = call.model
        live = _Live(call, outcome)
        if self.admission is not None:
            try:
                self.admission.admit(call.client, prompt, call.at)
            except Overloaded as error:
                self._fail(live, error.code, call.at)
                return
        self._live[id] = live
        if self._router_seconds:
            self._router_free = max(self._router_free, call.at) + self._router_seconds
            heappush(self._arrived, (self._router_free, next(self._order), live))
        else:
            self._dispatch(live, call.at)

    def _dispatch(self, live: _Live, now: float) -> None:
        call, outcome = live.call, live.outcome
        model, among = MODEL, self._among
        if self.homes is not None:
            model = call.model
            self.homes.asked(model, now)
            home = self.homes.of(model)
            among = self._among if self.homes.replicated else frozenset(home[:1])
            if not self.homes.replicated:
                live.others = tuple(self.workers[name] for name in home[1:])
        elif call.model:
            raise ConfigError(f"a call asks for {call.model!r} and there is no [[model]] table")
        routed = Routed(
            outcome.id,
            call.client,
            model,
            outcome.prompt_tokens,
            call.prompt.hashes(self._block_tokens),
            call.output,
            self._block_tokens,
        )
        outcome.worker = self.router.choose(routed, among, now)
        worker = live.worker = self.workers[outcome.worker]
        sampling = self._samplings.get(call.output)
        if sampling is None:
            sampling = self._samplings[call.output] = exactly(call.output)
        request = engine_request(outcome.id, model, call.client, call.prompt, sampling, call.at)
        for one in (worker, *live.others):
            self.give(one, Generate(request), now)

    def give(self, worker: SimulatedWorker, command: Command, now: float) -> None:
        """A command reaches a worker."""
        was = worker.version
        heard = worker.send(command, now)
        if worker.version != was:
            self._file(worker)
        self._hear(worker, heard)

    def _send_on(self, model: str, source: SimulatedWorker, now: float) -> None:
        """What waits there is aborted, and asked of the worker that has the model now."""
        waiting = [
            live
            for live in self._live.values()
            if live.worker is source and live.call.model == model and live.outcome.started < 0
        ]
        for live in waiting:
            self.router.dropped(live.outcome.id)
            self._dispatch(live, now)
            self.give(source, Abort(live.outcome.id), now)

    def _finish_step(self) -> None:
        worker = heappop(self._steps)[3]
        heard = worker.finish()
        self._file(worker)
        self._hear(worker, heard)

    def _file(self, worker: SimulatedWorker) -> None:
        if worker.due is not None:
            number = self._numbers[worker.name]
            heappush(self._steps, (worker.due, number, worker.version, worker))

    # --- what workers say -----------------------------------------------------------------------
    def _hear(self, worker: SimulatedWorker, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, StepDone):
                for begun in event.started:
                    live = self._live.get(begun.request_id)
                    if live is None or live.worker is not worker:
                        continue  # another part of the model, or it was sent on meanwhile
                    outcome = live.outcome
                    outcome.started, outcome.cached_tokens = begun.at, begun.cached_tokens
                    if self.admission is not None:
                        self.admission.started(outcome.client, outcome.prompt_tokens, begun.at)
                for output in event.outputs:
                    self._output(worker, output, event.at)
            elif isinstance(event, PrefixUpdate):
                self._learn(worker.name, event)
            elif isinstance(event, RequestFailed):
                self._failed(worker, event)
            elif isinstance(event, ModelMoved) and self.homes is not None:
                self.homes.heard(worker.name, event, worker.clock.now())

    def _failed(self, worker: SimulatedWorker, event: RequestFailed) -> None:
        live = self._live.get(event.request_id)
        if live is None or (live.worker is not worker and not live.others):
            return  # another part failed before, or it was sent on meanwhile
        del self._live[event.request_id]
        if live.outcome.started < 0 and self.admission is not None:
            self.admission.gone(live.outcome.client, live.outcome.prompt_tokens)
        self.router.dropped(event.request_id)
        now = worker.clock.now()
        self._fail(live, event.code, now)
        if live.others and live.worker is not None:
            for other in (live.worker, *live.others):
                if other is not worker:
                    self.give(other, Abort(event.request_id), now)

    def _learn(self, worker: str, update: PrefixUpdate) -> None:
        """The router hears what a worker's cache gained and lost. Nothing is lost on the way."""
        self.router.evicted(worker, update.model, update.evicted)
        for after, hashes in update.inserted:
            self.router.inserted(worker, update.model, after, hashes)

    def _output(self, worker: SimulatedWorker, output: TokenOutput, now: float) -> None:
        live = self._live.get(output.request_id)
        if live is None or (live.worker is not worker and not live.others):
            return  # it was sent on meanwhile
        if live.others and not self._whole(live, worker, output, now):
            return
        outcome = live.outcome
        if outcome.first < 0:
            outcome.first = now
        outcome.last = now
        if not live.others:
            outcome.output_tokens += len(output.token_ids)
            if live.call.then is not None:
                live.answer += output.token_ids
        if output.finish is None:
            return
        outcome.finished = True
        del self._live[output.request_id]
        self._ended += 1
        self.router.finished(output.request_id, outcome.output_tokens, now)
        self._follow(answered(live.call, live.answer, now))
        program = live.call.program
        if program.done:
            ended = ProgramOutcome(program.name, program.client, program.began, now)
            self._run.programs.append(ended)

    def _whole(self, live: _Live, worker: SimulatedWorker, output: TokenOutput, now: float) -> bool:
        """A part of a model has tokens: whether the model has. They are counted once; the first
        comes with the last part's first, and the end with the last part's end."""
        if live.worker is worker:
            live.outcome.output_tokens += len(output.token_ids)
            if live.call.then is not None:
                live.answer += output.token_ids
        live.begun.add(worker.name)
        if live.outcome.first < 0 and len(live.begun) > len(live.others):
            live.outcome.first = now
        if output.finish is None:
            return False
        live.ended += 1
        return live.ended > len(live.others)

    def _fail(self, live: _Live, code: str, now: float) -> None:
        live.outcome.error = code
        self._ended += 1
        self._follow(failed(live.call, now))

    def _follow(self, calls: Iterable[Call]) -> None:
        for call in calls:
            heappush(self._later, (call.at, next(self._order), call))
