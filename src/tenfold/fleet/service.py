"""The fleet's front door: what HTTP and in-process clients call.

Tokenises, checks, admits, sends to the worker that holds the model, and turns its tokens back into
text. A worker that dies costs only the requests that had already sent a token; the others are
queued again. Holds no model and no tensor.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tenfold.core.clock import Clock, SystemClock
from tenfold.core.errors import (
    Conflict,
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    TenfoldError,
    Unavailable,
    WorkerLost,
    from_code,
)
from tenfold.core.messages import (
    Abort,
    DeviceStats,
    Embed,
    Embedded,
    Event,
    Generate,
    LoadModel,
    ModelOptions,
    RequestFailed,
    StepDone,
    TokenOutput,
)
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import Constraint, EngineRequest, ModelFacts, Usage
from tenfold.fleet.generation import ChoiceStream, Parsers, wants_tools
from tenfold.fleet.supervisor import Supervisor
from tenfold.fleet.types import (
    ChatPrompt,
    ChoiceEnd,
    EmbedResult,
    Finished,
    GenerateEvent,
    GenerateRequest,
    ModelState,
    ModelStatus,
    RequestInfo,
)
from tenfold.fleet.workers import LocalWorker, Worker
from tenfold.scheduling.admission import AdmissionController
from tenfold.text.grammar_check import GrammarGate
from tenfold.text.model_text import ModelText, load_model_text

log = logging.getLogger("tenfold.fleet")

RETURN_SECONDS = 10.0
LONG_TEXT = 20_000


@dataclass(slots=True)
class ModelSource:
    """A model to serve: where its files are and how to load it."""

    name: str
    path: str
    options: ModelOptions = field(default_factory=ModelOptions)
    device: str | None = None
    pinned: bool = False
    licence: str = ""


@dataclass(slots=True)
class _Entry:
    source: ModelSource
    supervisor: Supervisor
    state: ModelState
    created: int
    text: ModelText | None = None
    facts: ModelFacts | None = None
    error: str = ""


@dataclass(slots=True, eq=False)
class _Call:
    """One request in flight: its engine requests, by id, and what comes back for them."""

    request: GenerateRequest
    prompt: list[int]
    began: float
    parts: dict[str, int]
    events: asyncio.Queue[tuple[int, TokenOutput] | TenfoldError | None]
    supervisor: Supervisor
    resend: list[EngineRequest]
    state: Literal["waiting", "running"] = "waiting"
    submitted: bool = False
    sent_token: bool = False
    generated: int = 0
    cached: int = 0
    started: set[str] = field(default_factory=set)


class Service:
    """Models on devices, and the calls that run on them. All methods belong to one event loop."""

    def __init__(
        self,
        devices: list[DeviceSettings],
        models: Iterable[ModelSource],
        *,
        admission: AdmissionController,
        make_worker: Callable[[DeviceSettings], Worker] = LocalWorker,
        find_source: Callable[[str, str | None], ModelSource] | None = None,
        clock: Clock | None = None,
        gate: GrammarGate | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.admission = admission
        self.supervisors = {
            d.name: Supervisor(d, make_worker, self._take, self._lost, self.clock) for d in devices
        }
        self._configured = list(models)
        self._find_source = find_source
        self._entries: dict[str, _Entry] = {}
        self._calls: dict[str, _Call] = {}
        self._embeds: dict[str, tuple[str, asyncio.Future[EmbedResult]]] = {}
        self._ids = itertools.count(1)
        self._gate = gate or GrammarGate()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    # --- life -----------------------------------------------------------------------------------
    async def start(self) -> None:
        """Start every worker and load every model. Raises what the first failure was."""
        for supervisor in self.supervisors.values():
            await supervisor.start()
        for source in self._configured:
            await self._add(source)

    async def close(self) -> None:
        for call in set(self._calls.values()):
            call.events.put_nowait(Unavailable("the server is stopping"))
        await asyncio.gather(*(s.stop() for s in self.supervisors.values()))

    async def drain(self) -> None:
        """Admit nothing more; return when no call is left."""
        self._draining = True
        await self._idle.wait()

    def accepting(self) -> bool:
        return not self._draining

    def ready(self) -> bool:
        """Whether a request would succeed now: not draining, and every model's worker holds it."""
        return (
            not self._draining
            and bool(self._entries)
            and all(e.state != "loading" for e in self._entries.values())
            and all(
                name in e.supervisor.loaded
                for name, e in self._entries.items()
                if e.state == "ready"
            )
        )

    # --- models ---------------------------------------------------------------------------------
    def models(self) -> list[ModelStatus]:
        return [self.status(name) for name in self._entries]

    def status(self, name: str) -> ModelStatus:
        entry = self._entry(name)
        state = entry.state
        if state == "ready" and name not in entry.supervisor.loaded:
            state = "loading"
        return ModelStatus(
            name=name,
            state=state,
            device=entry.supervisor.name,
            pinned=entry.source.pinned,
            facts=entry.facts,
            has_chat_template=entry.text is not None and entry.text.template is not None,
            licence=entry.source.licence,
            created=entry.created,
            error=entry.error,
        )

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            served = ", ".join(self._entries) or "none"
            raise ModelNotFound(
                f"the model {name!r} is not served here (served: {served})", param="model"
            )
        return self._entries[name]

    def _text(self, name: str) -> ModelText:
        entry = self._entry(name)
        if entry.text is None:
            raise Unavailable(f"{name} is still loading; try again soon", retry_after=1)
        return entry.text

    async def load(self, name: str, source: str | None = None) -> ModelStatus:
        """Serve one more model. ``source``: catalogue name, path or hub id; default its name."""
        if name in self._entries and self._entries[name].state != "failed":
            raise Conflict(f"{name} is served already", param="model")
        if self._find_source is None:
            raise InvalidRequest("this server serves a fixed list of models", param="model")
        found = await asyncio.to_thread(self._find_source, name, source)
        await self._add(found)
        return self.status(name)

    async def _add(self, source: ModelSource) -> None:
        entry = _Entry(source, self._place(source), "loading", int(time.time()))
        self._entries[source.name] = entry
        try:
            text = asyncio.to_thread(load_model_text, source.path)
            command = LoadModel(source.name, source.path, source.options)
            facts = asyncio.ensure_future(entry.supervisor.load(command))
            try:
                entry.text = await text
            except BaseException:
                facts.cancel()
                entry.supervisor.unload(source.name)
                raise
            entry.facts = await facts
        except TenfoldError as error:
            entry.state, entry.error = "failed", error.message
            raise
        entry.state = "ready"

    def _place(self, source: ModelSource) -> Supervisor:
        """The device that was asked for, else the one with the fewest models."""
        if source.device is not None:
            if source.device not in self.supervisors:
                raise InvalidRequest(
                    f"no device {source.device!r}; there are {', '.join(self.supervisors)}",
                    param="device",
                )
            return self.supervisors[source.device]
        return min(self.supervisors.values(), key=lambda s: len(s.wanted))

    async def unload(self, name: str, force: bool = False) -> None:
        """Stop serving a model. A pinned one refuses unless forced; its running calls fail."""
        entry = self._entry(name)
        if entry.source.pinned and not force:
            raise Conflict(f"{name} is pinned; unpin it first, or force", param="model")
        self._entries.pop(name)
        entry.supervisor.unload(name)

    def pin(self, name: str, pinned: bool) -> ModelStatus:
        self._entry(name).source.pinned = pinned
        return self.status(name)

    # --- text -----------------------------------------------------------------------------------
    def tokenize(self, model: str, text: str, *, special: bool = True) -> list[int]:
        return self._text(model).tokenizer.encode(text, special=special)

    def detokenize(self, model: str, ids: list[int]) -> str:
        tokenizer = self._text(model).tokenizer
        wrong = next((i for i in ids if not 0 <= i < tokenizer.vocab_size), None)
        if wrong is not None:
            raise InvalidRequest(
                f"token id {wrong} is outside {model}'s vocabulary of {tokenizer.vocab_size}",
                param="tokens",
            )
        return tokenizer.decode(ids, skip_special=False)

    def token_text(self, model: str, id: int) -> str:
        return self._text(model).tokenizer.token_bytes(id).decode("utf-8", "replace")

    def render(self, model: str, prompt: ChatPrompt) -> str:
        return self._text(model).render(
            model,
            prompt.messages,
            tools=_tools(prompt),
            **prompt.template_kwargs,
        )

    async def _prompt_ids(self, request: GenerateRequest) -> list[int]:
        text = self._text(request.model)
        if isinstance(request.prompt, ChatPrompt):
            return await self._encode_chat(request.model, request.prompt)
        if isinstance(request.prompt.text, str):
            return await self._encode(
                request.model, request.prompt.text, special=True, param="prompt"
            )
        size = text.tokenizer.vocab_size
        wrong = next((i for i in request.prompt.text if not 0 <= i < size), None)
        if wrong is not None:
            raise InvalidRequest(
                f"token id {wrong} is outside {request.model}'s vocabulary of {size}",
                param="prompt",
            )
        return request.prompt.text

    async def _encode(self, model: str, what: str, *, special: bool, param: str) -> list[int]:
        """Tokenise; a long text on a thread, so that others' tokens keep flowing, and one that
        cannot fit not at all."""
        tokenizer = self._text(model).tokenizer
        if len(what) < LONG_TEXT:
            return tokenizer.encode(what, special=special, param=param)
        self._refuse_hopeless(model, what, param)
        return await asyncio.to_thread(tokenizer.encode, what, special=special, param=param)

    async def _encode_chat(self, model: str, prompt: ChatPrompt) -> list[int]:
        """The conversation's tokens; what looks like a control token in it is plain text."""

        def encode() -> list[int]:
            return self._text(model).encode_chat(
                model, prompt.messages, tools=_tools(prompt), **prompt.template_kwargs
            )

        if sum(len(str(message)) for message in prompt.messages) < LONG_TEXT:
            return encode()
        rendered = await asyncio.to_thread(self.render, model, prompt)
        self._refuse_hopeless(model, rendered, "messages")
        return await asyncio.to_thread(encode)

    def _refuse_hopeless(self, model: str, what: str, param: str) -> None:
        facts = self._entry(model).facts
        least = self._text(model).tokenizer.least_tokens(what)
        if facts is not None and least > facts.context_length:
            raise ContextTooLong(
                f"the text has at least {least} tokens and {model}'s context holds "
                f"{facts.context_length}; shorten it",
                param=param,
            )

    # --- generating -----------------------------------------------------------------------------
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Run one call. Errors of checking and admission come from the first step of the iterator;
        closing it aborts the call and frees its blocks within one engine step."""
        entry = self._entry(request.model)
        began = self.clock.now()
        self._check(entry, request)
        prompt = await self._prompt_ids(request)
        self._check_length(entry, request, prompt)
        constraint = await self._constraint(request)
        call = self._open_call(entry, request, prompt, constraint, began)
        self._idle.clear()
        try:
            choices = [self._choice(i, request, prompt, entry) for i in range(request.sampling.n)]
            await self._submit(call)
            async for event in self._stream(call, choices):
                yield event
            usage = Usage(len(prompt), sum(c.generated for c in choices), call.cached)
            yield Finished(usage)
        finally:
            self._close_call(call)

    def _check(self, entry: _Entry, request: GenerateRequest) -> None:
        if self._draining:
            raise Unavailable("the server is draining and takes no new requests", retry_after=30)
        if entry.facts is not None and entry.facts.kind == "embed":
            raise InvalidRequest(
                f"{request.model} is an embedding model; use /v1/embeddings", param="model"
            )

    def _check_length(self, entry: _Entry, request: GenerateRequest, prompt: list[int]) -> None:
        if not prompt:
            raise InvalidRequest("the prompt is empty; give at least one token", param="prompt")
        context = entry.facts.context_length if entry.facts else len(prompt) + 1
        if len(prompt) >= context:
            field_name = "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"
            raise ContextTooLong(
                f"the prompt has {len(prompt)} tokens and {request.model}'s context holds "
                f"{context}, one of them for the answer; shorten it",
                param=field_name,
            )

    def _open_call(
        self,
        entry: _Entry,
        request: GenerateRequest,
        prompt: list[int],
        constraint: Constraint | None,
        began: float,
    ) -> _Call:
        count = request.sampling.n
        parts = {f"r{next(self._ids)}": i for i in range(count)}
        requests = [
            self._engine_request(request, prompt, constraint, began, id, i)
            for id, i in parts.items()
        ]
        for done in range(count):
            try:
                self.admission.admit(request.client, len(prompt), began)
            except TenfoldError:
                for _ in range(done):
                    self.admission.gone(request.client, len(prompt), queued=True)
                raise
        call = _Call(request, prompt, began, parts, asyncio.Queue(), entry.supervisor, requests)
        self._calls.update(dict.fromkeys(parts, call))
        return call

    def _engine_request(
        self,
        request: GenerateRequest,
        prompt: list[int],
        constraint: Constraint | None,
        began: float,
        id: str,
        index: int,
    ) -> EngineRequest:
        sampling = replace(request.sampling, n=1, constraint=constraint)
        if sampling.seed is not None:
            sampling.seed += index
        return EngineRequest(
            id=id,
            model=request.model,
            client=request.client,
            prompt=prompt,
            sampling=sampling,
            arrival=began,
            namespace=request.cache_salt,
            priority=request.priority,
            deadline=began + request.timeout if request.timeout else None,
            itl_target=request.itl_target,
        )

    async def _constraint(self, request: GenerateRequest) -> Constraint | None:
        """What the output must match: the call that tool_choice asks for, else the request's own
        constraint, which the face that took it has checked (``check_constraint``)."""
        prompt = request.prompt
        if not isinstance(prompt, ChatPrompt) or prompt.tool_choice in ("auto", "none"):
            return request.sampling.constraint
        from tenfold.text.parsers.tools import tool_constraint

        constraint = tool_constraint(
            prompt.tools,
            prompt.tool_choice,
            self._tool_style(request.model),
            parallel=prompt.parallel_tool_calls,
        )
        await self.check_constraint(constraint, param="tools")
        return constraint

    async def check_constraint(self, constraint: Constraint, param: str | None = None) -> None:
        """Try a constraint out in a process of its own, because a hostile one can hang or crash
        whoever compiles it. Raises InvalidRequest; verdicts are remembered."""
        await asyncio.to_thread(self._gate.check, constraint, param=param)

    def _tool_style(self, model: str) -> str:
        from tenfold.text.parsers.tools import pick_tool_style

        entry = self._entry(model)
        template = entry.text.template if entry.text else None
        family = entry.facts.family if entry.facts else ""
        return pick_tool_style(template.source if template else "", family)

    def _choice(
        self, index: int, request: GenerateRequest, prompt: list[int], entry: _Entry
    ) -> ChoiceStream:
        tokenizer = self._text(request.model).tokenizer
        parsers = Parsers()
        if wants_tools(request.prompt):
            from tenfold.text.parsers.tools import tool_parser

            parsers.tools = tool_parser(
                self._tool_style(request.model),
                request.prompt.tools,  # type: ignore[union-attr]
            )
        if isinstance(request.prompt, ChatPrompt) and request.split_reasoning:
            from tenfold.text.parsers.reasoning import reasoning_parser

            template = entry.text.template if entry.text else None
            tail = tokenizer.decode(prompt[-16:], skip_special=False)
            parsers.reasoning = reasoning_parser(template.source if template else "", tail)
        return ChoiceStream(index, request, prompt, tokenizer, parsers)

    async def _submit(self, call: _Call) -> None:
        """Send to the worker, waiting for it to come back if it is away."""
        name = call.request.model
        if name not in call.supervisor.loaded:
            self._entry(name)
            await call.supervisor.wait_for(name, self._patience(call))
        for part in call.resend:
            call.supervisor.send(Generate(part))
        call.submitted = True

    def _patience(self, call: _Call) -> float:
        if call.request.timeout is None:
            return RETURN_SECONDS
        return min(RETURN_SECONDS, max(0.0, call.began + call.request.timeout - self.clock.now()))

    async def _stream(
        self, call: _Call, choices: list[ChoiceStream]
    ) -> AsyncIterator[GenerateEvent]:
        open_choices = len(choices)
        while open_choices:
            item = await self._next(call)
            if item is None:  # the worker died before a token was sent: once more from the start
                await self._submit(call)
                continue
            if isinstance(item, TenfoldError):
                raise item
            index, output = item
            call.cached = max(call.cached, output.cached_tokens)
            for event in choices[index].push(output):
                call.sent_token = True
                if isinstance(event, ChoiceEnd):
                    open_choices -= 1
                    self._end_part(call, index, aborted=output.finish is None)
                yield event

    async def _next(self, call: _Call) -> tuple[int, TokenOutput] | TenfoldError | None:
        """The engine enforces a request's deadline; this one holds even if the worker is away."""
        if call.request.timeout is None:
            return await call.events.get()
        late = call.began + call.request.timeout - self.clock.now() + 1.0
        try:
            # Not wait_for: before Python 3.12 it may swallow a cancellation that meets an event,
            # and a client that hung up would be answered to the end.
            async with asyncio.timeout(max(0.0, late)):
                return await call.events.get()
        except TimeoutError:
            return DeadlineExceeded(
                f"the request's time of {call.request.timeout:g} s ran out", param="timeout"
            )

    def _end_part(self, call: _Call, index: int, *, aborted: bool) -> None:
        id = next((id for id, i in call.parts.items() if i == index), None)
        if id is None:
            return
        del call.parts[id]
        self._calls.pop(id, None)
        self.admission.gone(call.request.client, len(call.prompt), queued=id not in call.started)
        if aborted:
            call.supervisor.send(Abort(id))

    def _close_call(self, call: _Call) -> None:
        for index in list(call.parts.values()):
            self._end_part(call, index, aborted=True)
        self._settle_idle()

    # --- embeddings -----------------------------------------------------------------------------
    async def embed(
        self, model: str, inputs: list[str] | list[list[int]], client: str
    ) -> EmbedResult:
        """Unit vectors, one a text, in order."""
        if self._draining:
            raise Unavailable("the server is draining and takes no new requests", retry_after=30)
        entry = self._entry(model)
        if entry.facts is not None and entry.facts.kind != "embed":
            raise InvalidRequest(
                f"{model} generates text and has no embeddings to serve", param="model"
            )
        ids = [
            await self._encode(model, i, special=True, param="input") if isinstance(i, str) else i
            for i in inputs
        ]
        self._check_embed(entry, model, ids)
        tokens = sum(len(row) for row in ids)
        self.admission.admit(client, tokens, self.clock.now())
        self._idle.clear()
        try:
            while True:
                if model not in entry.supervisor.loaded:
                    await entry.supervisor.wait_for(model, RETURN_SECONDS)
                with contextlib.suppress(WorkerLost):  # nothing was sent yet: ask the next worker
                    return await self._embed_once(entry.supervisor, model, ids)
        finally:
            self.admission.gone(client, tokens, queued=True)
            self._settle_idle()

    async def _embed_once(
        self, supervisor: Supervisor, model: str, ids: list[list[int]]
    ) -> EmbedResult:
        id = f"e{next(self._ids)}"
        answer: asyncio.Future[EmbedResult] = asyncio.get_running_loop().create_future()
        self._embeds[id] = (supervisor.name, answer)
        try:
            supervisor.send(Embed(id, model, ids))
            return await answer
        finally:
            if answer.cancelled():
                supervisor.send(Abort(id))
            self._embeds.pop(id, None)

    def _settle_idle(self) -> None:
        if not self._calls and not self._embeds:
            self._idle.set()

    def _check_embed(self, entry: _Entry, model: str, ids: list[list[int]]) -> None:
        facts = entry.facts
        for row in ids:
            if not row:
                raise InvalidRequest("an input is empty; give at least one token", param="input")
            if facts is not None and len(row) > facts.context_length:
                raise ContextTooLong(
                    f"an input has {len(row)} tokens and {model} takes {facts.context_length}; "
                    "shorten it",
                    param="input",
                )
            if facts is not None and not all(0 <= i < facts.vocab_size for i in row):
                raise InvalidRequest(
                    f"a token id is outside {model}'s vocabulary of {facts.vocab_size}",
                    param="input",
                )

    # --- what workers say -----------------------------------------------------------------------
    def _take(self, event: Event) -> None:
        match event:
            case StepDone():
                self._step_done(event)
            case RequestFailed(id, code, message, param):
                error = from_code(code, message, param=param)
                if id in self._embeds:
                    _fail(self._embeds[id][1], error)
                elif id in self._calls:
                    self._calls[id].events.put_nowait(error)
            case Embedded(id, vectors, tokens):
                if id in self._embeds and not self._embeds[id][1].done():
                    self._embeds[id][1].set_result(EmbedResult(vectors, tokens))

    def _step_done(self, event: StepDone) -> None:
        for started in event.started:
            call = self._calls.get(started.request_id)
            if call is not None and started.request_id not in call.started:
                call.started.add(started.request_id)
                call.state = "running"
                self.admission.started(call.request.client, len(call.prompt), event.at)
        for output in event.outputs:
            call = self._calls.get(output.request_id)
            if call is not None:
                call.generated += len(output.token_ids)
                call.events.put_nowait((call.parts[output.request_id], output))

    def _lost(self, device: str) -> None:
        """A worker died. What had sent a token ends; the rest is queued again."""
        for call in {id(c): c for c in self._calls.values()}.values():
            if call.supervisor.name != device or not call.submitted:
                continue  # one that waits for the worker to come up goes on waiting
            call.submitted = False
            while not call.events.empty():
                call.events.get_nowait()
            call.state = "waiting"
            call.events.put_nowait(
                WorkerLost(f"the worker of {call.request.model} died while it was answering")
                if call.sent_token
                else None
            )
        for name, answer in list(self._embeds.values()):
            if name == device:
                _fail(answer, WorkerLost("the worker died"))

    # --- looking inside -------------------------------------------------------------------------
    async def stats(self) -> list[DeviceStats]:
        found = await asyncio.gather(*(s.stats() for s in self.supervisors.values()))
        return [stats for stats in found if stats is not None]

    def queue(self) -> list[RequestInfo]:
        now = self.clock.now()
        calls = {id(c): c for c in self._calls.values()}.values()
        return [
            RequestInfo(
                id=c.request.id,
                client=c.request.client,
                model=c.request.model,
                state=c.state,
                prompt_tokens=len(c.prompt),
                generated=c.generated,
                age=now - c.began,
            )
            for c in calls
        ]


def _tools(prompt: ChatPrompt) -> list[dict[str, Any]] | None:
    return prompt.tools if prompt.tools and prompt.tool_choice != "none" else None


def _fail(answer: asyncio.Future[EmbedResult], error: TenfoldError) -> None:
    if not answer.done():
        answer.set_exception(error)


__all__ = ["ModelSource", "Service"]
