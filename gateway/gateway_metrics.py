"""The gateway's Prometheus metrics: its requests, its streams, and the run queue as Redis has it."""

import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.observability import collectors
from stagebus.shared.observability.loop_lag import LoopLag
from stagebus.shared.storage.outage_log import OUTAGE
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.shared.store import run_store

logger = logging.getLogger(__name__)


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self, hub: Hub, lease_s: float) -> None:
        self._lease_s = lease_s
        self._registry = registry = collectors.new_registry()
        registry.register(_HubCollector(hub))
        self.loop_lag = LoopLag(registry)
        self.requests = Counter(
            "http_requests", "requests answered", ["method", "route", "status"],
            namespace=collectors.NAMESPACE, registry=registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "http_request_seconds", "time from a request to the end of its response, without streams",
            ["method", "route"], namespace=collectors.NAMESPACE, registry=registry, buckets=collectors.LATENCY_BUCKETS_S,
        )  # fmt: skip
        self._redis_up = Gauge(
            "redis_up", "1 if Redis answered this scrape", namespace=collectors.NAMESPACE, registry=registry
        )
        self._queue_depth = Gauge(
            "queue_depth",
            "runs that are due and that no worker has claimed",
            namespace=collectors.NAMESPACE,
            registry=registry,
        )
        self._runs = Gauge(
            "runs", "runs that have not ended, by status; running includes runs that wait for a retry", ["status"],
            namespace=collectors.NAMESPACE, registry=registry,
        )  # fmt: skip

    @property
    def registry(self) -> CollectorRegistry:
        """Returns the registry of all of the gateway's metrics."""
        return self._registry

    async def render(self, redis: Redis) -> bytes:
        """Returns all metrics in Prometheus's text format; while Redis is down, without those of the queue."""
        try:
            counts = await run_store.count_runs(redis, self._lease_s)
        except REDIS_AWAY as exc:
            OUTAGE.report_failure(logger, "the queue's metrics", exc)
            self._redis_up.set(0)
        else:
            self._redis_up.set(1)
            self._queue_depth.set(counts.waiting)
            self._runs.labels("queued").set(counts.waiting)
            self._runs.labels("running").set(max(0, counts.active - counts.waiting - counts.parked - counts.throttled))
            self._runs.labels("parked").set(counts.parked)
        return collectors.render(self._registry)


class _HubCollector(Collector):
    """Reads the hub's counters, which are plain integers because its hot path updates them."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(f"{collectors.NAMESPACE}_open_streams", "open streams", self._hub.open_streams)
        yield CounterMetricFamily(
            f"{collectors.NAMESPACE}_events_relayed", "events sent to clients", self._hub.events_relayed
        )
        yield CounterMetricFamily(
            f"{collectors.NAMESPACE}_bytes_relayed", "bytes sent to clients", self._hub.bytes_relayed
        )
