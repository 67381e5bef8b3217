"""JSON as it arrives from strangers: parsed once, with every trap of the format refused.

Knows nothing of HTTP and of any schema.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from tenfold.core.errors import InvalidRequest

MAX_DEPTH = 64
_EXACT = 2.0**53

# Only a document that holds such an escape can hold a lone surrogate (a raw one is no UTF-8 and
# never gets here): all others need no walk.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def strict_json(raw: bytes, *, what: str = "the body") -> Any:
    """The parsed document. Raises InvalidRequest: not UTF-8, not JSON, NaN or infinity, a lone
    surrogate, a number that no float64 holds, or nesting deeper than MAX_DEPTH.

    ``what`` names the document in messages. A float without a fraction (``3.0``) comes back as an
    int: JSON has one kind of number, and some clients write all of them so.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"{what} is not valid UTF-8 (byte {exc.start})") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_number)
    except json.JSONDecodeError as exc:
        raise InvalidRequest(f"{what} is not valid JSON: {exc}") from None
    except RecursionError:
        raise InvalidRequest(f"{what} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as exc:  # a whole number with thousands of digits
        raise InvalidRequest(f"{what} holds an unusable number: {exc}") from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH or _SURROGATE.search(raw):
        _walk(value, what)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"{name} is not JSON, and no field takes it; send a finite number")


def _number(text: str) -> float | int:
    value = float(text)
    if math.isinf(value):
        raise InvalidRequest(f"the number {text[:40]} is too large for a float")
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


def _walk(root: Any, what: str) -> None:
    """Check every value, level by level (a stack would not know its depth, recursion might end)."""
    level, depth = [root], 0
    while level:
        depth += 1
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str):
                _check_text(value, what)
        level = below
        if depth > MAX_DEPTH and level:
            raise InvalidRequest(f"{what} is nested deeper than {MAX_DEPTH} levels")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise InvalidRequest(
            f"{what} holds half of a surrogate pair ({text[exc.start]!a}), which is no character"
        ) from None
