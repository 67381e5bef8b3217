"""The backend's numbers, asked for at most twice a second however many pages watch."""

from __future__ import annotations

import asyncio
import logging

from tenfold.core.clock import Clock
from tenfold.core.errors import TenfoldError
from tenfold.core.messages import DeviceStats
from tenfold.server.backend import Backend
from tenfold.server.service_book import ServiceBook


class StatsCache:
    """Remembers the last answer, and enters it into the book of services. A worker that does not
    answer leaves the old numbers standing."""

    def __init__(
        self,
        backend: Backend,
        clock: Clock,
        services: ServiceBook,
        max_age: float = 0.5,
        patience: float = 2.0,
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._services = services
        self._max_age = max_age
        self._patience = patience
        self._lock = asyncio.Lock()
        self._at = float("-inf")
        self._last: list[DeviceStats] = []

    async def get(self) -> list[DeviceStats]:
        """Numbers not older than ``max_age`` seconds, if the workers answer in ``patience``."""
        async with self._lock:
            if self._clock.now() - self._at < self._max_age:
                return self._last
            try:
                async with asyncio.timeout(self._patience):
                    self._last = await self._backend.stats()
                self._services.take(self._last, self._clock.now())
            except (TenfoldError, TimeoutError) as exc:
                logging.getLogger("tenfold.server").warning("no stats from the workers: %r", exc)
            self._at = self._clock.now()
            return self._last
