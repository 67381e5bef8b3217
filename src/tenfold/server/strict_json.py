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

# Only text that matches can hold a lone surrogate or a number past float64: all other documents
# need no walk. A raw surrogate is no UTF-8 and never gets here.
_SUSPECT = re.compile(rb"\\u[dD][89a-fA-F]|[eE]\+?[0-9]{3}|[0-9]{300}")


def strict_json(raw: bytes, *, what: str = "the body") -> Any:
    """The parsed document. Raises InvalidRequest: not UTF-8, not JSON, NaN or infinity, a lone
    surrogate, a number that no float64 holds, or nesting deeper than MAX_DEPTH.

    ``what`` names the document in messages.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"{what} is not valid UTF-8 (byte {exc.start})") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        raise InvalidRequest(f"{what} is not valid JSON: {exc}") from None
    except RecursionError:
        raise InvalidRequest(f"{what} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as exc:  # a whole number with thousands of digits
        raise InvalidRequest(f"{what} holds an unusable number: {exc}") from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH or _SUSPECT.search(raw):
        _walk(value, what)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"{name} is not JSON, and no field takes it; send a finite number")


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
            elif isinstance(value, float) and not math.isfinite(value):
                raise InvalidRequest(f"{what} holds a number too large for a float")
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
