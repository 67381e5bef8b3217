"""Who was given what, over all devices: the workers' word, summed up for pages and metrics.

Clients past the book's limit are one, "other": what can be added is, of the rest the worst is told.
Counts on from what it has where a worker begins anew. Does not know keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields

from tenfold.core.messages import ClientStats, DeviceStats
from tenfold.server.clients import ClientBook
from tenfold.server.service_window import JainRow, ServiceWindow

MOST_REMEMBERED = 20_000
"""Clients of a device whose last reading is kept: as many as a worker keeps books of."""


@dataclass(slots=True)
class Totals:
    """Since the server started; see ``core.messages.ClientStats``."""

    service: float = 0.0
    asked_service: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def grow(self, then: ClientStats | None, now: ClientStats) -> None:
        """Add what was counted between two readings. A count that shrank began anew."""
        for name in _COUNTED:
            before = 0 if then is None else getattr(then, name)
            value = getattr(now, name)
            setattr(self, name, getattr(self, name) + value - (before if before <= value else 0))

    def add(self, other: Totals) -> None:
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_COUNTED = tuple(each.name for each in fields(Totals))


@dataclass(slots=True)
class Standing:
    """Where a client, or several merged into one, stands on one device. ``drift``: service beyond
    its share (below 0: behind), over the bound that is proven; of several, the worst."""

    credit: float
    drift: float


@dataclass(slots=True)
class ClientRow:
    """A client over all devices. ``share``: of the service of the last seconds, its part; ``fair``:
    the part that is its due. None: nobody was given anything."""

    totals: Totals = field(default_factory=Totals)
    waiting: int = 0
    running: int = 0
    oldest_wait: float = 0.0
    credit: float | None = None
    drift: float = 0.0
    share: float | None = None
    fair: float | None = None

    def see(self, one: ClientStats) -> None:
        """Add what a device says of one of the row's clients."""
        self.waiting += one.waiting
        self.running += one.running
        self.oldest_wait = max(self.oldest_wait, one.oldest_wait)
        self.credit = one.credit if self.credit is None else min(self.credit, one.credit)
        self.drift = max(self.drift, _ratio(one), key=abs)


class ServiceBook:
    """``take`` it every reading of the devices; ask it anything between."""

    def __init__(self, book: ClientBook) -> None:
        self._book = book
        self._window = ServiceWindow()
        self._devices: list[DeviceStats] = []
        self._last: dict[str, dict[str, ClientStats]] = {}
        self._totals: dict[str, Totals] = {}

    def take(self, devices: list[DeviceStats], now: float) -> None:
        """A reading of every device at ``now`` seconds."""
        self._devices = devices
        self._window.take(devices, now)
        for device in devices:
            last = self._last.setdefault(device.device, {})
            for one in device.clients:
                totals = self._totals.setdefault(self._book.label(one.client), Totals())
                totals.grow(last.pop(one.client, None), one)
                last[one.client] = one  # as the latest of all
            while len(last) > MOST_REMEMBERED:
                del last[next(iter(last))]

    def forget(self, client: str) -> None:
        """Drop the client's line; the book of labels has let go of it."""
        self._totals.pop(client, None)

    def rows(self, shown: Callable[[str], str] = str) -> dict[str, ClientRow]:
        """Clients under the names by which ``shown`` calls their labels; those that it calls the
        same are one."""
        rows: dict[str, ClientRow] = defaultdict(ClientRow)
        for label, totals in self._totals.items():
            rows[shown(label)].totals.add(totals)
        for device in self._devices:
            for one in device.clients:
                rows[shown(self._book.label(one.client))].see(one)
        self._add_shares(rows, shown)
        return dict(rows)

    def _add_shares(self, rows: dict[str, ClientRow], shown: Callable[[str], str]) -> None:
        by_device: dict[str, float] = defaultdict(float)
        by_row: dict[str, float] = defaultdict(float)
        for client, device, service in self._window.served():
            by_device[device] += service
            by_row[shown(self._book.label(client))] += service
        whole = sum(by_device.values())
        if not whole:
            return
        for name, service in by_row.items():
            rows[name].share, rows[name].fair = service / whole, 0.0
        for reading in self._devices:
            for one in reading.clients:
                row = rows[shown(self._book.label(one.client))]
                row.fair = (row.fair or 0.0) + one.fair * by_device[reading.device] / whole

    def standings(self) -> dict[tuple[str, str], Standing]:
        """By label and device."""
        found: dict[tuple[str, str], Standing] = {}
        for device in self._devices:
            for one in device.clients:
                key = self._book.label(one.client), device.device
                drift = _ratio(one)
                if (standing := found.get(key)) is None:
                    found[key] = Standing(one.credit, drift)
                else:
                    standing.credit = min(standing.credit, one.credit)
                    standing.drift = max(standing.drift, drift, key=abs)
        return found

    def jain(self) -> Iterator[JainRow]:
        """See ``ServiceWindow.jain``."""
        return self._window.jain()


def _ratio(one: ClientStats) -> float:
    return one.drift / one.bound if one.bound else 0.0
