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

from tenfold.core.errors import Overloaded
from tenfold.core.messages import Event, PrefixUpdate, RequestFailed, StepDone, TokenOutput
from tenfold.core.settings import Share
from tenfold.core.types import SamplingParams
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
    """A call under way. ``answer``: its tokens, where something follows from them."""

    call: Call
    outcome: Outcome
    worker: SimulatedWorker | None = None
    answer: list[int] = field(default_factory=list)


class Cluster:
    """Workers behind one router. ``limits``: how much may wait; None for anything.
    ``router_seconds``: what the router spends on a request."""

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
    ) -> None:
        self.workers = {worker.name: worker for worker in workers}
        self._among = frozenset(self.workers)
        self.router = router
        self.admission = None if limits is None else AdmissionController(limits)
        self._block_tokens = block_tokens
        self._router_seconds = router_seconds
        self._router_free = 0.0
        self._progress = progress
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
        while True:
            while steps and steps[0][2] != steps[0][3].version:
                heappop(steps)  # it is due at another time by now
            step = steps[0][0] if steps else inf
            asked = fresh.at if fresh is not None else inf
            if later and later[0][0] < asked:
                asked = later[0][0]
            sent = arrived[0][0] if arrived else inf
            at = min(step, asked, sent)
            if at > end or at == inf:
                break
            now = at
            if step == at:
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
        routed = Routed(
            outcome.id,
            call.client,
            MODEL,
            outcome.prompt_tokens,
            call.prompt.hashes(self._block_tokens),
            call.output,
            self._block_tokens,
        )
        outcome.worker = self.router.choose(routed, self._among, now)
        worker = live.worker = self.workers[outcome.worker]
        sampling = self._samplings.get(call.output)
        if sampling is None:
            sampling = self._samplings[call.output] = exactly(call.output)
        request = engine_request(outcome.id, call.client, call.prompt, sampling, call.at)
        was = worker.version
        self._hear(worker, worker.send(request, now))
        if worker.version != was:
            self._file(worker)

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
                    live = self._live[begun.request_id]
                    outcome = live.outcome
                    outcome.started, outcome.cached_tokens = begun.at, begun.cached_tokens
                    if self.admission is not None:
                        self.admission.started(outcome.client, outcome.prompt_tokens, begun.at)
                for output in event.outputs:
                    self._output(output, event.at)
            elif isinstance(event, PrefixUpdate):
                self._learn(worker.name, event)
            elif isinstance(event, RequestFailed):
                live = self._live.pop(event.request_id)
                if live.outcome.started < 0 and self.admission is not None:
                    self.admission.gone(live.outcome.client, live.outcome.prompt_tokens)
                self.router.dropped(event.request_id)
                self._fail(live, event.code, worker.clock.now())

    def _learn(self, worker: str, update: PrefixUpdate) -> None:
        """The router hears what a worker's cache gained and lost. Nothing is lost on the way."""
        self.router.evicted(worker, MODEL, update.evicted)
        for after, hashes in update.inserted:
            self.router.inserted(worker, MODEL, after, hashes)

    def _output(self, output: TokenOutput, now: float) -> None:
        live = self._live[output.request_id]
        outcome = live.outcome
        if outcome.first < 0:
            outcome.first = now
        outcome.last = now
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

    def _fail(self, live: _Live, code: str, now: float) -> None:
        live.outcome.error = code
        self._ended += 1
        self._follow(failed(live.call, now))

    def _follow(self, calls: Iterable[Call]) -> None:
        for call in calls:
            heappush(self._later, (call.at, next(self._order), call))
