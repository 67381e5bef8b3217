"""Byte counts as people write them ("4GiB", "10 MB"), and back. Knows nothing of memory itself."""

from __future__ import annotations

import re

from tenfold.core.errors import ConfigError

_POWERS = "kmgt"
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?|\.\d+)\s*([kmgt]?)(i?)(b?)\s*$", re.IGNORECASE)


def parse_bytes(value: int | float | str) -> int:
    """Bytes of ``value``: a whole number, or text with a unit.

    KiB, MiB, GiB and TiB count in 1024s, as does a lone K, M, G or T; kB, MB, GB and TB count in
    1000s. Raises ConfigError for anything else, and for less than zero.
    """
    if isinstance(value, bool):
        raise ConfigError(f"{value!r} is not a size; write one like 4GiB")
    if isinstance(value, int):
        if value < 0:
            raise ConfigError(f"a size cannot be negative: {value}")
        return value
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f"{value!r} is not a size; write one like 4GiB, 512MiB or 2000000")
    number, letter, binary, byte = match.groups()
    if binary and not letter:
        raise ConfigError(f"{value!r} is not a size; write one like 4GiB, 512MiB or 2000000")
    base = 1000 if byte and not binary else 1024
    power = _POWERS.index(letter.lower()) + 1 if letter else 0
    return int(float(number) * base**power) if "." in number else int(number) * int(base**power)


def parse_share(value: int | float | str, whole: int) -> int:
    """Like ``parse_bytes``, and "60%" is that part of ``whole`` bytes."""
    if not isinstance(value, str) or not value.strip().endswith("%"):
        return parse_bytes(value)
    try:
        percent = float(value.strip()[:-1])
    except ValueError:
        raise ConfigError(f"{value!r} is not a share; write one like 60%") from None
    if not 0 < percent <= 100:
        raise ConfigError(f"a share must lie between 0% and 100%: {value}")
    return int(whole * percent / 100)


def format_bytes(count: int) -> str:
    """``count`` bytes for reading: "93.8 MiB". At most one decimal place."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{int(size)} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
