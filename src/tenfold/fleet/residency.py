"""Where models' weights are and what they may hold: an administrator's words, carried to workers.

Knows nothing of what a worker decides by itself, but for the log of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from tenfold.core.clock import Clock
from tenfold.core.errors import Conflict, InvalidRequest, Unavailable
from tenfold.core.messages import (
    Decision,
    ModelMoved,
    ModelOptions,
    SleepModel,
    WakeModel,
)
from tenfold.fleet.served import ServedModel
from tenfold.fleet.supervisor import Supervisor
from tenfold.fleet.types import MemoryDecision

SLEEP_SECONDS = 30.0
"""For a model's requests to end, and its pages to go back."""
WAKE_SECONDS = 120.0
MOST_NOTED = 1000


@dataclass(slots=True, frozen=True)
class ResidencyChange:
    """What is to change of a model; None leaves a value as it is. ``ttl`` and ``limit`` below 0
    lift theirs. Bytes are of keys and values."""

    pinned: bool | None = None
    ttl: float | None = None
    floor: int | None = None
    limit: int | None = None
    evict_cost: float | None = None

    def check(self, options: ModelOptions) -> None:
        """Raises InvalidRequest, naming the field, for what cannot be."""
        for name in ("floor", "evict_cost"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InvalidRequest(f"{name} is {value}; it must not be below 0", param=name)
        made = self.applied(options)
        if made.kv_limit_bytes is not None and made.kv_limit_bytes < made.floor_bytes:
            raise InvalidRequest(
                f"the limit would be {made.kv_limit_bytes} bytes and the floor "
                f"{made.floor_bytes}; raise the limit or lower the floor",
                param="limit" if self.limit is not None else "floor",
            )

    def applied(self, options: ModelOptions) -> ModelOptions:
        """``options`` as they are after it; new ones, because workers may share the old."""
        made = replace(options)
        if self.pinned is not None:
            made.pinned = self.pinned
        if self.ttl is not None:
            made.ttl = self.ttl if self.ttl >= 0 else None
        if self.floor is not None:
            made.floor_bytes = self.floor
        if self.limit is not None:
            made.kv_limit_bytes = self.limit if self.limit >= 0 else None
        if self.evict_cost is not None:
            made.evict_cost = self.evict_cost
        return made


class Residency:
    """What an administrator asks of the memory of a service's models. One event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._noted: deque[Decision] = deque(maxlen=MOST_NOTED)

    async def sleep(
        self,
        entry: ServedModel,
        to: Literal["host", "cold"] = "host",
        *,
        force: bool = False,
        hold: bool = False,
    ) -> None:
        """Put the model to sleep on every worker that holds it. Raises Conflict for a pinned one
        unless forced, Unavailable where no worker holds it, and what a worker says."""
        if entry.source.pinned and not force:
            raise Conflict(f"{entry.name} is pinned; unpin it first, or force", param="model")
        command = SleepModel(entry.name, to, force, hold)
        await _all(place.moves.sleep(command, SLEEP_SECONDS) for place in _holders(entry))

    async def wake(self, entry: ServedModel) -> None:
        """Bring the model's weights back on every worker that holds it. Raises Unavailable where
        none does, and what a worker says."""
        command = WakeModel(entry.name)
        await _all(place.moves.wake(command, WAKE_SECONDS) for place in _holders(entry))

    def change(self, entry: ServedModel, change: ResidencyChange) -> None:
        """In force at once, and for every worker that loads the model later. Raises
        InvalidRequest."""
        source = entry.source
        change.check(source.options)
        source.options = change.applied(source.options)
        source.pinned = source.pinned if change.pinned is None else change.pinned
        for place in entry.places:
            place.set_residency(entry.name, source.options)

    def note(self, decision: Decision, entry: ServedModel | None = None) -> None:
        """Enter a decision of the fleet itself, such as a migration of ``entry``, into the log.
        Its time is of the service's clock."""
        self._noted.append(decision)
        if entry is not None and decision.kind == "migrate":
            entry.migrations += 1

    async def decisions(self, supervisors: Iterable[Supervisor], most: int) -> list[MemoryDecision]:
        """The latest ``most`` of the workers that answer, and of the fleet, newest first."""
        reports = await asyncio.gather(*(place.decisions(most) for place in supervisors))
        now = self._clock.now()
        found = [_aged("fleet", one, now) for one in self._noted]
        for report in reports:
            if report is not None:
                at = report.now or now
                found += [_aged(report.device, one, at) for one in report.decisions]
        found.sort(key=lambda one: one.age)
        return found[:most]


def _aged(device: str, made: Decision, now: float) -> MemoryDecision:
    age = max(0.0, now - made.at)
    return MemoryDecision(device, made.kind, made.model, made.why, age, made.pages, made.seconds)


def _holders(entry: ServedModel) -> list[Supervisor]:
    found = [place for place in entry.places if entry.name in place.loaded]
    if not found:
        raise Unavailable(f"no worker holds {entry.name} now; try again soon", retry_after=1)
    return found


async def _all(asked: Iterable[Coroutine[Any, Any, ModelMoved]]) -> None:
    """Wait for every worker, then raise what the first that failed says."""
    for result in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
