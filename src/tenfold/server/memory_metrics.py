"""Devices' memory as Prometheus families: what cannot be read off one field of a message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from prometheus_client.core import Metric

from tenfold.core import metric_names as names
from tenfold.core.messages import DeviceStats, ResidencyState
from tenfold.server.families import counter, gauge
from tenfold.server.memory import fragmentation

Rows = list[tuple[tuple[str, ...], float]]

MEMORY_COUNTERS = (names.PAGE_CALLS, names.MEMORY_DECISIONS)


def memory_families(devices: Sequence[DeviceStats]) -> Iterator[Metric]:
    """Where weights are, limits, fragmentation, how fast pages move, and decisions."""
    each = [(device.device, model) for device in devices for model in device.models]
    states: Rows = [
        ((model.name, device, state), float(model.residency == state))
        for device, model in each
        for state in get_args(ResidencyState)
    ]
    yield gauge(names.MODEL_RESIDENCY, states)
    limits = [((m.name, d), m.limit_pages) for d, m in each if m.limit_pages is not None]
    yield gauge(names.MODEL_LIMIT_PAGES, limits)
    shares = [((device.device,), fragmentation(device)) for device in devices]
    yield gauge(names.KV_FRAGMENTATION, [(on, it) for on, it in shares if it is not None])
    yield gauge(names.PRESSURE, [((d.device,), d.pressure) for d in devices])
    yield gauge(names.DEVICE_VIRTUAL_BYTES, [((d.device,), d.virtual_bytes) for d in devices])
    spreads = [
        (device.device, call, spread)
        for device in devices
        for call, spread in (("map", device.map_seconds), ("unmap", device.unmap_seconds))
    ]
    yield counter(names.PAGE_CALLS, [((d, call), spread.count) for d, call, spread in spreads])
    quantiles: Rows = [
        ((device, call, quantile), value)
        for device, call, spread in spreads
        for quantile, value in (("0.5", spread.p50), ("0.99", spread.p99))
    ]
    yield gauge(names.PAGE_SECONDS, quantiles)
    decided: Rows = [((d.device, kind), n) for d in devices for kind, n in d.decided.items()]
    yield counter(names.MEMORY_DECISIONS, decided)
