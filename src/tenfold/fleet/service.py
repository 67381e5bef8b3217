"""The fleet's front door: what HTTP and in-process clients call.

Tokenises, checks and admits, and turns the tokens that come back into text. Models are kept by
``book``, calls go to workers by ``dispatch`` and ``embeddings``, and where models belong is said by
``places``. Holds no model and no tensor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from functools import partial
from typing import Literal

from tenfold.core.clock import Clock, SystemClock
from tenfold.core.errors import (
    InvalidRequest,
    NotFound,
    TenfoldError,
    Unavailable,
    from_code,
)
from tenfold.core.messages import (
    DeviceStats,
    Embedded,
    Event,
    RequestFailed,
    ScheduleReport,
    StepDone,
)
from tenfold.core.settings import DeviceSettings, PlacementSettings, RoutingSettings, Share
from tenfold.core.types import Constraint, ModelKind, Usage
from tenfold.fleet.book import FindSource, ModelBook
from tenfold.fleet.calls import Call
from tenfold.fleet.dispatch import Dispatch
from tenfold.fleet.door import Door
from tenfold.fleet.embeddings import Embeddings
from tenfold.fleet.generation import ChoiceStream
from tenfold.fleet.placement import Placements
from tenfold.fleet.places import Everywhere, Places
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
from tenfold.scheduling.limits import RateLimiter, Standing
from tenfold.text.grammar_check import GrammarGate


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
        find_source: FindSource | None = None,
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
        self.residency = Residency(self.clock)
        placing = placement or PlacementSettings()
        self.pressure = Pressure(placing.window, self.clock, lambda name: self.book.find(name))
        self.places: Places = Everywhere(self.supervisors)
        if placing.policy != "replicate":
            self.places = Placements(placing, self, self.pressure, self.clock)
        self.book: ModelBook = ModelBook(models, self.places, find_source)
        sizes = [device.block_tokens for device in devices]
        send = {name: supervisor.send for name, supervisor in self.supervisors.items()}
        routes = Routing(routing or RoutingSettings(), sizes, self.clock, send)
        self.dispatch = Dispatch(
            self.supervisors, self.book, self.places, routes, admission, self.clock
        )
        self.embeddings = Embeddings(self.dispatch, self.places)
        self._gate = gate or GrammarGate()
        self._door = Door()

    # --- life -----------------------------------------------------------------------------------
    async def start(self) -> None:
        """Start every worker and load every model. Raises what the first failure was."""
        for supervisor in self.supervisors.values():
            await supervisor.start()
        await self.book.start()
        self.places.start()

    async def close(self) -> None:
        """End what runs with Unavailable, then the workers."""
        self._door.open = False
        stopping = Unavailable("the server is stopping")
        self.dispatch.fail_all(stopping)
        self.embeddings.fail_all(stopping)
        await self.places.stop()
        await asyncio.gather(*(s.stop() for s in self.supervisors.values()))

    async def drain(self) -> None:
        """Admit nothing more; return when no call is left."""
        await self._door.drain()

    def accepting(self) -> bool:
        return self._door.open

    def ready(self) -> bool:
        """Whether requests would succeed now: not draining, a model is up, and so is every one
        that the server was started with. One that an administrator adds may take its time."""
        return self._door.open and self.book.ready()

    # --- clients --------------------------------------------------------------------------------
    def set_shares(self, shares: Iterable[Share]) -> None:
        """The whole tree of shares, in place of the one before: for every worker that is up, and
        every one that comes up, and for the router."""
        self.shares = list(shares)
        for supervisor in self.supervisors.values():
            supervisor.set_shares(self.shares)
        self.dispatch.routing.set_shares(self.shares)

    def standing(self, client: str) -> Standing | None:
        """Where the client stands against its hard limits; None where it has none."""
        return self.limiter.standing(client)

    # --- models ---------------------------------------------------------------------------------
    def models(self) -> list[ModelStatus]:
        return [entry.status() for entry in self.book.entries()]

    def status(self, name: str) -> ModelStatus:
        return self.book.entry(name).status()

    async def load(self, name: str, source: str | None = None) -> ModelStatus:
        """Serve one more model. ``source``: catalogue name, path or hub id; default its name.
        Raises Conflict for a name that is served or on its way; Unavailable if it is unloaded
        meanwhile."""
        await self.book.load(name, source)
        return self.status(name)

    async def unload(self, name: str, force: bool = False) -> None:
        """Stop serving a model. A pinned one refuses unless forced; its running calls fail."""
        self.book.unload(name, force)

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
        await self.residency.sleep(self.book.entry(name), to, force=force, hold=hold)
        return self.status(name)

    async def wake(self, name: str) -> ModelStatus:
        """See ``Residency.wake``."""
        await self.residency.wake(self.book.entry(name))
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
        self.residency.change(self.book.entry(name), change)
        return self.status(name)

    async def decisions(self, most: int) -> list[MemoryDecision]:
        """The latest decisions about memory, newest first, with reasons."""
        return await self.residency.decisions(self.supervisors.values(), most)

    # --- text -----------------------------------------------------------------------------------
    def tokenize(self, model: str, text: str, *, special: bool = True) -> list[int]:
        return self.book.entry(model).words.tokenizer.encode(text, special=special)

    def detokenize(self, model: str, ids: list[int]) -> str:
        entry = self.book.entry(model)
        entry.check_ids(ids, "tokens")
        return entry.words.tokenizer.decode(ids, skip_special=False)

    def token_text(self, model: str, id: int) -> str:
        return self.book.entry(model).words.tokenizer.token_text(id)

    def render(self, model: str, prompt: ChatPrompt) -> str:
        return self.book.entry(model).render(prompt)

    # --- generating -----------------------------------------------------------------------------
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Run one call. Errors of checking and admission come from the first step of the iterator;
        closing it aborts the call and frees its blocks within one engine step."""
        began = self.clock.now()
        entry = self._open_to(request.model, "generate")
        with self._door.inside(), self.limiter.enter(request.client, request.sampling.n) as grant:
            prompt = await entry.prompt_ids(request)
            constraint = request.sampling.constraint
            chat = request.prompt if isinstance(request.prompt, ChatPrompt) else None
            if chat is not None and (forced := entry.forced_call(chat)):
                constraint = forced
                await self.check_constraint(constraint, param="tools")
            self._door.check()
            grant.reserve(len(prompt), request.sampling.max_tokens, entry.room_after(len(prompt)))
            call = self.dispatch.open(request, prompt, constraint, began, grant)
            alarm = call.alarm(self.clock.now())
            try:
                choices = [entry.choice(i, request, prompt) for i in range(request.sampling.n)]
                await self.dispatch.submit(call)
                async for event in self._stream(call, entry, choices):
                    yield event
                usage = Usage(len(prompt), sum(c.generated for c in choices), call.cached)
                yield Finished(usage, call.queue_seconds)
            finally:
                if alarm is not None:
                    alarm.cancel()
                self.dispatch.close(call)

    def _open_to(self, model: str, what: ModelKind) -> ServedModel:
        """The model, if requests of this kind are taken for it now."""
        self._door.check()
        entry = self.book.entry(model)
        if entry.facts is not None and entry.facts.kind != what:
            raise InvalidRequest(
                f"{model} is an embedding model; use /v1/embeddings"
                if what == "generate"
                else f"{model} generates text and has no embeddings to serve",
                param="model",
            )
        return entry

    async def check_constraint(self, constraint: Constraint, param: str | None = None) -> None:
        """Try a constraint out in a process of its own, because a hostile one can hang or crash
        whoever compiles it. Raises InvalidRequest; verdicts are remembered."""
        await asyncio.to_thread(self._gate.check, constraint, param=param)

    async def _stream(
        self, call: Call, entry: ServedModel, choices: list[ChoiceStream]
    ) -> AsyncIterator[Delta | ChoiceEnd]:
        """What the choices become. A ``whole`` call's events are kept back until all are there."""
        held: list[Delta | ChoiceEnd] = []
        while call.parts:
            item = await call.events.get()
            if item == "moved":
                await self.dispatch.submit(call)
                continue
            if item is None:  # the worker died before a token was sent: once more from the start
                again = set(call.parts.values())
                held = [event for event in held if event.index not in again]
                for index in again:
                    choices[index] = entry.choice(index, call.request, call.prompt)
                await self.dispatch.submit(call)
                continue
            if isinstance(item, TenfoldError):
                raise item
            index, output = item
            call.cached = max(call.cached, output.cached_tokens)
            for event in choices[index].push(output):
                if isinstance(event, ChoiceEnd):
                    self.dispatch.end_part(call, index, aborted=output.finish is None)
                else:
                    event.at = self.clock.now() if call.request.whole else None
                if call.request.whole:
                    held.append(event)
                else:
                    call.sent_token = True
                    yield event
        for event in held:
            yield event

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
        with self._door.inside(), self.limiter.enter(client) as grant:
            ids = await entry.embed_ids(inputs)
            self._door.check()
            tokens = sum(len(row) for row in ids)
            grant.reserve(tokens, 0, 0)
            self.admission.admit(client, tokens, self.clock.now())
            try:
                result = await self.embeddings.embed(entry, ids, keep_alive)
                grant.began(0)
                return result
            finally:
                self.admission.gone(client, tokens, queued=True)

    # --- what workers say -----------------------------------------------------------------------
    def _take(self, device: str, event: Event) -> None:
        self.dispatch.routing.heard(device, event)
        self.places.heard(device, event)
        match event:
            case StepDone():
                self.dispatch.step_done(event)
            case Embedded():
                self.embeddings.embedded(event)
            case RequestFailed(id, code, message, param):
                error = from_code(code, message, param=param)
                self.dispatch.failed(id, error)
                self.embeddings.failed(id, error)

    def _lost(self, device: str) -> None:
        """A worker died."""
        self.dispatch.routing.lost(device)
        self.places.lost(device)
        self.dispatch.lost(device)
        self.embeddings.lost(device)

    # --- workers --------------------------------------------------------------------------------
    def workers(self) -> list[WorkerStatus]:
        return [self.worker(name) for name in self.supervisors]

    def worker(self, name: str) -> WorkerStatus:
        """Raises NotFound, naming those that are there."""
        if name not in self.supervisors:
            raise NotFound(f"no worker {name!r}; there are {', '.join(self.supervisors)}")
        supervisor = self.supervisors[name]
        up = supervisor.up
        return WorkerStatus(
            name=name,
            state="away" if up is None else "up",
            draining=supervisor.draining,
            requests=len(self.dispatch.of(name)) + self.embeddings.at(name),
            models=list(supervisor.loaded),
            restarts=supervisor.restarts,
            pid=0 if up is None else up.pid,
            capacity_bytes=0 if up is None else up.capacity_bytes,
        )

    def drain_worker(self, name: str, draining: bool = True) -> WorkerStatus:
        """Send the worker nothing new; or, with False, take it back into service. What it has is
        finished there. The others must hold the models that are asked for; where models are placed,
        they are moved there, as far as there is room."""
        status = self.worker(name)
        self.supervisors[name].draining = status.draining = draining
        if draining:
            self.places.drained(name)
        return status

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
            model.chosen = [self.dispatch.public(place) for place in model.chosen]
            model.next = [self.dispatch.public(place) for place in model.next]
        return reports

    def queue(self) -> list[RequestInfo]:
        now = self.clock.now()
        return [call.info(now) for call in self.dispatch.calls()]
