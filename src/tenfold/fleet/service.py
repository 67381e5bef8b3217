"""The fleet's front door: what HTTP and in-process clients call.

Tokenises, checks, admits, sends to a worker that holds the model, and turns its tokens back into
text. A worker that dies costs only the requests that had already sent a token; the others are
queued again, once, where another worker holds the model at once. Holds no model and no tensor.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

from tenfold.core.clock import Clock, SystemClock
from tenfold.core.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    TenfoldError,
    Unavailable,
    WorkerLost,
    from_code,
)
from tenfold.core.messages import (
    Abort,
    Command,
    DeviceStats,
    Embed,
    Embedded,
    Event,
    Generate,
    QueuePlace,
    RequestFailed,
    ScheduleReport,
    StepDone,
)
from tenfold.core.settings import DeviceSettings, PlacementSettings, RoutingSettings, Share
from tenfold.core.types import Constraint, ModelKind, Usage
from tenfold.fleet.calls import LOST_TWICE, MOST_SUBMISSIONS, Call, engine_requests
from tenfold.fleet.generation import ChoiceStream
from tenfold.fleet.placement import Placements
from tenfold.fleet.pressure import Pressure
from tenfold.fleet.residency import Residency, ResidencyChange
from tenfold.fleet.routing import Routing
from tenfold.fleet.served import ModelSource, ServedModel
from tenfold.fleet.supervisor import Supervisor
from tenfold.fleet.types import (
    ChatPrompt,
    ChoiceEnd,
    Delta,
    EmbedResult,
    Finished,
    GenerateEvent,
    GenerateRequest,
    MemoryDecision,
    ModelStatus,
    RequestInfo,
    WorkerStatus,
)
from tenfold.fleet.workers import LocalWorker, Worker
from tenfold.scheduling.admission import AdmissionController
from tenfold.scheduling.limits import Grant, RateLimiter, Standing
from tenfold.text.grammar_check import GrammarGate

log = logging.getLogger("tenfold.fleet")

RETURN_SECONDS = 10.0

MOST_ENDED = 1000
"""Ended requests whose clients' ids are remembered, for the latest admissions of a schedule."""


