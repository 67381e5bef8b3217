"""``LLM``: models in this Python process, called like functions.

An event loop of its own runs on a thread, with the service and the engine in it; the caller sees
plain synchronous calls. vLLM's names where the meaning is the same.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from tenfold.client.base import Reply, ask, collect
from tenfold.client.inprocess import InProcessClient
from tenfold.core.errors import ConfigError, Unavailable
from tenfold.core.settings import DeviceSettings
from tenfold.core.types import SamplingParams
from tenfold.fleet.types import ChatPrompt, GenerateEvent, GenerateRequest, TextPrompt

T = TypeVar("T")
Messages = list[dict[str, Any]]


@dataclass(slots=True)
class RequestOutput:
    """What came back for one prompt. ``outputs`` has ``n`` choices."""

    prompt: str | list[int] | Messages
    reply: Reply

    @property
    def outputs(self) -> list[Any]:
        return self.reply.choices

    @property
    def text(self) -> str:
        return self.reply.text


class LLM:
    """One or more models, loaded here. Use ``with``, or call ``close``.

    ``models``: catalogue names, paths, or ``name=source``. Further settings are fields of
    ``DeviceSettings`` and ``ScheduleSettings`` (``memory_bytes``, ``threads``, ``policy``, …).
    Raises what ``tenfold serve`` would print.
    """

    def __init__(self, models: str | Sequence[str], **device: Any) -> None:
        names = [models] if isinstance(models, str) else list(models)
        if not names:
            raise ConfigError("an LLM needs at least one model")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="tenfold-llm", daemon=True
        )
        self._thread.start()
        self._closed = False
        try:
            self.client = self._run(_start(names, DeviceSettings.of(**device)))
        except BaseException:
            self._stop_loop()
            raise
        self.model = self._run(self.client.models())[0]

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._closed:
            work.close()
            raise Unavailable("this LLM is closed; make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()  # what runs on the loop must not outlive the call
            raise

    # --- calls ----------------------------------------------------------------------------------
    def generate(
        self,
        prompts: str | list[int] | Sequence[str] | Sequence[list[int]],
        sampling_params: SamplingParams | None = None,
        *,
        model: str | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt; all of them run together. Order is kept."""
        single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
        many: list[Any] = [prompts] if single else list(prompts)
        requests = [
            ask(model or self.model, TextPrompt(prompt), sampling_params, whole=True)
            for prompt in many
        ]
        return self._together(many, requests)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | None = None,
        *,
        model: str | None = None,
        **prompt: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several together."""
        single = bool(messages) and isinstance(messages[0], dict)
        many: list[Any] = [messages] if single else list(messages)
        requests = [
            ask(model or self.model, ChatPrompt(one, **prompt), sampling_params, whole=True)
            for one in many
        ]
        return self._together(many, requests)

    def _together(self, prompts: list[Any], requests: list[GenerateRequest]) -> list[RequestOutput]:
        async def all_of_them() -> list[Reply]:
            try:
                async with asyncio.TaskGroup() as group:  # the first error ends the others
                    tasks = [group.create_task(collect(self.client.stream(r))) for r in requests]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            return [task.result() for task in tasks]

        replies = self._run(all_of_them())
        return [RequestOutput(p, reply) for p, reply in zip(prompts, replies, strict=True)]

    def stream(
        self,
        prompt: str | list[int] | Messages,
        sampling_params: SamplingParams | None = None,
        *,
        model: str | None = None,
    ) -> Iterator[GenerateEvent]:
        """Events as they come. Leaving the loop early cancels the call."""
        chat = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)
        wrapped: Any = ChatPrompt(prompt) if chat else TextPrompt(prompt)  # type: ignore[arg-type]
        events = self.client.stream(ask(model or self.model, wrapped, sampling_params))
        try:
            while True:
                try:
                    yield self._run(_next(events))
                except StopAsyncIteration:
                    return
        finally:
            if not self._closed:
                self._run(_close(events))

    def embed(self, texts: str | Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """One unit vector a text."""
        many = [texts] if isinstance(texts, str) else list(texts)
        return self._run(self.client.embed(model or self.model, many))

    # --- life -----------------------------------------------------------------------------------
    def close(self) -> None:
        """Unload everything and end the thread; calling it twice is fine."""
        if self._closed:
            return
        try:
            self._run(self.client.close())
        finally:
            self._closed = True
            self._stop_loop()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


async def _start(names: list[str], device: DeviceSettings) -> InProcessClient:
    from tenfold.core.names import split_model
    from tenfold.fleet.assemble import device_settings, find_source
    from tenfold.fleet.service import Service
    from tenfold.fleet.store import Store
    from tenfold.fleet.workers import InlineWorker
    from tenfold.scheduling.admission import AdmissionController, Limits

    sources = [find_source(*split_model(name)) for name in names]
    service = Service(
        [device_settings(device, Store())],
        sources,
        admission=AdmissionController(Limits.unbounded()),
        make_worker=InlineWorker,
        find_source=find_source,
    )
    try:
        await service.start()
    except BaseException:
        await service.close()
        raise
    return InProcessClient(service)


async def _next(events: Any) -> GenerateEvent:
    event: GenerateEvent = await anext(events)
    return event


async def _close(events: Any) -> None:
    await events.aclose()


__all__ = ["LLM", "RequestOutput"]
