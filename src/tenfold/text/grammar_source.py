"""From a request's constraint to the grammar text that llguidance compiles.

Does not know tokenisers or models: what is wrong with a schema, regex or grammar by itself is said
here, blaming the request's field. llguidance is imported only inside functions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from tenfold.core.errors import InvalidRequest
from tenfold.core.types import Constraint, ConstraintKind

MAX_CONSTRAINT_CHARS = 256 * 1024

JSON_WHITESPACE = r"[ \t]?(\n[ \t]{0,32})?"
"""Whitespace a constrained JSON answer may use. Bounded, or a weak model pads until its limit."""

_FIELDS: dict[ConstraintKind, str] = {
    "json_object": "response_format",
    "json_schema": "response_format",
    "regex": "guided_regex",
    "grammar": "guided_grammar",
}
_MESSAGE_CHARS = 300


def field_of(constraint: Constraint, param: str | None) -> str:
    """The request's field to blame: ``param`` where the caller knows it, else by kind."""
    return param or _FIELDS.get(constraint.kind, "response_format")


def grammar_text(constraint: Constraint, *, param: str | None = None) -> str:
    """The grammar in llguidance's own form. It may still prove wrong when compiled.

    Raises InvalidRequest for what can be seen without compiling: size, JSON that does not parse, a
    schema that is not an object or a boolean.
    """
    from llguidance import LLMatcher

    field = field_of(constraint, param)
    text = constraint.text
    if len(text) > MAX_CONSTRAINT_CHARS:
        raise InvalidRequest(
            f"{field} has {len(text)} characters; at most {MAX_CONSTRAINT_CHARS} are accepted",
            param=field,
        )
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(f"{field} is not valid Unicode: {exc.reason}", param=field) from exc
    match constraint.kind:
        case "json_object":
            return _json_grammar({"type": "object"})
        case "json_schema":
            return _json_grammar(_parse_schema(text, field))
        case "regex":
            return str(LLMatcher.grammar_from_lark(f"start: /{_ascii_regex(text, field)}/"))
        case "grammar":
            if "::=" in text:
                raise InvalidRequest(
                    f"{field} looks like GBNF (it has '::='); write it in Lark, 'rule: …'",
                    param=field,
                )
            return str(LLMatcher.grammar_from_lark(text))
    raise InvalidRequest(f"unknown kind of constraint {constraint.kind!r}", param=field)


def refuse(message: str, field: str) -> NoReturn:
    """Raise InvalidRequest with llguidance's own message, made short."""
    raise InvalidRequest(f"{field} cannot be used: {brief(message)}", param=field)


@contextmanager
def panics_refused(field: str) -> Iterator[None]:
    """A panic inside llguidance is no Exception; it becomes the refusal of one request."""
    try:
        yield
    except BaseException as exc:
        if type(exc).__name__ != "PanicException":
            raise
        refuse("it is too complex", field)


def brief(message: str) -> str:
    """llguidance's message on one line, without its echo of the source, at most 300 characters.

    The reason stands at the end of long messages and the place at their start: both are kept.
    """
    body = message.split("\n   1 | ")[0].split("<non-verbose/>")[0].split("<state>")[0]
    line = " ".join(body.split())
    if len(line) <= _MESSAGE_CHARS:
        return line
    return f"{line[:100]} … {line[-(_MESSAGE_CHARS - 103) :]}"


def _parse_schema(text: str, field: str) -> Any:
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except RecursionError as exc:
        raise InvalidRequest(f"{field}: the schema is nested too deeply", param=field) from exc
    except ValueError as exc:
        raise InvalidRequest(f"{field}: the schema is not JSON: {exc}", param=field) from exc
    if not isinstance(schema, dict | bool):
        raise InvalidRequest(
            f"{field}: a JSON schema is an object or a boolean, not {type(schema).__name__}",
            param=field,
        )
    if schema is False:
        raise InvalidRequest(f"{field}: the schema false matches nothing", param=field)
    return {} if schema is True else schema


def _ascii_regex(text: str, field: str) -> str:
    r"""The regex as a Lark literal, with ``\d``, ``\w`` and ``\s`` meaning ASCII.

    llguidance's own meaning is Unicode's, where ``\d`` also is the digit of any other script: a
    "number" that few programs could read.
    """
    from llguidance import regex_to_lark

    slashes = len(text) - len(text.rstrip("\\"))
    if slashes % 2:
        raise InvalidRequest(f"{field} ends in a lone backslash", param=field)
    return str(regex_to_lark(text, use_ascii="dws"))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _json_grammar(schema: Any) -> str:
    from llguidance import LLMatcher

    # Dumped again, because llguidance pastes the text into its own grammar unparsed.
    return str(
        LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides={"whitespace_pattern": JSON_WHITESPACE}
        )
    )
