"""What the workers report of clients, as Prometheus families under a bounded number of labels.

Knows nothing of requests: only the book of services.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tenfold.core import metric_names as names
from tenfold.core.metric_names import MetricName
from tenfold.server.families import counter, gauge
from tenfold.server.service_book import ClientRow, ServiceBook


class ClientCollector(Collector):
    """Shows the book of services."""

    def __init__(self, services: ServiceBook) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        rows = self._services.rows()
        for entry, read in _OVER_DEVICES:
            made = [((label,), read(row)) for label, row in rows.items()]
            yield (counter if entry.kind == "counter" else gauge)(entry, made)
        standings = self._services.standings()
        yield gauge(names.CLIENT_CREDIT, [(key, one.credit) for key, one in standings.items()])
        yield gauge(names.CLIENT_DRIFT, [(key, abs(one.drift)) for key, one in standings.items()])
        jain = [((row.device, row.service), row.value) for row in self._services.jain()]
        yield gauge(names.JAIN_INDEX, jain)


_OVER_DEVICES: tuple[tuple[MetricName, Callable[[ClientRow], float]], ...] = (
    (names.CLIENT_SERVICE, lambda row: row.totals.service),
    (names.CLIENT_ASKED_SERVICE, lambda row: row.totals.asked_service),
    (names.CLIENT_WAITING, lambda row: float(row.waiting)),
    (names.CLIENT_RUNNING, lambda row: float(row.running)),
    (names.CLIENT_OLDEST_WAIT, lambda row: row.oldest_wait),
)

OF_CLIENTS = tuple(entry for entry, _ in _OVER_DEVICES)
"""The metrics of clients that no request counts: the collector alone shows them."""
