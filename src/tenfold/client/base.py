"""The client protocol: one primitive, ``stream``, and what everybody builds from it.

Strategies, judges, batch jobs and the chat command speak to this and nothing else, so the same code
runs over HTTP, in process, or against a script in a test.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tenfold.core.types import SamplingParams, Usage
from tenfold.fleet.types import (
    ChatPrompt,
    ChoiceEnd,
    Delta,
    Finished,
    GenerateEvent,
    GenerateRequest,
    LogprobEntry,
    TextPrompt,
    ToolCallDelta,
)


@dataclass(slots=True)
class ToolCall:
    """A complete call: ``arguments`` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Choice:
    """One finished answer."""

    index: int
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobEntry] | None = None
    finish_reason: str = ""
    stop_reason: str | int | None = None


@dataclass(slots=True)
class Reply:
    """All choices of one call, and what it cost."""

    choices: list[Choice]
    usage: Usage

    @property
    def text(self) -> str:
        return self.choices[0].text


class Client(ABC):
    """Talks to models by name. Use as ``async with``, or call ``close`` when done."""

    @abstractmethod
    def stream(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Run one call. Raises a TenfoldError when refused; closing it cancels the call."""

    @abstractmethod
    async def embed(self, model: str, texts: list[str]) -> list[list[float]]:
        """One unit vector a text."""

    @abstractmethod
    async def models(self) -> list[str]:
        """Names that can be asked for now."""

    async def close(self) -> None:  # noqa: B027 - a client may have nothing to let go of
        """Let go of connections; a closed client cannot be used again."""

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def chat(
        self,
        model: str,
        messages: list[dict[str, Any]],
        sampling: SamplingParams | None = None,
        **prompt: Any,
    ) -> Reply:
        """Answer a conversation. ``prompt``: further fields of ChatPrompt, such as ``tools``."""
        request = ask(model, ChatPrompt(messages, **prompt), sampling, whole=True)
        return await collect(self.stream(request))

    async def complete(
        self, model: str, prompt: str | list[int], sampling: SamplingParams | None = None
    ) -> Reply:
        """Continue a text or token ids as they are."""
        return await collect(self.stream(ask(model, TextPrompt(prompt), sampling, whole=True)))


def ask(
    model: str,
    prompt: ChatPrompt | TextPrompt,
    sampling: SamplingParams | None = None,
    **settings: Any,
) -> GenerateRequest:
    """A request with an id of its own; ``settings``: further fields of GenerateRequest."""
    fields = {"id": f"ask-{uuid.uuid4().hex[:12]}", "client": "local", **settings}
    return GenerateRequest(
        model=model, prompt=prompt, sampling=sampling or SamplingParams(), **fields
    )


async def collect(events: AsyncIterator[GenerateEvent]) -> Reply:
    """Read a stream to its end."""
    gathered = Collector()
    async for event in events:
        gathered.take(event)
    return gathered.reply()


class Collector:
    """Puts the pieces of a stream back together."""

    def __init__(self) -> None:
        self._choices: dict[int, Choice] = {}
        self._usage = Usage()

    def take(self, event: GenerateEvent) -> None:
        if isinstance(event, Finished):
            self._usage = event.usage
            return
        choice = self._choices.setdefault(event.index, Choice(event.index))
        if isinstance(event, ChoiceEnd):
            choice.finish_reason = event.finish
            choice.stop_reason = event.stop_reason
        elif isinstance(event, Delta):
            _add(choice, event)

    def reply(self) -> Reply:
        return Reply([self._choices[i] for i in sorted(self._choices)], self._usage)


def _add(choice: Choice, delta: Delta) -> None:
    choice.text += delta.text
    choice.reasoning += delta.reasoning
    choice.token_ids += delta.token_ids
    if delta.logprobs is not None:
        choice.logprobs = (choice.logprobs or []) + delta.logprobs
    for piece in delta.tool_calls:
        _add_call(choice.tool_calls, piece)


def _add_call(calls: list[ToolCall], piece: ToolCallDelta) -> None:
    while len(calls) <= piece.index:
        calls.append(ToolCall("", "", ""))
    call = calls[piece.index]
    call.id = piece.id or call.id
    call.name = piece.name or call.name
    call.arguments += piece.arguments
