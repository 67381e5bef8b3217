"""The contracts of the streaming parsers, and what they give back.

A parser is made for one answer and is fed its text in pieces of any size: how the text is cut never
changes what comes out in all. Nothing is lost: every character comes back as content, reasoning or
part of a call, or was markup around them. Knows nothing of tokens or requests.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

Tool = dict[str, Any]
"""A tool as in OpenAI's API: ``{"type": "function", "function": {"name", "parameters", …}}``."""

NewId = Callable[[], str]
"""Makes the id of a tool call."""


@dataclass(slots=True)
class ToolCallDelta:
    """Part of call number ``index``. ``id`` and ``name`` come once, first and together, with no
    arguments yet; ``arguments`` is the next piece of the JSON text of the arguments."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class ParsedDelta:
    """What a piece of text turned out to hold."""

    content: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    def add_arguments(self, index: int, text: str) -> None:
        """Append to the call's arguments, joining pieces that follow each other."""
        last = self.tool_calls[-1] if self.tool_calls else None
        if last is not None and last.index == index and last.name is None:
            last.arguments += text
        elif text:
            self.tool_calls.append(ToolCallDelta(index, arguments=text))


@dataclass(slots=True)
class ReasonedDelta:
    """What a piece of text turned out to hold."""

    reasoning: str = ""
    content: str = ""


class ToolParser(Protocol):
    """Tells tool calls from content. A call's arguments stream while they are written; where they
    stop being JSON, the call ends as it is and the rest is content."""

    def push(self, text: str) -> ParsedDelta: ...

    def flush(self) -> ParsedDelta:
        """The answer is over: give back what was held in doubt."""
        ...


class ReasoningParser(Protocol):
    """Tells the thinking before an answer from the answer."""

    def push(self, text: str) -> ReasonedDelta: ...

    def flush(self) -> ReasonedDelta:
        """The answer is over: give back what was held in doubt."""
        ...


def random_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def function_of(tool: Tool) -> dict[str, Any]:
    """The tool's function: its ``name``, perhaps its ``parameters``. Empty if it has none."""
    function = tool.get("function")
    return function if isinstance(function, dict) else {}


def begun_tag(text: str, tags: Iterable[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of one of ``tags``."""
    best = 0
    for tag in tags:
        for size in range(min(len(tag) - 1, len(text)), best, -1):
            if tag.startswith(text[-size:]):
                best = size
                break
    return best
