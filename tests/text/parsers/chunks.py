"""Feeding parsers in pieces, and putting together what they give."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import strategies as st

from tenfold.text.parsers.base import Tool, ToolParser
from tenfold.text.parsers.tools import tool_parser


@dataclass
class Call:
    name: str
    id: str
    arguments: str = ""


@dataclass
class Answer:
    content: str = ""
    calls: list[Call] = field(default_factory=list)

    @property
    def named(self) -> list[tuple[str, str]]:
        return [(call.name, call.arguments) for call in self.calls]


def tool(name: str, **properties) -> Tool:
    schema = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def parser(style: str, tools=()) -> ToolParser:
    numbers = itertools.count()
    return tool_parser(style, tools, new_id=lambda: f"id-{next(numbers)}")


def parse(parser: ToolParser, pieces) -> Answer:
    """All that comes of ``pieces``; checks the order of deltas."""
    answer = Answer()
    for delta in [*map(parser.push, pieces), parser.flush()]:
        answer.content += delta.content
        for part in delta.tool_calls:
            if part.name is not None:
                assert part.index == len(answer.calls) and part.id and part.arguments == ""
                answer.calls.append(Call(part.name, part.id))
            else:
                assert part.index == len(answer.calls) - 1 and part.arguments
                answer.calls[-1].arguments += part.arguments
    return answer


@st.composite
def cut(draw, texts) -> tuple[str, list[str]]:
    """A text, and the same text in pieces."""
    text = draw(texts)
    at = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return text, [text[a:b] for a, b in itertools.pairwise([0, *at, len(text)])]
