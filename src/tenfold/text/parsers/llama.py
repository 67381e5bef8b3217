"""Llama 3: ``{"name": …, "parameters": {…}}`` as the whole answer, or after ``<|python_tag|>``.

Several calls are parted by semicolons.
"""

from __future__ import annotations

from collections.abc import Iterable

from tenfold.text.parsers.base import NewId, Tool, ToolParser, random_call_id
from tenfold.text.parsers.calls import CallParser, CallStyle

LLAMA = CallStyle(open="<|python_tag|>", bare=True, keys=("parameters", "arguments"), separator=";")


def llama(tools: Iterable[Tool] = (), new_id: NewId = random_call_id) -> ToolParser:
    return CallParser(LLAMA, tools, new_id)
