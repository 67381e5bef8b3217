"""Texts on their way to becoming vectors: which worker is asked, and who asks again if it dies.

Knows nothing of who may ask for how much.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass

from tenfold.core.errors import TenfoldError, WorkerLost
from tenfold.core.messages import Abort, Embed, Embedded
from tenfold.fleet.calls import LOST_TWICE, MOST_SUBMISSIONS
from tenfold.fleet.dispatch import Dispatch
from tenfold.fleet.places import Places
from tenfold.fleet.served import ServedModel
from tenfold.fleet.supervisor import Supervisor
from tenfold.fleet.types import EmbedResult


@dataclass(slots=True, eq=False)
class _Asked:
    """A request that a worker has."""

    device: str
    model: str
    answer: asyncio.Future[EmbedResult]

    def fail(self, error: TenfoldError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Embeddings:
    """All requests of one service that embed. All methods belong to its event loop."""

    def __init__(self, dispatch: Dispatch, places: Places) -> None:
        self._dispatch = dispatch
        self._places = places
        self._ids = itertools.count(1)
        self._asked: dict[str, _Asked] = {}

    async def embed(
        self, entry: ServedModel, ids: list[list[int]], keep_alive: float | None
    ) -> EmbedResult:
        """Have the least busy worker that holds the model embed texts. Raises what it says,
        Unavailable if none is there, and WorkerLost if it dies and so does the next one."""
        for _ in range(MOST_SUBMISSIONS):
            await self._dispatch.await_holder(entry)
            place = min(entry.holders(), key=lambda place: self.at(place.name))
            with contextlib.suppress(WorkerLost):  # nothing was answered: ask the next one
                return await self._ask(place, entry.name, ids, keep_alive)
        raise WorkerLost(LOST_TWICE)

    async def _ask(
        self, place: Supervisor, model: str, ids: list[list[int]], keep_alive: float | None
    ) -> EmbedResult:
        id = f"e{next(self._ids)}"
        answer: asyncio.Future[EmbedResult] = asyncio.get_running_loop().create_future()
        self._asked[id] = _Asked(place.name, model, answer)
        try:
            place.send(Embed(id, model, ids, keep_alive))
            return await answer
        finally:
            if answer.cancelled():
                place.send(Abort(id))
            self._asked.pop(id, None)
            self._places.call_ended()

    def at(self, device: str, model: str | None = None) -> int:
        """Requests that the worker has; of one model, or of all."""
        here = [one for one in self._asked.values() if one.device == device]
        return sum(model in (None, one.model) for one in here)

    def at_work(self) -> set[tuple[str, str]]:
        """The workers and models that have requests."""
        return {(one.device, one.model) for one in self._asked.values()}

    def send_on(self, place: Supervisor, model: str) -> None:
        """Have texts that wait at a worker, which lives, embedded elsewhere."""
        for id, one in list(self._asked.items()):
            if (one.device, one.model) == (place.name, model):
                place.send(Abort(id))
                one.fail(WorkerLost(f"{model} was moved"))

    # --- what workers say -----------------------------------------------------------------------
    def embedded(self, event: Embedded) -> None:
        asked = self._asked.get(event.id)
        if asked is not None and not asked.answer.done():
            asked.answer.set_result(EmbedResult(event.vectors, event.prompt_tokens))

    def failed(self, id: str, error: TenfoldError) -> None:
        """A worker cannot do what a request asks."""
        if id in self._asked:
            self._asked[id].fail(error)

    def lost(self, device: str) -> None:
        """A worker died."""
        for one in list(self._asked.values()):
            if one.device == device:
                one.fail(WorkerLost("the worker died"))

    def fail_all(self, error: TenfoldError) -> None:
        for one in list(self._asked.values()):
            one.fail(error)
