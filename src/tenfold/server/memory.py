"""What pages, models and decisions look like to whoever watches, and the latest decisions, kept.

Plain dicts of plain numbers; knows nothing of routes.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import Any

from tenfold.core.clock import Clock
from tenfold.core.errors import TenfoldError
from tenfold.core.messages import DeviceStats, ModelStats
from tenfold.fleet.types import MemoryDecision
from tenfold.server.backend import Backend

MOST = 100
_ASKED = 400
"""Limits change whenever a model comes or goes; who watches is told of the rest."""
_PLACE = (
    *("residency", "held", "weight_pages", "kv_pages", "cached_pages", "image_pages"),
    *("limit_pages", "floor_pages", "idle_seconds", "sleeps_in"),
    *("wakes", "sleeps", "wake_seconds"),
)


def fragmentation(device: DeviceStats) -> float | None:
    """Bytes of the pages mapped for keys and values over the bytes of those: 1 is none. None while
    there are no keys and values."""
    mapped = sum(model.kv_pages for model in device.models) * device.page_bytes
    return mapped / device.live_kv_bytes if device.live_kv_bytes else None


def place_dict(model: ModelStats) -> dict[str, Any]:
    """A model's part of one device, without the device."""
    return {field: getattr(model, field) for field in _PLACE}


def device_dict(device: DeviceStats) -> dict[str, Any]:
    """A device's memory."""
    return {
        "device": device.device,
        "page_bytes": device.page_bytes,
        "capacity_pages": device.capacity_pages,
        "mapped_pages": device.mapped_pages,
        "reserved_pages": device.reserved_pages,
        "scratch_pages": device.scratch_pages,
        "virtual_bytes": device.virtual_bytes,
        "resident_bytes": device.resident_bytes,
        "live_kv_bytes": device.live_kv_bytes,
        "fragmentation": fragmentation(device),
        "pressure": device.pressure,
        "map_seconds": asdict(device.map_seconds),
        "unmap_seconds": asdict(device.unmap_seconds),
        "decided": dict(device.decided),
        "models": [{"model": model.name, **place_dict(model)} for model in device.models],
    }


class DecisionCache:
    """The backend's latest decisions but for changed limits, asked for at most once in ``max_age``
    seconds however many pages watch. Workers that do not answer leave the old ones standing."""

    def __init__(
        self, backend: Backend, clock: Clock, max_age: float = 1.0, patience: float = 2.0
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._max_age = max_age
        self._patience = patience
        self._lock = asyncio.Lock()
        self._at = float("-inf")
        self._last: list[MemoryDecision] = []

    async def get(self) -> list[dict[str, Any]]:
        """At most ``MOST``, newest first, with their ages now."""
        async with self._lock:
            if self._clock.now() - self._at >= self._max_age:
                await self._ask()
        passed = self._clock.now() - self._at
        return [{**asdict(one), "age": one.age + passed} for one in self._last]

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(self._patience):
                found = await self._backend.decisions(_ASKED)
            self._last = [one for one in found if one.kind != "limit"][:MOST]
            self._at = self._clock.now()
        except (TenfoldError, TimeoutError) as exc:
            logging.getLogger("tenfold.server").warning("no decisions from workers: %r", exc)
