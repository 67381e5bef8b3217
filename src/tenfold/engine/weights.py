"""A model's weights, as something that can leave a device's memory and come back.

Addresses stay what they are, so nothing is bound anew. Does not know why they come or go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from tenfold.core.clock import Clock
from tenfold.core.machine import memory
from tenfold.memory.page_cache import HeldFile
from tenfold.memory.ranges import runs

if TYPE_CHECKING:
    from tenfold.memory.ranges import VirtualRange
    from tenfold.models.loading import Refill

BYTES_A_SECOND = 1e9
"""What reading weights into their pages is taken to bring, before it was seen."""

SPARE = 0.2
"""Of the machine's memory, which sleeping weights leave free."""

Done = Callable[[Exception | None], None]
"""Told, on the engine's thread, that weights are there; or what went wrong."""


class ModelWeights(Protocol):
    """``pages``: what they take while they are there."""

    @property
    def pages(self) -> int: ...

    def map(self) -> bool:
        """Back all pages, or none."""
        ...

    def missing(self) -> int:
        """Pages that ``map`` lacks now."""
        ...

    def fill(self) -> None:
        """Write them into their pages; any thread. Raises ModelFileError, OSError."""
        ...

    def unmap(self) -> None:
        """Give the pages back, if they are there; what is in them is lost."""
        ...

    def hold_host(self) -> None:
        """Asleep, stay in the host's memory, whatever the system would do."""
        ...

    def leave_host(self) -> None:
        """Leave the host's memory, too: the next ``fill`` reads a disk."""
        ...

    def seconds(self) -> float:
        """What ``fill`` is expected to take now; or took, while they are there."""
        ...


class PackedWeights:
    """Weights in a range of the page pool, written by ``refill``. ``image``: the file it reads.

    Where the range keeps, what waking takes is for the pages that others took meanwhile."""

    def __init__(self, space: VirtualRange, refill: Refill, image: Path | None = None) -> None:
        self.space = space
        self._refill = refill
        self._image = None if image is None else HeldFile(image, _spare)
        self._lost: set[int] = set()
        """Pages that are mapped, or kept, without the weights in them."""
        self._took = 0.0
        self._page_seconds = space.page_bytes / BYTES_A_SECOND

    @property
    def pages(self) -> int:
        return self.space.pages

    def map(self) -> bool:
        if not self.space.claim_all():
            return False
        self._lost |= self.space.claimed
        return True

    def missing(self) -> int:
        return self.space.pages - self.space.mapped_pages - self.space.available()

    def fill(self) -> None:
        began, lost = perf_counter(), len(self._lost)
        self.space.populate()
        if lost:
            page, end = self.space.page_bytes, self.space.nbytes
            parts = [
                (one.first * page, (one.first + one.length) * page) for one in runs(self._lost)
            ]
            self._refill([(first, min(last, end)) for first, last in parts])
            self._lost.clear()
        self._took = perf_counter() - began
        if lost:
            self._page_seconds = self._took / lost
        if self._image is not None:
            self._image.release()

    def unmap(self) -> None:
        self.space.unmap_all()

    def hold_host(self) -> None:
        """As far as ``SPARE`` allows: what does not fit is left to the page cache."""
        if self._image is not None:
            self._image.hold()

    def leave_host(self) -> None:
        self.space.forget_kept()
        if self._image is not None:
            self._image.drop()

    def seconds(self) -> float:
        if not self.space.mapped_pages:
            kept = self.space.ready_pages if self.space.keeps else 0
            return (self.space.pages - kept) * self._page_seconds
        return len(self._lost) * self._page_seconds or self._took


def _spare(nbytes: int) -> bool:
    now = memory()
    return now.available - nbytes >= SPARE * now.total


class Filler(Protocol):
    """Fills weights while the engine goes on."""

    def fill(self, weights: ModelWeights, done: Done) -> None: ...

    def due(self) -> float:
        """When ``poll`` will have something to tell; infinity where that is told otherwise."""
        ...

    def poll(self, now: float) -> None:
        """Tell of what is over by now."""
        ...


class ThreadFiller:
    """A thread for each model that wakes. ``call`` runs something on the engine's thread."""

    def __init__(self, call: Callable[[Callable[[], None]], Any]) -> None:
        self._call = call

    def fill(self, weights: ModelWeights, done: Done) -> None:
        def run() -> None:
            error: Exception | None = None
            try:
                weights.fill()
            except Exception as wrong:
                error = wrong
            self._call(lambda: done(error))

        threading.Thread(target=run, name="wake", daemon=True).start()

    def due(self) -> float:
        return inf

    def poll(self, now: float) -> None:
        """Threads tell by themselves."""


class VirtualFiller:
    """Under a clock that only simulation moves: weights are there when their seconds are over.

    One link brings all of them, so those that come at the same time wait for each other."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free = 0.0
        self._coming: list[tuple[float, int, ModelWeights, Done]] = []
        self._numbers = count()

    def fill(self, weights: ModelWeights, done: Done) -> None:
        self._free = max(self._free, self._clock.now()) + weights.seconds()
        heappush(self._coming, (self._free, next(self._numbers), weights, done))

    def due(self) -> float:
        return self._coming[0][0] if self._coming else inf

    def poll(self, now: float) -> None:
        while self._coming and self._coming[0][0] <= now:
            _, _, weights, done = heappop(self._coming)
            weights.fill()
            done(None)
