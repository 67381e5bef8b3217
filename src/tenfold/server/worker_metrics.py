"""What the workers report of themselves, as Prometheus families.

Knows nothing of requests: only of the last DeviceStats it was given.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tenfold.core import metric_names as names
from tenfold.core.messages import DeviceStats, ModelStats
from tenfold.core.metric_names import MetricName
from tenfold.fleet.types import ModelStatus
from tenfold.server.families import counter, gauge
from tenfold.server.memory_metrics import MEMORY_COUNTERS, memory_families

STATES = ("loading", "ready", "failed", "unloading")


class WorkerCollector(Collector):
    """Shows the last DeviceStats as gauges and counters."""

    def __init__(self) -> None:
        self._devices: list[DeviceStats] = []
        self._models: list[ModelStatus] = []
        self._ready = False

    def update(self, devices: list[DeviceStats], models: list[ModelStatus], ready: bool) -> None:
        self._devices, self._models, self._ready = devices, models, ready

    def collect(self) -> Iterator[Metric]:
        yield gauge(names.READY, [((), float(self._ready))])
        yield gauge(names.MODEL_STATE, self._states())
        moved = [((model.name,), float(model.migrations)) for model in self._models]
        yield counter(names.MODEL_MIGRATIONS, moved)
        pages = [
            ((device.device, what), getattr(device, f"{what}_pages"))
            for device in self._devices
            for what in ("capacity", "mapped", "reserved", "scratch")
        ]
        yield gauge(names.DEVICE_PAGES, pages)
        for entry, read in _DEVICE_GAUGES:
            yield gauge(entry, [((d.device,), read(d)) for d in self._devices])
        for entry, labels_and_fields in _MODEL_METRICS:
            rows = [
                ((model.name, device, *labels), float(getattr(model, name)))
                for device, model in self._each()
                for labels, name in labels_and_fields
            ]
            yield (counter if entry.kind == "counter" else gauge)(entry, rows)
        yield gauge(names.KV_USAGE, self._usage())
        yield from memory_families(self._devices)
        for entry, read in _DEVICE_COUNTERS:
            yield counter(entry, [((d.device,), read(d)) for d in self._devices])
        yield counter(names.SERVER_CPU_SECONDS, [((), time.process_time())])

    def _each(self) -> Iterator[tuple[str, ModelStats]]:
        for device in self._devices:
            for model in device.models:
                yield device.device, model

    def _states(self) -> list[tuple[tuple[str, ...], float]]:
        return [
            ((model.name, state), float(model.state == state))
            for model in self._models
            for state in STATES
        ]

    def _usage(self) -> list[tuple[tuple[str, ...], float]]:
        used: dict[str, int] = defaultdict(int)
        total: dict[str, int] = defaultdict(int)
        for _, model in self._each():
            used[model.name] += model.kv_blocks_used
            total[model.name] += model.kv_blocks_total
        return [((name,), used[name] / total[name] if total[name] else 0.0) for name in used]


_DEVICE_GAUGES: tuple[tuple[MetricName, Callable[[DeviceStats], float]], ...] = (
    (names.DEVICE_PAGE_BYTES, lambda d: float(d.page_bytes)),
    (names.DEVICE_RESIDENT_BYTES, lambda d: float(d.resident_bytes)),
    (names.INTEGRITY_FAULTS, lambda d: float(len(d.integrity))),
)

_DEVICE_COUNTERS: tuple[tuple[MetricName, Callable[[DeviceStats], float]], ...] = (
    (names.MESSAGE_SECONDS, lambda d: d.message_seconds),
    (names.REFILL_ROUNDS, lambda d: float(d.rounds)),
)

# Per metric: its labels beyond model and device, each with the field of ModelStats it shows.
_MODEL_METRICS: tuple[tuple[MetricName, tuple[tuple[tuple[str, ...], str], ...]], ...] = (
    (names.REQUESTS_RUNNING, (((), "running"),)),
    (names.REQUESTS_WAITING, (((), "waiting"),)),
    (names.WAITING_TOKENS, (((), "waiting_tokens"),)),
    (names.STEPS, (((), "steps"),)),
    (names.STEP_SECONDS, (((), "step_seconds"),)),
    (
        names.STEP_PART_SECONDS,
        (
            (("schedule",), "schedule_seconds"),
            (("launch",), "launch_seconds"),
            (("kernels",), "kernel_seconds"),
            (("sampling",), "sampling_seconds"),
        ),
    ),
    (names.PREDICTED_STEP_SECONDS, (((), "predicted_seconds"),)),
    (names.DRAFTED_TOKENS, (((), "drafted_tokens"),)),
    (names.ACCEPTED_TOKENS, (((), "accepted_tokens"),)),
    (names.PREEMPTIONS, (((), "preemptions"),)),
    (names.TTFT_REQUESTS, ((("met",), "ttft_met"), (("missed",), "ttft_missed"))),
    (names.TPOT_REQUESTS, ((("met",), "tpot_met"), (("missed",), "tpot_missed"))),
    (names.TARGETS_MET, (((), "both_met"),)),
    (names.REQUESTS_DEFERRED, (((), "deferred"),)),
    (
        names.MODEL_PAGES,
        (
            (("weights",), "weight_pages"),
            (("kv",), "kv_pages"),
            (("cached",), "cached_pages"),
            (("image",), "image_pages"),
        ),
    ),
    (names.MODEL_FLOOR_PAGES, (((), "floor_pages"),)),
    (names.MODEL_IDLE_SECONDS, (((), "idle_seconds"),)),
    (names.MODEL_WAKES, (((), "wakes"),)),
    (names.MODEL_SLEEPS, (((), "sleeps"),)),
    (names.MODEL_WAKE_SECONDS, (((), "wake_seconds"),)),
    (
        names.KV_BLOCKS,
        (
            (("used",), "kv_blocks_used"),
            (("cached",), "kv_blocks_cached"),
            (("total",), "kv_blocks_total"),
        ),
    ),
)

FROM_WORKERS = (
    *(entry for entry, _ in _MODEL_METRICS),
    *(entry for entry, _ in _DEVICE_COUNTERS),
    *MEMORY_COUNTERS,
    names.MODEL_MIGRATIONS,
    names.SERVER_CPU_SECONDS,
)
"""The metrics that no request counts: the collector alone shows them."""
