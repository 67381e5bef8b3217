"""Spans of time as people write them ("5m", "1h30m", "250ms"). Knows nothing of clocks."""

from __future__ import annotations

import re
from math import isfinite

from tenfold.core.errors import ConfigError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = r"[0-9]+(?:\.[0-9]+)?"
DURATION = rf"^-?(?:{_PART}|(?:{_PART}(?:ms|s|m|h|d))+)$"
"""What a span written as text matches."""


def parse_seconds(value: float | str) -> float:
    """Seconds of ``value``: a number of them, or text, a number or numbers with units (ms, s, m, h,
    d). May be below zero. Raises ConfigError for anything else."""
    if isinstance(value, str) and re.match(DURATION, text := value.strip()):
        pairs = re.findall(rf"({_PART})(ms|s|m|h|d)?", text)
        seconds = sum(float(number) * _UNITS[unit or "s"] for number, unit in pairs)
        seconds = -seconds if text.startswith("-") else seconds
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise _refusal(value)
    if not isfinite(seconds):
        raise _refusal(value)
    return seconds


def _refusal(value: object) -> ConfigError:
    return ConfigError(
        f"{str(value)[:40]!r} is no span of time; write seconds, or one like 5m or 1h30m"
    )


def format_seconds(seconds: float) -> str:
    """For reading: "3.2 s", "4 min", "2 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