class Service:
    """Models on devices, and the calls that run on them. All methods belong to one event loop."""

    def __init__(
        self,
        devices: list[DeviceSettings],
        models: Iterable[ModelSource],
        *,
        admission: AdmissionController,
        limiter: RateLimiter | None = None,
        routing: RoutingSettings | None = None,
        placement: PlacementSettings | None = None,
        make_worker: Callable[[DeviceSettings], Worker] = LocalWorker,
        find_source: Callable[[str, str | None], ModelSource] | None = None,
        clock: Clock | None = None,
        gate: GrammarGate | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.admission = admission
        self.limiter = limiter or RateLimiter(self.clock)
        self.shares: list[Share] = []
        self.supervisors = {
            d.name: Supervisor(d, make_worker, partial(self._take, d.name), self._lost, self.clock)
            for d in devices
        }
        sizes = [device.block_tokens for device in devices]
        self.routing = Routing(routing or RoutingSettings(), sizes, self.clock, self._send)
        self.residency = Residency(self.clock)
        placing = placement or PlacementSettings()
        self.pressure = Pressure(placing.window, self.clock, self._find)
        self.placement: Placements | None = None
        if placing.policy != "replicate":
            self.placement = Placements(placing, self, self.pressure, self.clock)
        self._configured = list(models)
        self._adding: set[str] = set()
        self._find_source = find_source
        self._entries: dict[str, ServedModel] = {}
        self._calls: dict[str, Call] = {}
        self._ended: dict[str, str] = {}
        self._embeds: dict[str, tuple[str, str, asyncio.Future[EmbedResult]]] = {}
        self._ids = itertools.count(1)
        self._gate = gate or GrammarGate()
        self._draining = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # --- life -----------------------------------------------------------------------------------
    async def start(self) -> None:
        """Start every worker and load every model. Raises what the first failure was."""
        for supervisor in self.supervisors.values():
            await supervisor.start()
        if self.placement is not None:
            await self.placement.settle(self._configured)
        for source in list(self._configured):
            await self._add(source)
        if self.placement is not None:
            self.placement.start()

    async def close(self) -> None:
        """End what runs with Unavailable, then the workers."""
        self._draining = True
        stopping = Unavailable("the server is stopping")
        for call in self._open_calls():
            call.events.put_nowait(stopping)
        for _, _, answer in list(self._embeds.values()):
            _fail(answer, stopping)
        if self.placement is not None:
            await self.placement.stop()
        await asyncio.gather(*(s.stop() for s in self.supervisors.values()))

    async def drain(self) -> None:
        """Admit nothing more; return when no call is left."""
        self._draining = True
        await self._idle.wait()

    def accepting(self) -> bool:
        return not self._draining

    def ready(self) -> bool:
        """Whether requests would succeed now: not draining, a model is up, and so is every one
        that the server was started with. One that an administrator adds may take its time."""
        return (
            not self._draining
            and any(e.ready for e in self._entries.values())
            and all(self._is_up(source.name) for source in self._configured)
        )

    def _is_up(self, name: str) -> bool:
        return name in self._entries and self._entries[name].ready

    # --- clients --------------------------------------------------------------------------------
    def set_shares(self, shares: Iterable[Share]) -> None:
        """The whole tree of shares, in place of the one before: for every worker that is up, and
        every one that comes up, and for the router."""
        self.shares = list(shares)
        for supervisor in self.supervisors.values():
            supervisor.set_shares(self.shares)
        self.routing.set_shares(self.shares)

    def standing(self, client: str) -> Standing | None:
        """Where the client stands against its hard limits; None where it has none."""
        return self.limiter.standing(client)

    # --- models ---------------------------------------------------------------------------------
    def models(self) -> list[ModelStatus]:
        return [self.status(name) for name in self._entries]

    def status(self, name: str) -> ModelStatus:
        return self._entry(name).status()

    def _entry(self, name: str) -> ServedModel:
        if name not in self._entries:
            served = ", ".join(self._entries) or "none"
            raise ModelNotFound(
                f"the model {name!r} is not served here (served: {served})", param="model"
            )
        return self._entries[name]

    async def load(self, name: str, source: str | None = None) -> ModelStatus:
        """Serve one more model. ``source``: catalogue name, path or hub id; default its name.
        Raises Conflict for a name that is served or on its way; Unavailable if it is unloaded
        meanwhile."""
        self._check_free(name)
        if self._find_source is None:
            raise InvalidRequest("this server serves a fixed list of models", param="model")
        self._adding.add(name)
        try:
            found = await asyncio.to_thread(self._find_source, name, source)
            if self.placement is not None:
                await self.placement.settle([found])
        finally:
            self._adding.discard(name)
        await self._add(found)
        return self.status(name)

    def _check_free(self, name: str) -> None:
        served = name in self._entries and self._entries[name].state != "failed"
        if served or name in self._adding:
            raise Conflict(f"{name} is served already", param="model")

    async def _add(self, source: ModelSource) -> None:
        """Load a model and what it needs to speak; nothing of it stays if that fails."""
        self._check_free(source.name)
        entry = ServedModel(source, self._places(source), "loading", int(time.time()))
        self._entries[source.name] = entry
        self._adding.add(source.name)
        try:
            await entry.load()
        except asyncio.CancelledError:
            if self._entries.get(source.name) is entry:
                del self._entries[source.name]
            raise
        finally:
            self._adding.discard(source.name)

    def _places(self, source: ModelSource) -> list[Supervisor]:
        """The device that was asked for; else one, where models are placed, or all of them."""
        if self.placement is not None:
            return [self.placement.home(source)]
        if source.device is None:
            return list(self.supervisors.values())
        if source.device not in self.supervisors:
            raise InvalidRequest(
                f"no device {source.device!r}; there are {', '.join(self.supervisors)}",
                param="device",
            )
        return [self.supervisors[source.device]]

    async def unload(self, name: str, force: bool = False) -> None:
        """Stop serving a model. A pinned one refuses unless forced; its running calls fail."""
        entry = self._entry(name)
        if entry.source.pinned and not force:
            raise Conflict(f"{name} is pinned; unpin it first, or force", param="model")
        self._entries.pop(name)
        self._configured = [source for source in self._configured if source.name != name]
        for place in entry.places:
            place.unload(name)
        if self.placement is not None:
            self.placement.forget(name)

    # --- memory ---------------------------------------------------------------------------------
    def pin(self, name: str, pinned: bool) -> ModelStatus:
        return self.set_residency(name, pinned=pinned)

    async def sleep(
        self,
        name: str,
        to: Literal["host", "cold"] = "host",
        force: bool = False,
        hold: bool = False,
    ) -> ModelStatus:
        """See ``Residency.sleep``."""
        await self.residency.sleep(self._entry(name), to, force=force, hold=hold)
        return self.status(name)

    async def wake(self, name: str) -> ModelStatus:
        """See ``Residency.wake``."""
        await self.residency.wake(self._entry(name))
        return self.status(name)

    def set_residency(
        self,
        name: str,
        pinned: bool | None = None,
        ttl: float | None = None,
        floor: int | None = None,
        limit: int | None = None,
        evict_cost: float | None = None,
    ) -> ModelStatus:
        """See ``ResidencyChange``."""
        change = ResidencyChange(pinned, ttl, floor, limit, evict_cost)
        self.residency.change(self._entry(name), change)
        return self.status(name)

    async def decisions(self, most: int) -> list[MemoryDecision]:
        """The latest decisions about memory, newest first, with reasons."""
        return await self.residency.decisions(self.supervisors.values(), most)

    # --- text -----------------------------------------------------------------------------------
    def tokenize(self, model: str, text: str, *, special: bool = True) -> list[int]:
        return self._entry(model).words.tokenizer.encode(text, special=special)

    def detokenize(self, model: str, ids: list[int]) -> str:
        entry = self._entry(model)
        entry.check_ids(ids, "tokens")
        return entry.words.tokenizer.decode(ids, skip_special=False)

    def token_text(self, model: str, id: int) -> str:
        return self._entry(model).words.tokenizer.token_text(id)

    def render(self, model: str, prompt: ChatPrompt) -> str:
        return self._entry(model).render(prompt)

    # --- generating -----------------------------------------------------------------------------
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Run one call. Errors of checking and admission come from the first step of the iterator;
        closing it aborts the call and frees its blocks within one engine step."""
        began = self.clock.now()
        entry = self._open_to(request.model, "generate")
        with self._counted(), self.limiter.enter(request.client, request.sampling.n) as grant:
            prompt = await entry.prompt_ids(request)
            constraint = request.sampling.constraint
            chat = request.prompt if isinstance(request.prompt, ChatPrompt) else None
            if chat is not None and (forced := entry.forced_call(chat)):
                constraint = forced
                await self.check_constraint(constraint, param="tools")
            self._check_open()
            grant.reserve(len(prompt), request.sampling.max_tokens, entry.room_after(len(prompt)))
            call = self._open_call(entry, request, prompt, constraint, began, grant)
            alarm = self._alarm(call)
            try:
                choices = [entry.choice(i, request, prompt) for i in range(request.sampling.n)]
                await self._submit(call)
                async for event in self._stream(call, entry, choices):
                    yield event
                usage = Usage(len(prompt), sum(c.generated for c in choices), call.cached)
                yield Finished(usage, call.queue_seconds)
            finally:
                if alarm is not None:
                    alarm.cancel()
                self._close_call(call)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """A call counts from its first step to its last, so that draining waits for all of it."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    def _check_open(self) -> None:
        if self._draining:
            raise Unavailable("the server is draining and takes no new requests", retry_after=30)

    def _open_to(self, model: str, what: ModelKind) -> ServedModel:
        """The model, if requests of this kind are taken for it now."""
        self._check_open()
        entry = self._entry(model)
        if entry.facts is not None and entry.facts.kind != what:
            raise InvalidRequest(
                f"{model} is an embedding model; use /v1/embeddings"
                if what == "generate"
                else f"{model} generates text and has no embeddings to serve",
                param="model",
            )
        return entry

    def _open_call(
        self,
        entry: ServedModel,
        request: GenerateRequest,
        prompt: list[int],
        constraint: Constraint | None,
        began: float,
        grant: Grant,
    ) -> Call:
        ids = [f"r{next(self._ids)}" for _ in range(request.sampling.n)]
        sends = engine_requests(request, prompt, constraint, began, ids)
        for done in range(len(ids)):
            try:
                self.admission.admit(request.client, len(prompt), began)
            except TenfoldError:
                for _ in range(done):
                    self.admission.gone(request.client, len(prompt), queued=True)
                raise
        parts = {id: index for index, id in enumerate(ids)}
        call = Call(request, prompt, began, sends, parts, grant)
        self._calls.update(dict.fromkeys(parts, call))
        return call

    async def check_constraint(self, constraint: Constraint, param: str | None = None) -> None:
        """Try a constraint out in a process of its own, because a hostile one can hang or crash
        whoever compiles it. Raises InvalidRequest; verdicts are remembered."""
        await asyncio.to_thread(self._gate.check, constraint, param=param)

    async def _submit(self, call: Call) -> None:
        """Send to the worker that the router chooses, waiting for one to come back if all that
        hold the model are away."""
        entry = self._entry(call.request.model)
        await self._await_holder(entry, self._patience(call))
        self._give(call, entry)

    def _give(self, call: Call, entry: ServedModel) -> None:
        among = frozenset(place.name for place in entry.holders())
        supervisor = self.supervisors[self.routing.choose(call.sends[0], among)]
        for part in call.sends:
            if part.id in call.parts:
                supervisor.send(Generate(part))
        call.given_to(supervisor)

    async def _await_holder(self, entry: ServedModel, seconds: float) -> None:
        end = self.clock.now() + seconds
        if self.placement is not None:
            self.placement.asked(entry)
        while not entry.holders():
            places = entry.places
            try:
                await entry.wait_up(max(0.0, end - self.clock.now()))
            except Unavailable:
                if entry.places == places:  # else it was moved meanwhile
                    raise

    def _patience(self, call: Call) -> float:
        if call.request.timeout is None:
            return RETURN_SECONDS
        return min(RETURN_SECONDS, max(0.0, call.began + call.request.timeout - self.clock.now()))

    async def _stream(
        self, call: Call, entry: ServedModel, choices: list[ChoiceStream]
    ) -> AsyncIterator[Delta | ChoiceEnd]:
        """What the choices become. A ``whole`` call's events are kept back until all are there."""
        held: list[Delta | ChoiceEnd] = []
        while call.parts:
            item = await call.events.get()
            if item == "moved":
                await self._submit(call)
                continue
            if item is None:  # the worker died before a token was sent: once more from the start
                again = set(call.parts.values())
                held = [event for event in held if event.index not in again]
                for index in again:
                    choices[index] = entry.choice(index, call.request, call.prompt)
                await self._submit(call)
                continue
            if isinstance(item, TenfoldError):
                raise item
            index, output = item
            call.cached = max(call.cached, output.cached_tokens)
            for event in choices[index].push(output):
                if isinstance(event, ChoiceEnd):
                    self._end_part(call, index, aborted=output.finish is None)
                else:
                    event.at = self.clock.now() if call.request.whole else None
                if call.request.whole:
                    held.append(event)
                else:
                    call.sent_token = True
                    yield event
        for event in held:
            yield event

    def _alarm(self, call: Call) -> asyncio.TimerHandle | None:
        """The engine enforces a request's deadline; this one holds even if the worker is away. One
        timer a call: one a token would be a good part of what a token costs here."""
        timeout = call.request.timeout
        if timeout is None:
            return None
        late = call.began + timeout - self.clock.now() + 1.0
        error = DeadlineExceeded(f"the request's time of {timeout:g} s ran out", param="timeout")
        loop = asyncio.get_running_loop()
        return loop.call_later(max(0.0, late), call.events.put_nowait, error)

    def _end_part(self, call: Call, index: int, *, aborted: bool) -> None:
        id = next((id for id, i in call.parts.items() if i == index), None)
        if id is None:
            return
        del call.parts[id]
        self._calls.pop(id, None)
        self._ended[id] = call.request.id
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        self.admission.gone(call.request.client, len(call.prompt), queued=id not in call.started)
        call.grant.end(index)
        if aborted and call.supervisor is not None:
            call.supervisor.send(Abort(id))

    def _close_call(self, call: Call) -> None:
        for index in list(call.parts.values()):
            self._end_part(call, index, aborted=True)
        self.routing.ended(call.id, call.answered if call.ran else None)
        if self.placement is not None:
            self.placement.call_ended()

    # --- embeddings -----------------------------------------------------------------------------
    async def embed(
        self,
        model: str,
        inputs: list[str] | list[list[int]],
        client: str,
        keep_alive: float | None = None,
    ) -> EmbedResult:
        """Unit vectors, one a text, in order. ``keep_alive`` as of a GenerateRequest."""
        entry = self._open_to(model, "embed")
        if not inputs:
            return EmbedResult([], 0)
        with self._counted(), self.limiter.enter(client) as grant:
            ids = await entry.embed_ids(inputs)
            self._check_open()
            tokens = sum(len(row) for row in ids)
            grant.reserve(tokens, 0, 0)
            self.admission.admit(client, tokens, self.clock.now())
            try:
                for _ in range(MOST_SUBMISSIONS):
                    await self._await_holder(entry, RETURN_SECONDS)
                    place = min(entry.holders(), key=self._embedding)
                    with contextlib.suppress(WorkerLost):  # nothing was answered: ask the next one
                        result = await self._embed_once(place, model, ids, keep_alive)
                        grant.began(0)
                        return result
                raise WorkerLost(LOST_TWICE)
            finally:
                self.admission.gone(client, tokens, queued=True)

    def _embedding(self, supervisor: Supervisor) -> int:
        """Texts that the worker is asked to embed now, by requests."""
        return sum(device == supervisor.name for device, _, _ in self._embeds.values())

    async def _embed_once(
        self,
        supervisor: Supervisor,
        model: str,
        ids: list[list[int]],
        keep_alive: float | None,
    ) -> EmbedResult:
        id = f"e{next(self._ids)}"
        answer: asyncio.Future[EmbedResult] = asyncio.get_running_loop().create_future()
        self._embeds[id] = (supervisor.name, model, answer)
        try:
            supervisor.send(Embed(id, model, ids, keep_alive))
            return await answer
        finally:
            if answer.cancelled():
                supervisor.send(Abort(id))
            self._embeds.pop(id, None)
            if self.placement is not None:
                self.placement.call_ended()

    # --- what workers say -----------------------------------------------------------------------
    def _take(self, device: str, event: Event) -> None:
        self.routing.heard(device, event)
        if self.placement is not None:
            self.placement.heard(device, event)
        match event:
            case StepDone():
                self._step_done(event)
            case RequestFailed(id, code, message, param):
                error = from_code(code, message, param=param)
                if id in self._embeds:
                    _fail(self._embeds[id][2], error)
                elif id in self._calls:
                    self._calls[id].events.put_nowait(error)
            case Embedded(id, vectors, tokens):
                if id in self._embeds and not self._embeds[id][2].done():
                    self._embeds[id][2].set_result(EmbedResult(vectors, tokens))

    def _step_done(self, event: StepDone) -> None:
        for started in event.started:
            call = self._calls.get(started.request_id)
            if call is not None:
                call.ran = True
            if call is not None and started.request_id not in call.started:
                call.started.add(started.request_id)
                call.state = "running"
                call.grant.began(call.parts[started.request_id])
                if call.queue_seconds is None:
                    call.queue_seconds = started.at - call.began
                self.admission.started(call.request.client, len(call.prompt), event.at)
        for output in event.outputs:
            call = self._calls.get(output.request_id)
            if call is not None:
                call.answered += len(output.token_ids)
                index = call.parts[output.request_id]
                call.made[index] += len(output.token_ids)
                if self.placement is not None:
                    call.answers.setdefault(index, []).extend(output.token_ids)
                call.grant.output(index, call.made[index])
                if output.finish is not None:
                    call.finished.add(index)
                call.events.put_nowait((index, output))

    def _lost(self, device: str) -> None:
        """A worker died. What had sent a token ends; the rest is queued again, once."""
        self.routing.lost(device)
        if self.placement is not None:
            self.placement.lost(device)
        for call in self._calls_of(device):
            call.lost()  # one that waits for a worker to come up goes on waiting
        for name, _, answer in list(self._embeds.values()):
            if name == device:
                _fail(answer, WorkerLost("the worker died"))

    def _send(self, device: str, command: Command) -> None:
        self.supervisors[device].send(command)

    # --- workers --------------------------------------------------------------------------------
    def workers(self) -> list[WorkerStatus]:
        return [self.worker(name) for name in self.supervisors]

    def worker(self, name: str) -> WorkerStatus:
        """Raises NotFound, naming those that are there."""
        supervisor = self._supervisor(name)
        up = supervisor.up
        return WorkerStatus(
            name=name,
            state="away" if up is None else "up",
            draining=supervisor.draining,
            requests=len(self._calls_of(name)) + self._embedding(supervisor),
            models=list(supervisor.loaded),
            restarts=supervisor.restarts,
            pid=0 if up is None else up.pid,
            capacity_bytes=0 if up is None else up.capacity_bytes,
        )

    def _supervisor(self, name: str) -> Supervisor:
        if name not in self.supervisors:
            raise NotFound(f"no worker {name!r}; there are {', '.join(self.supervisors)}")
        return self.supervisors[name]

    def drain_worker(self, name: str, draining: bool = True) -> WorkerStatus:
        """Send the worker nothing new; or, with False, take it back into service. What it has is
        finished there. The others must hold the models that are asked for; where models are placed,
        they are moved there, as far as there is room."""
        self._supervisor(name).draining = draining
        if draining and self.placement is not None:
            self.placement.drained(name)
        return self.worker(name)

    def _calls_of(self, device: str) -> list[Call]:
        return [
            call
            for call in self._open_calls()
            if call.submitted and call.supervisor is not None and call.supervisor.name == device
        ]

    # --- moving models --------------------------------------------------------------------------
    def entries(self) -> list[ServedModel]:
        return list(self._entries.values())

    def _find(self, model: str) -> ServedModel | None:
        return self._entries.get(model)

    def calls_at(self, device: str, model: str) -> list[Call]:
        return [call for call in self._calls_of(device) if call.request.model == model]

    def send_on(self, call: Call) -> None:
        """Take a call from its worker and send what is left of it to one that holds the model."""
        old = call.to_move()
        if not old or call.supervisor is None:
            return
        self.routing.ended(call.id, call.answered if call.ran else None)
        ids = {id: f"r{next(self._ids)}" for id in old}
        for id, new in ids.items():
            call.supervisor.send(Abort(id))
            self._calls[new] = self._calls.pop(id)
            self._ended[id] = call.request.id
        call.move(ids)
        entry = self._entries.get(call.request.model)
        if entry is not None and entry.holders():
            self._give(call, entry)
        else:
            call.events.put_nowait("moved")

    def embeds_at(self, device: str, model: str) -> int:
        return sum(place[:2] == (device, model) for place in self._embeds.values())

    def send_embeds_on(self, device: str, model: str) -> None:
        """Have texts that wait there embedded elsewhere."""
        for id, (place, name, answer) in list(self._embeds.items()):
            if (place, name) == (device, model):
                self._send(device, Abort(id))
                _fail(answer, WorkerLost(f"{model} was moved"))

    # --- looking inside -------------------------------------------------------------------------
    async def stats(self) -> list[DeviceStats]:
        """Every worker's state, with rates and pressures over the placement's window."""
        found = await asyncio.gather(*(s.stats() for s in self.supervisors.values()))
        states = [stats for stats in found if stats is not None]
        self.pressure.take(states, {n: s.settings for n, s in self.supervisors.items()})
        return states

    async def schedule(self, most: int) -> list[ScheduleReport]:
        """Every model's latest admissions and the first ``most`` of its queue, with reasons, from
        the workers that answer. Requests have the ids that ``queue`` gives them."""
        found = await asyncio.gather(*(s.schedule(most) for s in self.supervisors.values()))
        reports = [report for report in found if report is not None]
        for model in (model for report in reports for model in report.models):
            model.chosen = [self._public(place) for place in model.chosen]
            model.next = [self._public(place) for place in model.next]
        return reports

    def _public(self, place: QueuePlace) -> QueuePlace:
        id = place.request_id
        call = self._calls.get(id)
        return replace(
            place, request_id=self._ended.get(id, id) if call is None else call.request.id
        )

    def queue(self) -> list[RequestInfo]:
        now = self.clock.now()
        return [call.info(now) for call in self._open_calls()]

    def _open_calls(self) -> list[Call]:
        return list({id(call): call for call in self._calls.values()}.values())


def _fail(answer: asyncio.Future[EmbedResult], error: TenfoldError) -> None:
    if not answer.done():
        answer.set_exception(error)
