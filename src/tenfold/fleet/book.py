"""The models that are served, by name: how they come, and how they go.

Knows nothing of requests, nor of what a model's weights do while it is served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from tenfold.core.errors import Conflict, InvalidRequest, ModelNotFound
from tenfold.fleet.places import Places
from tenfold.fleet.served import ModelSource, ServedModel

FindSource = Callable[[str, str | None], ModelSource]
"""Name, and source or None, to a model that is in the store. Raises TenfoldError."""


class ModelBook:
    """Models on their workers. All methods belong to one event loop."""

    def __init__(
        self, configured: Iterable[ModelSource], places: Places, find_source: FindSource | None
    ) -> None:
        """``configured``: what ``start`` loads. Without ``find_source`` no other can be loaded."""
        self._configured = list(configured)
        self._places = places
        self._find_source = find_source
        self._entries: dict[str, ServedModel] = {}
        self._adding: set[str] = set()

    async def start(self) -> None:
        """Load every configured model. Raises what the first failure was."""
        await self._places.settle(self._configured)
        for source in list(self._configured):
            await self._add(source)

    def ready(self) -> bool:
        """Whether a model is up, and so is every one that was configured. One that an administrator
        adds may take its time."""
        up = {entry.name for entry in self._entries.values() if entry.ready}
        return bool(up) and all(source.name in up for source in self._configured)

    def entries(self) -> list[ServedModel]:
        return list(self._entries.values())

    def find(self, name: str) -> ServedModel | None:
        return self._entries.get(name)

    def entry(self, name: str) -> ServedModel:
        """Raises ModelNotFound, naming those that are served."""
        if name not in self._entries:
            served = ", ".join(self._entries) or "none"
            raise ModelNotFound(
                f"the model {name!r} is not served here (served: {served})", param="model"
            )
        return self._entries[name]

    async def load(self, name: str, source: str | None = None) -> None:
        """See ``Service.load``."""
        self._check_free(name)
        if self._find_source is None:
            raise InvalidRequest("this server serves a fixed list of models", param="model")
        self._adding.add(name)
        try:
            found = await asyncio.to_thread(self._find_source, name, source)
            await self._places.settle([found])
        finally:
            self._adding.discard(name)
        await self._add(found)

    def _check_free(self, name: str) -> None:
        served = name in self._entries and self._entries[name].state != "failed"
        if served or name in self._adding:
            raise Conflict(f"{name} is served already", param="model")

    async def _add(self, source: ModelSource) -> None:
        """Load a model and what it needs to speak; nothing of it stays if that fails."""
        self._check_free(source.name)
        entry = ServedModel(source, self._places.of(source), "loading", int(time.time()))
        self._entries[source.name] = entry
        self._adding.add(source.name)
        try:
            await entry.load()
        except asyncio.CancelledError:
            if self._entries.get(source.name) is entry:
                del self._entries[source.name]
            raise
        finally:
            self._adding.discard(source.name)

    def unload(self, name: str, force: bool = False) -> None:
        """See ``Service.unload``."""
        entry = self.entry(name)
        if entry.source.pinned and not force:
            raise Conflict(f"{name} is pinned; unpin it first, or force", param="model")
        self._entries.pop(name)
        self._configured = [source for source in self._configured if source.name != name]
        for place in entry.places:
            place.unload(name)
        self._places.forget(name)
