"""Makes a model call a tool: a grammar of nothing but legal calls, in the style it writes them.

The grammar is Lark with each tool's own JSON schema inside. Knows nothing of how grammars run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.core.errors import InvalidRequest
from tenfold.core.types import Constraint
from tenfold.text.grammar_source import JSON_WHITESPACE
from tenfold.text.parsers.base import Tool, function_of


@dataclass(slots=True, frozen=True)
class _Shape:
    """The fixed text of a call: before, between name and arguments, after; and between calls."""

    before: str
    key: str
    after: str = "}"
    between: str = "\n"


_TAGGED = _Shape('<tool_call>\n{"name": ', "arguments", "}\n</tool_call>")
_SHAPES = {
    "hermes": _TAGGED,
    "qwen": _TAGGED,
    "llama": _Shape('{"name": ', "parameters", between="; "),
    "json": _Shape('{"name": ', "arguments"),
}


def tool_constraint(
    tools: Sequence[Tool], choice: str, style: str, *, parallel: bool = False
) -> Constraint:
    """The grammar that ``tool_choice`` asks for: "required", or the name of one function.

    With "required" and ``parallel`` there may be several calls; else there is one. Raises
    InvalidRequest for a function that is not among ``tools``, and for tools that are malformed.
    Whether the tools' schemas can be used shows when the grammar is compiled: check it as any other
    constraint, blaming "tools". Qwen's models are held to JSON, which they write as well as XML.
    """
    shape = _SHAPES.get(style, _SHAPES["json"])
    functions = [_checked(tool, index) for index, tool in enumerate(tools)]
    if choice != "required":
        functions = [function for function in functions if function["name"] == choice]
    if not functions:
        what = "no tools are given" if choice == "required" else f"no tool is named {choice!r}"
        raise InvalidRequest(f"tool_choice asks for a call but {what}", param="tool_choice")
    several = parallel and choice == "required"
    rules = [f"start: call ({_quoted(shape.between)} call)*" if several else "start: call"]
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(functions))))
    for index, function in enumerate(functions):
        opening = f'{shape.before}{json.dumps(function["name"])}, "{shape.key}": '
        schema = json.dumps(_arguments_schema(function, index))
        rules.append(f"call_{index}: {_quoted(opening)} arguments_{index} {_quoted(shape.after)}")
        rules.append(f"arguments_{index}: %json {schema}")
    return Constraint("grammar", "\n".join(rules) + "\n")


def _checked(tool: Tool, index: int) -> dict[str, Any]:
    function = function_of(tool)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"tools[{index}] has no function.name", param="tools")
    return function


def _arguments_schema(function: dict[str, Any], index: int) -> dict[str, Any]:
    """The tool's own schema, of an object. It is a root by itself, so that ``$ref`` stays right."""
    schema = function.get("parameters")
    if schema is None:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, dict):
        raise InvalidRequest(
            f"tools[{index}].function.parameters must be a JSON schema, an object", param="tools"
        )
    return {"type": "object", **schema, "x-guidance": {"whitespace_pattern": JSON_WHITESPACE}}


def _quoted(text: str) -> str:
    """A Lark string literal."""
    return json.dumps(text)
