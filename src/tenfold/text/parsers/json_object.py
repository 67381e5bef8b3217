"""Any model: the answer is ``{"name": …, "arguments": {…}}``, or an array of such objects."""

from __future__ import annotations

from collections.abc import Iterable

from tenfold.text.parsers.base import NewId, Tool, ToolParser, random_call_id
from tenfold.text.parsers.calls import CallParser, CallStyle

JSON = CallStyle(bare=True)


def json_object(tools: Iterable[Tool] = (), new_id: NewId = random_call_id) -> ToolParser:
    return CallParser(JSON, tools, new_id)
