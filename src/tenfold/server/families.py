"""Families of the Prometheus page, made from rows. Knows nothing of what they show."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tenfold.core.metric_names import MetricName


def gauge(entry: MetricName, rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """A family of gauges: the values of the metric's labels, and what they show."""
    family = GaugeMetricFamily(entry.name, entry.help, labels=entry.labels)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family


def counter(entry: MetricName, rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """A family of counters, likewise."""
    family = CounterMetricFamily(entry.name, entry.help, labels=entry.labels)
    for labels, value in rows:
        family.add_metric(labels, value)
    return family
