"""A reader of one tool call in the XML of Qwen3-Coder.

    <function=NAME>
    <parameter=KEY>
    value, as it is
    </parameter>
    </function>

Values are bare text, so what JSON they become depends on the tool's schema: a parameter that may be
a string, or of which nothing is known, is a string; any other is read as JSON, and as a string
where it is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from tenfold.text.parsers.base import Tool, begun_tag, function_of
from tenfold.text.parsers.readers import Progress, State

FUNCTION = "<function="
_PARAMETER = "<parameter="
_END_PARAMETER = "</parameter>"
_END_FUNCTION = "</function>"
_NAME = re.compile(r"<function=([\w.\-]{1,128})>")
_BEGUN_NAME = re.compile(r"<function=[\w.\-]{0,128}")
_KEY = re.compile(r"<parameter=([^<>\n]{1,128})>")
_BEGUN_KEY = re.compile(r"<parameter=[^<>\n]{0,128}")
_SPACE = " \t\n\r"

Kinds = dict[str, dict[str, frozenset[str]]]
"""Function → parameter → the JSON types that its schema allows."""


class XmlCall:
    """See ``CallReader``. ``kinds`` comes from ``parameter_kinds``."""

    def __init__(self, kinds: Kinds) -> None:
        self.name: str | None = None
        self._arguments: list[str] = []
        self._kinds = kinds
        self._at = "name"
        self._first = True
        self._text_value = True
        self._value_begun = False

    def feed(self, text: str) -> Progress:
        taken = 0
        while True:
            before = self._at
            step = self._step(text[taken:])
            taken += step.taken
            if step.state is not State.MORE or (not step.taken and self._at == before):
                return Progress(taken, step.state)

    def take(self) -> str:
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def end(self, text: str) -> None:
        if self._at == "value":
            self._arguments.append(_inside_string(text) if self._text_value else text)

    def _step(self, text: str) -> Progress:
        match self._at:
            case "name":
                return self._read_name(text)
            case "value":
                return self._read_value(text)
        return self._read_between(text)

    def _read_name(self, text: str) -> Progress:
        found = _NAME.match(text)
        if found is None:
            step = _undecided(text, FUNCTION, _BEGUN_NAME)
            # The tag is taken, so that it is not found once more.
            return step if step.state is State.MORE else Progress(len(FUNCTION), State.BAD)
        self.name, self._at = found[1], "between"
        self._arguments.append("{")
        return Progress(found.end(), State.MORE)

    def _read_between(self, text: str) -> Progress:
        space = len(text) - len(text.lstrip(_SPACE))
        text = text[space:]
        if text.startswith(_END_FUNCTION):
            self._arguments.append("}")
            return Progress(space + len(_END_FUNCTION), State.DONE)
        found = _KEY.match(text)
        if found is not None:
            self._begin(found[1])
            return Progress(space + found.end(), State.MORE)
        wait = not text or _END_FUNCTION.startswith(text)
        step = Progress(0, State.MORE) if wait else _undecided(text, _PARAMETER, _BEGUN_KEY)
        if step.state is State.BAD:
            self._arguments.append("}")
        return Progress(space, step.state)

    def _begin(self, key: str) -> None:
        kinds = self._kinds.get(self.name or "", {}).get(key, frozenset())
        self._text_value = not kinds or "string" in kinds
        self._at, self._value_begun = "value", False
        comma = "" if self._first else ", "
        self._first = False
        quote = '"' if self._text_value else ""
        self._arguments.append(f"{comma}{json.dumps(key, ensure_ascii=False)}: {quote}")

    def _read_value(self, text: str) -> Progress:
        """One line break after the opening tag and one before the closing tag are markup."""
        skip = 0
        if not self._value_begun:
            if not text:
                return Progress(0, State.MORE)
            self._value_begun = True
            skip = 1 if text[0] == "\n" else 0
        end = text.find(_END_PARAMETER, skip)
        if end >= 0:
            value = text[skip:end].removesuffix("\n")
            text_value = self._text_value
            self._arguments.append(_inside_string(value) + '"' if text_value else _as_json(value))
            self._at = "between"
            return Progress(end + len(_END_PARAMETER), State.MORE)
        if not self._text_value:
            return Progress(skip, State.MORE)
        held = begun_tag(text[skip:], ("\n" + _END_PARAMETER, _END_PARAMETER))
        self._arguments.append(_inside_string(text[skip : len(text) - held]))
        return Progress(len(text) - held, State.MORE)


def parameter_kinds(tools: Iterable[Tool]) -> Kinds:
    """What the tools' schemas say of their parameters' types."""
    kinds: Kinds = {}
    for tool in tools:
        function = function_of(tool)
        schema = function.get("parameters")
        properties = schema.get("properties") if isinstance(schema, dict) else None
        if isinstance(function.get("name"), str) and isinstance(properties, dict):
            kinds[function["name"]] = {key: _kinds(value) for key, value in properties.items()}
    return kinds


def _kinds(schema: Any) -> frozenset[str]:
    """The JSON types that a schema names, by ``type``, or in its alternatives. Empty: unknown."""
    if not isinstance(schema, dict):
        return frozenset()
    named = schema.get("type")
    types = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    for word in ("anyOf", "oneOf"):
        branches = schema.get(word)
        for branch in branches if isinstance(branches, list) else []:
            if isinstance(branch, dict) and isinstance(branch.get("type"), str):
                types = [*types, branch["type"]]
    return frozenset(kind for kind in types if isinstance(kind, str))


def _undecided(text: str, tag: str, begun: re.Pattern[str]) -> Progress:
    """Nothing matched yet: wait if ``text`` may still become ``tag`` and a name."""
    wait = tag.startswith(text) or begun.fullmatch(text) is not None
    return Progress(0, State.MORE if wait else State.BAD)


def _inside_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_json(text: str) -> str:
    """``text`` if it is JSON (Python's True and False count), else a JSON string of it."""
    bare = text.strip(_SPACE)
    if bare in ("True", "False"):
        return bare.lower()
    try:
        json.loads(bare, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return bare


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
