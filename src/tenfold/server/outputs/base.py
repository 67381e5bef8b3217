"""What every answer writer does, and the two ways to run one: stream it, or collect it whole.

Knows nothing of HTTP beyond the frames of server-sent events.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from tenfold.core.errors import WorkerLost
from tenfold.core.types import Usage
from tenfold.fleet.types import ChoiceEnd, Delta, Finished, GenerateEvent, LogprobEntry
from tenfold.server.stream import DONE, closing, frame


@dataclass(slots=True)
class Head:
    """What every chunk of one answer repeats."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex}"


@dataclass(slots=True)
class CollectedCall:
    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class CollectedChoice:
    """One choice, complete."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, CollectedCall] = field(default_factory=dict)
    logprobs: list[LogprobEntry] | None = None
    finish: str = "stop"
    stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.reasoning += delta.reasoning
        if delta.logprobs is not None:
            self.logprobs = (self.logprobs or []) + delta.logprobs
        for call in delta.tool_calls:
            known = self.calls.setdefault(call.index, CollectedCall("", "", ""))
            known.id = call.id or known.id
            known.name = call.name or known.name
            known.arguments += call.arguments


class Writer(Protocol):
    """Knows one answer's shape. Every dict it makes is JSON, ready to send."""

    include_usage: bool

    def opening(self) -> Iterator[dict[str, Any]]:
        """Chunks before the first token."""
        ...

    def delta(self, delta: Delta) -> dict[str, Any] | None:
        """A chunk of new output, or None where there is nothing to show."""
        ...

    def end(self, end: ChoiceEnd) -> dict[str, Any]:
        """The chunk that closes a choice."""
        ...

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk of ``include_usage``, without choices."""
        ...

    def whole(self, choices: list[CollectedChoice], usage: Usage) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        ...


async def stream_frames(
    writer: Writer, events: AsyncIterator[GenerateEvent]
) -> AsyncIterator[bytes]:
    """The frames of a stream. Nothing is yielded before the first event: it may be an error."""
    opened = False
    async with closing(events):
        async for event in events:
            if not opened:
                opened = True
                for chunk in writer.opening():
                    yield frame(chunk)
            if isinstance(event, Delta):
                delta = writer.delta(event)
                if delta is not None:
                    yield frame(delta)
            elif isinstance(event, ChoiceEnd):
                yield frame(writer.end(checked_end(event)))
            elif writer.include_usage:
                yield frame(writer.usage(event.usage))
    yield DONE


async def collect(
    writer: Writer, events: AsyncIterator[GenerateEvent], choices: int
) -> dict[str, Any]:
    """The whole answer. Raises whatever the backend raises."""
    made = [CollectedChoice() for _ in range(choices)]
    usage = Usage()
    async with closing(events):
        async for event in events:
            if isinstance(event, Delta):
                made[event.index].add(event)
            elif isinstance(event, ChoiceEnd):
                end = checked_end(event)
                made[end.index].finish, made[end.index].stop_reason = end.finish, end.stop_reason
            elif isinstance(event, Finished):
                usage = event.usage
    return writer.whole(made, usage)


def checked_end(end: ChoiceEnd) -> ChoiceEnd:
    """Raises WorkerLost for a choice that did not end by itself: a half answer is no answer."""
    if end.finish in ("abort", "error"):
        raise WorkerLost("the request was stopped before its answer was complete; send it again")
    return end


def finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI shows -9999 for a token that could not come."""
    return max(logprob, -9999.0) if logprob == logprob else -9999.0
