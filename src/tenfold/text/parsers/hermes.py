"""Hermes, and Qwen 2.5 and 3: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``."""

from __future__ import annotations

from collections.abc import Iterable

from tenfold.text.parsers.base import NewId, Tool, ToolParser, random_call_id
from tenfold.text.parsers.calls import CallParser, CallStyle

HERMES = CallStyle(open="<tool_call>", close="</tool_call>")


def hermes(tools: Iterable[Tool] = (), new_id: NewId = random_call_id) -> ToolParser:
    return CallParser(HERMES, tools, new_id)
