"""The key-value header of a GGUF file, read without touching tensors.

Own code rather than ``gguf.GGUFReader``: that makes several numpy arrays for each string, and a
vocabulary of 262,144 tokens takes it many seconds. Layout: the GGUF specification, versions 2 and
3, little-endian. Knows nothing of tensors, nor of what the keys mean.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from tenfold.core.errors import ModelFileError

Metadata = dict[str, Any]
"""Key → int, float, bool, str, or a list of them."""

_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 4


class _Value(NamedTuple):
    value: Any
    end: int


def read_gguf_metadata(path: Path | str) -> Metadata:
    """All metadata of the file. Raises ModelFileError where it is not a readable GGUF."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(data, path)
    except (OSError, ValueError) as exc:  # ValueError: an empty file cannot be mapped
        raise ModelFileError(f"{path}: cannot read it as GGUF: {exc}") from exc
    except (struct.error, OverflowError, IndexError) as exc:
        raise ModelFileError(f"{path}: truncated or corrupt GGUF header ({exc})") from exc


def _header(data: mmap.mmap, path: Path | str) -> Metadata:
    if data[:4] != b"GGUF":
        raise ModelFileError(f"{path}: not a GGUF file (it starts with {data[:4]!r})")
    version, _, keys = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ModelFileError(f"{path}: GGUF version {version}; versions 2 and 3 can be read")
    metadata: Metadata = {}
    position = 24
    for _ in range(keys):
        key, position = _string(data, position)
        (kind,) = struct.unpack_from("<I", data, position)
        metadata[key], position = _value(data, position + 4, kind, 0)
    return metadata


def _value(data: mmap.mmap, position: int, kind: int, nesting: int) -> _Value:
    if kind in _SCALARS:
        reader = struct.Struct("<" + _SCALARS[kind])
        return _Value(reader.unpack_from(data, position)[0], position + reader.size)
    if kind == _STRING:
        return _string(data, position)
    if kind == _ARRAY and nesting < _MAX_NESTING:
        element, count = struct.unpack_from("<IQ", data, position)
        return _array(data, position + 12, element, count, nesting + 1)
    raise struct.error(f"value type {kind} at byte {position}")


def _array(data: mmap.mmap, position: int, kind: int, count: int, nesting: int) -> _Value:
    if count > len(data) - position:  # an element takes at least a byte
        raise struct.error(f"array of {count} elements at byte {position}")
    if kind in _SCALARS:
        reader = struct.Struct(f"<{count}{_SCALARS[kind]}")
        return _Value(list(reader.unpack_from(data, position)), position + reader.size)
    if kind == _STRING:
        return _strings(data, position, count)
    values = []
    for _ in range(count):
        value, position = _value(data, position, kind, nesting)
        values.append(value)
    return _Value(values, position)


def _strings(data: mmap.mmap, position: int, count: int) -> _Value:
    """The hot loop: a vocabulary, or its merges."""
    length_at = struct.Struct("<Q").unpack_from
    values = []
    for _ in range(count):
        (length,) = length_at(data, position)
        start = position + 8
        position = start + length
        values.append(data[start:position])
    if position > len(data):  # a slice past the end is silently short
        raise struct.error(f"string ends at byte {position} of {len(data)}")
    return _Value([value.decode() for value in values], position)


def _string(data: mmap.mmap, position: int) -> _Value:
    (length,) = struct.unpack_from("<Q", data, position)
    end = position + 8 + length
    if end > len(data):
        raise struct.error(f"string ends at byte {end} of {len(data)}")
    return _Value(data[position + 8 : end].decode(), end)
