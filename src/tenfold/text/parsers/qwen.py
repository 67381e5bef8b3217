"""Qwen, old and new: the JSON of Hermes, or the XML of Qwen3-Coder, within the same tags.

Qwen3-Coder sometimes leaves the outer ``<tool_call>`` away; both tags begin a call.
"""

from __future__ import annotations

from collections.abc import Iterable

from tenfold.text.parsers.base import NewId, Tool, ToolParser, random_call_id
from tenfold.text.parsers.calls import CallParser
from tenfold.text.parsers.hermes import HERMES
from tenfold.text.parsers.xml_call import FUNCTION, XmlCall, parameter_kinds


def qwen(tools: Iterable[Tool] = (), new_id: NewId = random_call_id) -> ToolParser:
    tools = list(tools)
    kinds = parameter_kinds(tools)
    return CallParser(HERMES, tools, new_id, other=(FUNCTION, lambda: XmlCall(kinds)))
