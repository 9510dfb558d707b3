"""Figures for Prometheus: of requests, of the process, and of what a service does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import bootstream
from bootstream.storage.metrics import Metrics as StorageMetrics

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class ServiceMetrics:
    """A service's figures. Thread safe.

    Args:
        service: its name.
        more: called for each page; yields further families.
        storage: of the store.
    """

    def __init__(
        self,
        service: str,
        *,
        more: Callable[[], Iterable[Metric]],
        storage: StorageMetrics | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.GCCollector(registry=self.registry)
        self._seconds = Histogram(
            "bootstream_http_request_seconds",
            "Time to the end of the answer.",
            ["method", "route", "status"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_Further(service, more, storage))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer. Routes and methods are those that exist, so labels stay few."""
        known = method if method in _METHODS else "other"
        self._seconds.labels(known, route or "none", str(status)).observe(seconds)

    def counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        """Return a new counter."""
        return Counter(name, text, labels, registry=self.registry)

    def page(self) -> bytes:
        """Return all figures in Prometheus's text format."""
        return prometheus_client.generate_latest(self.registry)


class _Further(Collector):
    def __init__(
        self,
        service: str,
        more: Callable[[], Iterable[Metric]],
        storage: StorageMetrics | None,
    ) -> None:
        self._service = service
        self._more = more
        self._storage = storage

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "bootstream_info", "What runs here.", labels=["service", "version"]
        )
        info.add_metric([self._service, bootstream.__version__], 1)
        yield info
        if self._storage is not None:
            yield from _storage_families(self._storage)
        yield from self._more()


def gauge(
    name: str, text: str, values: Iterable[tuple[tuple[str, ...], float]], *labels: str
) -> GaugeMetricFamily:
    """Return a family of gauges by their labels' values."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _storage_families(storage: StorageMetrics) -> Iterator[Metric]:
    calls = CounterMetricFamily(
        "bootstream_storage_calls", "Operations on the store.", labels=["operation"]
    )
    seconds = CounterMetricFamily(
        "bootstream_storage_seconds", "Time in them, all together.", labels=["operation"]
    )
    size = CounterMetricFamily(
        "bootstream_storage_bytes", "Bytes that they moved.", labels=["operation"]
    )
    failed = CounterMetricFamily(
        "bootstream_storage_errors", "Those that failed.", labels=["operation", "error"]
    )
    for operation, counts in storage.snapshot().items():
        calls.add_metric([operation], counts["calls"])
        seconds.add_metric([operation], counts["seconds"])
        size.add_metric([operation], counts["bytes"])
        for name, count in counts["errors"].items():
            failed.add_metric([operation, name], count)
    yield from (calls, seconds, size, failed)
