"""The Prometheus page: a registry per app, filled from requests and from the workers' stats.

Names, labels and help live in ``core/metric_names.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest

from tenfold.core import metric_names as names
from tenfold.core.errors import Overloaded
from tenfold.core.messages import DeviceStats
from tenfold.core.metric_names import MetricName
from tenfold.fleet.types import ModelStatus
from tenfold.server.client_metrics import OF_CLIENTS, ClientCollector
from tenfold.server.clients import ClientBook, ClientTotals
from tenfold.server.record import RequestRecord
from tenfold.server.service_book import ServiceBook
from tenfold.server.worker_metrics import FROM_WORKERS, WorkerCollector


class Metrics:
    """Counts requests as they end, and shows the workers' gauges as last read."""

    def __init__(self, book: ClientBook, services: ServiceBook, compat: str = "none") -> None:
        self._book = book
        self._services = services
        self._known: set[str] = set()
        self._compat = compat == "vllm"
        self._registry = CollectorRegistry(auto_describe=False)
        self._workers = WorkerCollector()
        self._registry.register(self._workers)
        self._registry.register(ClientCollector(services))
        self._counters = {
            entry.name: Counter(entry.name, entry.help, entry.labels, registry=self._registry)
            for entry in names.TABLE
            if entry.kind == "counter" and entry not in (*FROM_WORKERS, *OF_CLIENTS)
        }
        self._lines: dict[tuple[str, str], _Line] = {}
        self._histograms = {
            entry.name: Histogram(
                entry.name,
                entry.help,
                entry.labels,
                buckets=entry.buckets,
                registry=self._registry,
            )
            for entry in names.TABLE
            if entry.kind == "histogram"
        }

    def tokens(self, record: RequestRecord, count: int, gap: float | None) -> None:
        """``count`` tokens left for the client, ``gap`` seconds after the choice's last ones."""
        key = record.model, self._book.label(record.client)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(
                self._counters[names.COMPLETION_TOKENS.name].labels(*key),
                self._histograms[names.INTER_TOKEN.name].labels(record.model),
                self._book.totals(record.client),
            )
        line.tokens.inc(count)
        line.totals.completion_tokens += count
        if gap is not None:
            for _ in range(count):
                line.gaps.observe(gap / count)

    def follow(self, clients: Collection[str]) -> None:
        """These clients are there now. What is counted under the name of one that was there and is
        gone is dropped, so that another can have its label."""
        for client in self._known - set(clients):
            self._forget(client)
        for client in set(clients) - self._known:
            self._book.welcome(client)
        self._known = set(clients)

    def _forget(self, client: str) -> None:
        self._book.forget(client)
        self._services.forget(client)
        self._lines = {key: line for key, line in self._lines.items() if key[1] != client}
        for entry in names.TABLE:
            metric = self._counters.get(entry.name) or self._histograms.get(entry.name)
            if metric is None or "client" not in entry.labels:
                continue
            samples = [sample.labels for family in metric.collect() for sample in family.samples]
            own = {
                tuple(labels[name] for name in entry.labels)
                for labels in samples
                if labels["client"] == client
            }
            for labels in own:
                metric.remove(*labels)

    def response(self, record: RequestRecord, route: str) -> None:
        """An HTTP response is complete."""
        self._count(names.HTTP_RESPONSES, route, str(record.status))

    def finished(self, record: RequestRecord, now: float) -> None:
        """A request for a model has ended, well or badly."""
        client = self._book.label(record.client)
        if record.error:
            self._count(names.REQUESTS_FAILED, record.model, client, record.error)
            if record.limit:
                self._count(names.REQUESTS_LIMITED, client, record.limit)
            elif record.error == Overloaded.code:
                self._count(names.REQUESTS_REJECTED, record.model, client)
        if not record.ran:
            return
        for finish in record.finishes:
            self._count(names.REQUESTS_FINISHED, record.model, client, finish)
        self._count(names.PROMPT_TOKENS, record.model, client, by=record.usage.prompt_tokens)
        self._count(names.CACHED_TOKENS, record.model, client, by=record.usage.cached_tokens)
        totals = self._book.totals(record.client)
        totals.requests += 1
        totals.prompt_tokens += record.usage.prompt_tokens
        if not record.error:
            self._observe_times(record, now)
            if record.queue_seconds is not None:
                self._observe(names.CLIENT_QUEUE_SECONDS, client, record.queue_seconds)

    def page(self, devices: list[DeviceStats], models: list[ModelStatus], ready: bool) -> bytes:
        """The exposition text, with the workers' numbers given."""
        self._workers.update(devices, models, ready)
        return generate_latest(_Page(self._registry, self._compat))

    def _count(self, metric: MetricName, *labels: str, by: float = 1) -> None:
        if by:
            self._counters[metric.name].labels(*labels).inc(by)

    def _observe(self, metric: MetricName, label: str, value: float) -> None:
        self._histograms[metric.name].labels(label).observe(value)

    def _observe_times(self, record: RequestRecord, now: float) -> None:
        model, usage = record.model, record.usage
        self._observe(names.REQUEST_SECONDS, model, now - record.started)
        self._observe(names.REQUEST_PROMPT_TOKENS, model, usage.prompt_tokens)
        self._observe(names.REQUEST_COMPLETION_TOKENS, model, usage.completion_tokens)
        queued = record.queue_seconds
        if queued is not None:
            self._observe(names.QUEUE_SECONDS, model, queued)
        if record.first is None or record.last is None:
            return
        to_first = record.first - record.started
        self._observe(names.TIME_TO_FIRST_TOKEN, model, to_first)
        self._observe(names.DECODE_SECONDS, model, record.last - record.first)
        if queued is not None:
            self._observe(names.PREFILL_SECONDS, model, max(0.0, to_first - queued))
        if len(record.finishes) == 1 and usage.completion_tokens > 1:
            decode = (record.last - record.first) / (usage.completion_tokens - 1)
            self._observe(names.TIME_PER_OUTPUT_TOKEN, model, decode)


@dataclass(slots=True)
class _Line:
    """What every token of a model and a client counts in; looking it up by labels takes longer
    than counting."""

    tokens: Counter
    gaps: Histogram
    totals: ClientTotals


class _Page:
    """What the exposition reads: the registry's families, then their vLLM twins."""

    def __init__(self, registry: CollectorRegistry, compat: bool) -> None:
        self._registry = registry
        self._compat = compat

    def collect(self) -> Iterator[Metric]:
        aliases = {entry.name: entry.vllm for entry in names.TABLE}
        for family in self._registry.collect():
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family
            for alias in aliases.get(family.name, ()) if self._compat else ():
                yield _twin(family, alias)


def _twin(family: Metric, alias: str) -> Metric:
    """The family under vLLM's name and labels; labels that vLLM lacks are summed over."""
    twin = Metric(alias, family.documentation, family.type)
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
    for sample in family.samples:
        labels = {"model_name": sample.labels.get("model", ""), "engine": "0"}
        if "finish" in sample.labels:
            labels["finished_reason"] = sample.labels["finish"]
        if "le" in sample.labels:
            labels["le"] = sample.labels["le"]
        name = alias + sample.name.removeprefix(family.name)
        sums[name, tuple(labels.items())] += sample.value
    for (name, pairs), value in sums.items():
        twin.add_sample(name, dict(pairs), value)
    return twin
