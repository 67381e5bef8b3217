"""Sizes and spans of time in bodies: plain numbers, or text as people write them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from tenfold.core.durations import DURATION, parse_seconds
from tenfold.core.errors import ConfigError
from tenfold.core.sizes import parse_bytes

MOST_SECONDS = 1e9
MOST_BYTES = 1 << 60
_LONGEST = 32
_SIZE = r"^[0-9]{1,18}(\.[0-9]{1,9})?( ?[kKmMgGtT]([iI]?[bB])?)?$"


def _bytes(value: Any) -> int:
    return int(_read(parse_bytes, value, MOST_BYTES))


def _seconds(value: Any) -> float:
    return float(_read(parse_seconds, value, MOST_SECONDS))


def _read(parse: Any, value: Any, most: float) -> float:
    if isinstance(value, str) and len(value) > _LONGEST:
        raise ValueError(f"at most {_LONGEST} characters")
    try:
        found: float = parse(value)
    except ConfigError as exc:
        raise ValueError(exc.message) from None
    if abs(found) > most:
        raise ValueError(f"at most {most:g}, not {found:g}")
    return found


def _schema(number: dict[str, Any], pattern: str) -> WithJsonSchema:
    text = {"type": "string", "pattern": pattern, "maxLength": _LONGEST}
    return WithJsonSchema({"anyOf": [number, text]})


Size = Annotated[
    int,
    BeforeValidator(_bytes),
    _schema({"type": "integer", "minimum": 0, "maximum": MOST_BYTES}, _SIZE),
]
"""Bytes, or text such as "512MiB"."""

Span = Annotated[
    float,
    BeforeValidator(_seconds),
    _schema({"type": "number", "minimum": -MOST_SECONDS, "maximum": MOST_SECONDS}, DURATION),
]
"""Seconds, or text such as "5m"."""

KeepAlive = Annotated[
    Span,
    Field(
        description='How long the model stays awake after this request: seconds, or text as "5m". '
        "0: it sleeps right after; below 0: it stays for ever."
    ),
]
