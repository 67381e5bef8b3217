"""Where each tensor of a Hugging Face folder lies: config, index, and safetensors headers.

A safetensors header (a length, then JSON) is read with plain file operations, so that describing a
model needs no torch and a damaged file is named rather than traced. Knows no tensor's meaning.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tenfold.core.errors import ModelFileError

_MAX_HEADER = 100 << 20
_SIZES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Bytes [start, end) of ``file``; ``kind`` is safetensors' own name of the type."""

    file: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_json(path: Path, missing_ok: bool = False) -> dict[str, Any]:
    """A JSON object from a file; empty where it may be missing and is. Raises ModelFileError."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise ModelFileError(f"{path}: no such file; not a model folder") from None
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelFileError(f"{path}: not readable as JSON: {exc}") from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{path}: a JSON object expected")
    return values


def shard_files(path: Path) -> list[Path]:
    """The folder's weight files. Raises ModelFileError where one is missing."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelFileError(f"{index}: no weight_map")
        files = [path / name for name in sorted({str(name) for name in weight_map.values()})]
    else:
        files = [path / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise ModelFileError(f"{path}: weight file {file.name} is missing")
    return files


def read_index(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder by its own name. Raises ModelFileError for a damaged folder."""
    read_json(path / "config.json")  # first: a folder without it is no model folder
    found: dict[str, StoredTensor] = {}
    for file in shard_files(path):
        found.update(_read_safetensors_header(file))
    return found


def _read_safetensors_header(file: Path) -> dict[str, StoredTensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise ModelFileError(f"{file}: the file is truncated: its header is cut short")
            raw = stream.read(length)
    except OSError as exc:
        raise ModelFileError(f"{file}: cannot be read: {exc.strerror}") from None
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        found = {name: _stored(file, 8 + length, entry) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ModelFileError(f"{file}: not a safetensors file: its header is damaged") from None
    needed = max((entry.end for entry in found.values()), default=8 + length)
    if needed > size:
        raise ModelFileError(
            f"{file}: the file is truncated: {needed:,} bytes are needed, it has {size:,}"
        )
    return found


def _stored(file: Path, data_start: int, entry: dict[str, Any]) -> StoredTensor:
    start, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(n) for n in entry["shape"])
    size = _SIZES.get(entry["dtype"], 0)
    if start < 0 or (size and end - start != prod(shape) * size):
        raise ValueError("offsets and shape disagree")
    return StoredTensor(file, str(entry["dtype"]), shape, data_start + start, data_start + end)
