"""Typed look-ups in a model's settings: an odd value is one clear line, not a crash later.

Knows nothing of what the settings mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from tenfold.core.errors import ModelFileError

T = TypeVar("T")

MAX_LAYERS = 4096
MAX_EXPERTS = 4096
"""Far above any real model: what exceeds them is a damaged number, and would fill memory."""


class Fields:
    """One file's settings. ``prefix`` is put before every key. A null value counts as missing.

    Every method raises ModelFileError, naming the file and the key.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self.prefix = prefix

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(self.prefix + key)
        return default if value is None else value

    def fail(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {what}")

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(key, default)
        if value is None:
            raise self.fail(f"{self.prefix}{key} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise self.fail(f"{self.prefix}{key} is {str(value)[:60]}; a number expected")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if value <= 0:
            raise self.fail(f"{self.prefix}{key} is {value}; a positive number expected")
        return value

    def size(self, key: str, default: int | None = None, most: int = 1 << 40) -> int:
        """A positive whole number, at most ``most``."""
        value = self.number(key, default)
        if value != int(value) or not 0 < value <= most:
            raise self.fail(f"{self.prefix}{key} is {value}; an integer of 1 to {most} expected")
        return int(value)

    def optional(self, key: str) -> float | None:
        """A positive number, or None where the key is missing, null or zero."""
        return self.positive(key) if self.get(key) else None

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(f"{self.prefix}{key} is {str(value)[:60]}; true or false expected")
        return value

    def object(self, key: str) -> dict[str, Any]:
        """A JSON object; empty where the key is missing."""
        return self._of(key, dict, "an object")

    def list(self, key: str) -> list[Any] | None:
        """A list, or None where the key is missing."""
        return None if self.get(key) is None else self._of(key, list, "a list")

    def _of(self, key: str, kind: type[T], wanted: str) -> T:
        value = self.get(key, kind())
        if not isinstance(value, kind):
            raise self.fail(f"{self.prefix}{key} is {str(value)[:60]}; {wanted} expected")
        return value

    def heads(self, heads: int, kv_heads: int, head_dim: int) -> None:
        """Check that attention heads fit together."""
        if heads % kv_heads:
            raise self.fail(f"{heads} attention heads cannot share {kv_heads} key/value heads")
        if head_dim % 2:
            raise self.fail(f"the head dimension {head_dim} is odd; rotary positions need pairs")
