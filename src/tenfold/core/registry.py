"""Lazy registries: a name, and where its implementation lives. Nothing is imported early."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Generic, TypeVar

from tenfold.core.errors import ConfigError

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Names of one kind of plug-in, each with its ``"module:attribute"`` or the object itself.

    CLI choices and config checks come from ``names()``, so help cannot drift from the code. An
    unknown name like ``"package.module:attribute"`` is imported, so users can bring their own.
    """

    def __init__(self, kind: str, entries: dict[str, str | T]) -> None:
        self.kind = kind
        self._entries: dict[str, str | T] = dict(entries)

    def names(self) -> list[str]:
        return sorted(self._entries)

    def add(self, name: str, entry: str | T) -> None:
        self._entries[name] = entry

    def get(self, name: str) -> T:
        """Raises ConfigError for an unknown name, listing the known ones."""
        entry = self._entries.get(name, name if ":" in name else None)
        if entry is None:
            raise ConfigError(
                f"unknown {self.kind} {name!r}; choose from {', '.join(self.names())}"
            )
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            try:
                entry = getattr(import_module(module), attribute)
            except (ImportError, AttributeError) as exc:
                raise ConfigError(f"cannot load {self.kind} {name!r} from {module}: {exc}") from exc
            self._entries[name] = entry
        return entry
