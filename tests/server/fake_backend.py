"""A backend without models: scripted tokens, gates to hold them back, a memory of the asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tenfold.core.errors import Conflict, ModelNotFound, NotFound, TenfoldError
from tenfold.core.messages import (
    ClientStats,
    DeviceStats,
    ModelSchedule,
    ModelStats,
    QueuePlace,
    ScheduleReport,
    Spread,
)
from tenfold.core.types import ModelFacts, Usage
from tenfold.fleet.types import (
    ChatPrompt,
    ChoiceEnd,
    Delta,
    EmbedResult,
    Finished,
    GenerateEvent,
    GenerateRequest,
    LogprobEntry,
    MemoryDecision,
    ModelStatus,
    RequestInfo,
    WorkerStatus,
)
from tenfold.scheduling.limits import Standing

VOCABULARY = 0x110000
DEFAULT_TOKENS = ["Hello", ",", " world", "!"]


def facts(name: str, kind: str = "generate") -> ModelFacts:
    return ModelFacts(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        family="fake",
        context_length=2048,
        vocab_size=VOCABULARY,
        hidden_size=4,
        parameters=1000,
        weight_bytes=4000,
        kv_bytes_per_token=64,
        eos_ids=[0],
    )


def default_models() -> dict[str, ModelStatus]:
    def model(name: str, kind: str = "generate", template: bool = True) -> ModelStatus:
        return ModelStatus(
            name=name,
            state="ready",
            device="cpu:0",
            facts=facts(name, kind),
            has_chat_template=template and kind == "generate",
            licence="Apache-2.0",
            created=1_700_000_000,
            residency={"cpu:0": "resident"},
        )

    made = [model("tiny"), model("base", template=False), model("embedder", "embed")]
    return {status.name: status for status in made}


@dataclass
class FakeBackend:
    """``tokens`` are what every choice says. ``hold_after`` tokens, a request waits for ``gate``.

    ``fail`` is raised from the first ``__anext__``, ``fail_later`` after the tokens. ``events``
    replaces the whole script of a request.
    """

    served: dict[str, ModelStatus] = field(default_factory=default_models)
    tokens: list[str] = field(default_factory=lambda: list(DEFAULT_TOKENS))
    hold_after: int | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    fail: TenfoldError | Exception | None = None
    fail_later: TenfoldError | Exception | None = None
    events: Callable[[GenerateRequest], list[GenerateEvent]] | None = None
    requests: list[GenerateRequest] = field(default_factory=list)
    embedded: list[tuple[str, list[str] | list[list[int]], str]] = field(default_factory=list)
    kept: list[float | None] = field(default_factory=list)
    told: list[tuple[str, str, object]] = field(default_factory=list)
    log: list[MemoryDecision] = field(default_factory=list)
    live: dict[str, GenerateRequest] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    draining: bool = False
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    is_ready: bool = True
    worker_draining: bool = False
    standings: dict[str, Standing] = field(default_factory=dict)
    made: int = 0
    clients: list[ClientStats] = field(default_factory=list)
    most: int = 0

    def accepting(self) -> bool:
        return self.is_ready and not self.draining

    def ready(self) -> bool:
        return self.is_ready

    def models(self) -> list[ModelStatus]:
        return list(self.served.values())

    def status(self, name: str) -> ModelStatus:
        if name not in self.served:
            names = ", ".join(self.served)
            raise ModelNotFound(f"no model {name[:80]!r}; served here: {names}", param="model")
        return self.served[name]

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        self.requests.append(request)
        if self.fail:
            raise self.fail
        self.live[request.id] = request
        finished = False
        try:
            script = self.events(request) if self.events else self._script(request)
            for position, event in enumerate(script):
                if position == self.hold_after:
                    self.reached.set()
                    await self.gate.wait()
                self.made += 1
                yield event
            if self.fail_later:
                raise self.fail_later
            finished = True
        finally:
            del self.live[request.id]
            if not finished:
                self.aborted.append(request.id)
                self.closed.set()

    def _script(self, request: GenerateRequest) -> list[GenerateEvent]:
        sampling = request.sampling
        limit = sampling.max_tokens or len(self.tokens)
        said = self.tokens[:limit]
        made: list[GenerateEvent] = []
        for index in range(sampling.n):
            for text in said:
                made.append(
                    Delta(
                        index,
                        text,
                        token_ids=[ord(text[0])],
                        logprobs=self._logprobs(text, sampling.logprobs),
                    )
                )
            finish = "stop" if len(said) == len(self.tokens) else "length"
            made.append(ChoiceEnd(index, finish))  # type: ignore[arg-type]
        usage = Usage(self._prompt_tokens(request), len(said) * sampling.n, cached_tokens=2)
        made.append(Finished(usage, queue_seconds=0.25))
        return made

    def _prompt_tokens(self, request: GenerateRequest) -> int:
        if isinstance(request.prompt, ChatPrompt):
            return len(self.render(request.model, request.prompt))
        return len(request.prompt.text)

    def _logprobs(self, text: str, top: int | None) -> list[LogprobEntry] | None:
        if top is None:
            return None
        rivals = [
            LogprobEntry(chr(97 + rank), 97 + rank, [97 + rank], float("-inf") if rank else -0.5)
            for rank in range(top)
        ]
        return [LogprobEntry(text, ord(text[0]), list(text.encode()), -0.5, rivals)]

    async def embed(
        self,
        model: str,
        inputs: list[str] | list[list[int]],
        client: str,
        keep_alive: float | None = None,
    ) -> EmbedResult:
        self.kept.append(keep_alive)
        self.embedded.append((model, inputs, client))
        if self.fail:
            raise self.fail
        if self.hold_after is not None:
            self.reached.set()
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.closed.set()
                raise
        return EmbedResult([[0.5, 0.5, -0.5, 0.5] for _ in inputs], sum(map(len, inputs)))

    def tokenize(self, model: str, text: str, *, special: bool = True) -> list[int]:
        return [1] * special + [ord(letter) for letter in text]

    def render(self, model: str, prompt: ChatPrompt) -> str:
        return "".join(f"<{m['role']}>{m['content'] or ''}" for m in prompt.messages)

    def detokenize(self, model: str, ids: list[int]) -> str:
        return "".join("\ufffd" if 0xD800 <= id < 0xE000 else chr(id) for id in ids)

    def token_text(self, model: str, id: int) -> str:
        return self.detokenize(model, [id])

    async def load(self, name: str, source: str | None = None) -> ModelStatus:
        if self.fail:
            raise self.fail
        if name not in self.served and source is None:
            raise ModelNotFound(f"no model {name[:80]!r} in the catalogue", param="model")
        return self.served.setdefault(
            name, ModelStatus(name, "ready", "cpu:0", facts=facts(name), has_chat_template=True)
        )

    async def unload(self, name: str, force: bool = False) -> None:
        if self.status(name).pinned and not force:
            raise Conflict(f"model {name!r} is pinned; unpin it first, or force")
        del self.served[name]

    def pin(self, name: str, pinned: bool) -> ModelStatus:
        status = self.status(name)
        status.pinned = pinned
        return status

    async def sleep(
        self, name: str, to: str = "host", force: bool = False, hold: bool = False
    ) -> ModelStatus:
        if self.fail:
            raise self.fail
        status = self.status(name)
        if status.pinned and not force:
            raise Conflict(f"model {name!r} is pinned; unpin it first, or force")
        self.told.append(("sleep", name, (to, force, hold)))
        status.residency, status.held = {"cpu:0": to}, hold  # type: ignore[dict-item]
        return status

    async def wake(self, name: str) -> ModelStatus:
        if self.fail:
            raise self.fail
        status = self.status(name)
        status.residency, status.held = {"cpu:0": "resident"}, False
        return status

    def set_residency(self, name: str, **changes: object) -> ModelStatus:
        status = self.status(name)
        self.told.append(("residency", name, changes))
        return status

    async def decisions(self, most: int) -> list[MemoryDecision]:
        return self.log[:most]

    async def drain(self) -> None:
        self.draining = True
        while self.live:
            await asyncio.sleep(0.005)
        self.drained.set()

    def workers(self) -> list[WorkerStatus]:
        models = list(self.served)
        live = len(self.live)
        return [WorkerStatus("cpu:0", "up", self.worker_draining, live, models, 1, 42, 1 << 30)]

    def drain_worker(self, name: str, draining: bool = True) -> WorkerStatus:
        if name != "cpu:0":
            raise NotFound(f"no worker {name[:80]!r}; there are cpu:0")
        self.worker_draining = draining
        return self.workers()[0]

    def standing(self, client: str) -> Standing | None:
        return self.standings.get(client)

    async def stats(self) -> list[DeviceStats]:
        def model(name: str, kv_pages: int) -> ModelStats:
            return ModelStats(
                name,
                "ready",
                running=len(self.live),
                waiting=1,
                waiting_tokens=7,
                steps=10,
                prompt_tokens=100,
                generated_tokens=self.made,
                drafted_tokens=9,
                accepted_tokens=5,
                preemptions=3,
                weight_pages=40,
                kv_pages=kv_pages,
                kv_blocks_used=4,
                kv_blocks_cached=2,
                kv_blocks_total=16,
                step_seconds=1.5,
                predicted_seconds=1.25,
                residency=self.served[name].residency.get("cpu:0", "resident"),
                held=self.served[name].held,
                cached_pages=kv_pages // 2,
                image_pages=40,
                limit_pages=90 if name == "tiny" else None,
                floor_pages=5,
                idle_seconds=12.5,
                sleeps_in=32.5 if name == "tiny" else None,
                wakes=4,
                sleeps=3,
                wake_seconds=0.25,
            )

        models = [model(name, 10 * rank) for rank, name in enumerate(self.served, 1)]
        mapped = sum(each.weight_pages + each.kv_pages for each in models)
        held = (400, mapped + 3, 8, (mapped + 3) * (2 << 20))
        more: dict[str, Any] = {
            "scratch_pages": 3,
            "clients": [replace(one) for one in self.clients],
            "rounds": 7,
        }
        more |= {"live_kv_bytes": 40 << 20, "virtual_bytes": 1 << 40, "pressure": 0.75}
        more |= {"map_seconds": Spread(100, 1e-5, 2e-5), "unmap_seconds": Spread(60, 3e-5, 4e-5)}
        more |= {"decided": {"wake": 12, "preempt": 2}}
        return [DeviceStats("s", "cpu:0", 2 << 20, *held, models, **more)]

    async def schedule(self, most: int) -> list[ScheduleReport]:
        self.most = most
        place = QueuePlace("chatcmpl-1", "ann", 40, 32, 1.5, "32 of 40 prompt tokens are cached")
        models = [
            ModelSchedule(name, "dlpm", [place], [place] * min(most, 3), 3)
            for name in ("tiny", "base")
        ]
        return [ScheduleReport("1", "cpu:0", models)]

    def queue(self) -> list[RequestInfo]:
        return [
            RequestInfo(request.id, request.client, request.model, "running", 10, 3, 1.5)
            for request in self.live.values()
        ]
