"""What the HTTP face needs from below: the fleet's service, or a fake one in tests.

Knows nothing of HTTP. Methods that are not ``async`` must answer from memory: they are called on
the event loop, except ``tokenize``, ``detokenize``, ``token_text`` and ``render``, which may also
be called from a worker thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

from tenfold.core.messages import DeviceStats, ScheduleReport
from tenfold.fleet.types import (
    ChatPrompt,
    EmbedResult,
    GenerateEvent,
    GenerateRequest,
    MemoryDecision,
    ModelStatus,
    RequestInfo,
    WorkerStatus,
)
from tenfold.scheduling.limits import Standing


class Backend(Protocol):
    """The seam between the HTTP face and whatever serves models.

    Every refusal is a TenfoldError: its status and code become the HTTP answer. Any other
    exception is a bug and becomes a 500.
    """

    def accepting(self) -> bool:
        """Whether new requests are taken at all: False while draining. A model that is not ready
        refuses for itself."""
        ...

    def ready(self) -> bool:
        """True when requests would succeed now."""
        ...

    def models(self) -> list[ModelStatus]: ...

    def status(self, name: str) -> ModelStatus:
        """Raises ModelNotFound, whose message lists what is served."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """An async generator of what is made: deltas, one ChoiceEnd a choice, one Finished last.

        Validation and admission errors are raised from the first ``__anext__``. Closing the
        generator (``aclose``, or cancelling the task that reads it) aborts the request and frees
        its blocks.
        """
        ...

    async def embed(
        self,
        model: str,
        inputs: list[str] | list[list[int]],
        client: str,
        keep_alive: float | None = None,
    ) -> EmbedResult:
        """``keep_alive`` as of a GenerateRequest."""
        ...

    def tokenize(self, model: str, text: str, *, special: bool = True) -> list[int]:
        """``special``: add the tokens the model wants at the start (BOS)."""
        ...

    def render(self, model: str, prompt: ChatPrompt) -> str:
        """The conversation as text, by the model's own template."""
        ...

    def detokenize(self, model: str, ids: list[int]) -> str: ...

    def token_text(self, model: str, id: int) -> str: ...

    async def load(self, name: str, source: str | None = None) -> ModelStatus:
        """Answers when the model is ready. Raises Conflict for one that is served or on its way."""
        ...

    async def unload(self, name: str, force: bool = False) -> None:
        """Raises Conflict while the model is pinned, unless forced. Its running requests fail."""
        ...

    def pin(self, name: str, pinned: bool) -> ModelStatus: ...

    async def sleep(
        self,
        name: str,
        to: Literal["host", "cold"] = "host",
        force: bool = False,
        hold: bool = False,
    ) -> ModelStatus:
        """Answers when the model sleeps. Raises Conflict while it is pinned, unless forced, and
        DeadlineExceeded while it is busy for long."""
        ...

    async def wake(self, name: str) -> ModelStatus:
        """Answers when the model's weights are there. Raises OutOfMemory where there is no room."""
        ...

    def set_residency(
        self,
        name: str,
        pinned: bool | None = None,
        ttl: float | None = None,
        floor: int | None = None,
        limit: int | None = None,
        evict_cost: float | None = None,
    ) -> ModelStatus:
        """None leaves a value as it is; ``ttl`` and ``limit`` below 0 lift theirs."""
        ...

    async def decisions(self, most: int) -> list[MemoryDecision]:
        """The latest decisions about memory, newest first."""
        ...

    async def drain(self) -> None:
        """Stop admitting; returns when running requests are done."""
        ...

    def workers(self) -> list[WorkerStatus]: ...

    def drain_worker(self, name: str, draining: bool = True) -> WorkerStatus:
        """No new requests for this worker, or (False) new ones again. Raises NotFound."""
        ...

    def standing(self, client: str) -> Standing | None:
        """Where a client stands against its hard limits; None where it has none."""
        ...

    async def stats(self) -> list[DeviceStats]: ...

    async def schedule(self, most: int) -> list[ScheduleReport]:
        """The latest admissions of every model and the first ``most`` of its queue, from the
        devices whose workers answer. Requests have the ids of ``queue``."""
        ...

    def queue(self) -> list[RequestInfo]:
        """Live requests."""
        ...
