"""The last minute of what devices did for whom: shares of service, and how even they are.

Remembers readings of the workers' stats; takes none. Does not know labels, keys or requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from tenfold.core.messages import ClientStats, DeviceStats
from tenfold.scheduling.fair_shares import jain

SHARE_SECONDS = 10.0
JAIN_SECONDS = 60.0
GAP_SECONDS = 1.0
"""Readings that follow sooner are not remembered."""

_Clients = dict[str, dict[str, ClientStats]]
"""By device and client."""


class Served(NamedTuple):
    """Service computed for a client on a device within a window."""

    client: str
    device: str
    service: float


class JainRow(NamedTuple):
    """``service``: "computed", or "asked" with cached prompt tokens counted."""

    device: str
    service: str
    value: float


class ServiceWindow:
    """Readings of at least a minute, one a second at most."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, _Clients]] = deque()
        self._now: tuple[float, _Clients] = (0.0, {})

    def take(self, devices: list[DeviceStats], now: float) -> None:
        """A reading at ``now`` seconds."""
        clients = {each.device: {one.client: one for one in each.clients} for each in devices}
        self._now = (now, clients)
        if self._past and now - self._past[-1][0] < GAP_SECONDS:
            return
        self._past.append(self._now)
        while len(self._past) > 1 and self._past[1][0] <= now - JAIN_SECONDS:
            self._past.popleft()

    def served(self) -> Iterator[Served]:
        """What each client was given in the last ``SHARE_SECONDS``, or since the first reading of
        them that tells of it. A worker that began anew meanwhile gave what it says now."""
        past = self._since(SHARE_SECONDS)
        for device, clients in self._now[1].items():
            readings = [reading.get(device, {}) for _, reading in past]
            for client, one in clients.items():
                then = next((each[client] for each in readings if client in each), one)
                given = one.service - then.service
                yield Served(client, device, given if given >= 0 else one.service)

    def jain(self) -> Iterator[JainRow]:
        """Jain's index of service over fair share, of each device's clients that had something
        waiting at every reading of the last ``JAIN_SECONDS``; nothing for fewer than two."""
        past = self._since(JAIN_SECONDS)
        for device, clients in self._now[1].items():
            readings = [reading.get(device, {}) for _, reading in past]
            waited = [
                (readings[0][name], one)
                for name, one in clients.items()
                if one.waiting
                and one.fair
                and all(name in each and each[name].waiting for each in readings)
                and one.service >= readings[0][name].service
            ]
            for service, field in (("computed", "service"), ("asked", "asked_service")):
                given = (
                    (getattr(one, field) - getattr(then, field)) / one.fair for then, one in waited
                )
                if (value := jain(given)) is not None:
                    yield JainRow(device, service, value)

    def _since(self, seconds: float) -> list[tuple[float, _Clients]]:
        """The readings of the last so many seconds, and the one before them."""
        start = self._now[0] - seconds
        found: list[tuple[float, _Clients]] = []
        for reading in reversed(self._past):
            found.append(reading)
            if reading[0] <= start:
                break
        return found[::-1]
