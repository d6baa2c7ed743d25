"""The gateway's Prometheus metrics: its requests, its streams, and the load of the whole system as Redis has it.

Labels are names of the operator: routes, states, providers. Their number is bounded by the code and the configuration.
"""

import logging
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.observability import collectors
from stagebus.shared.observability.loop_lag import LoopLag
from stagebus.shared.observability.sweep_metrics import SweepMetrics
from stagebus.shared.storage.outage_log import OUTAGE
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.shared.store.system_load import SystemLoad, read_system_load

logger = logging.getLogger(__name__)


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self, hub: Hub, lease_s: float, providers: Sequence[str] = ()) -> None:
        """`providers` are the names of those with a limited number of slots."""
        self._lease_s = lease_s
        self._providers = providers
        self._registry = registry = collectors.new_registry()
        registry.register(_HubCollector(hub))
        self.loop_lag = LoopLag(registry)
        self.sweeps = SweepMetrics(registry)
        self.requests = Counter(
            "http_requests", "requests answered", ["method", "route", "status"],
            namespace=collectors.NAMESPACE, registry=registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "http_request_seconds", "time from a request to the end of its response, without streams",
            ["method", "route"], namespace=collectors.NAMESPACE, registry=registry, buckets=collectors.LATENCY_BUCKETS_S,
        )  # fmt: skip
        self._redis_up = self._gauge("redis_up", "1 if Redis answered this scrape")
        self._load = _LoadCollector()
        registry.register(self._load)

    def _gauge(self, name: str, says: str) -> Gauge:
        return Gauge(name, says, namespace=collectors.NAMESPACE, registry=self._registry)

    @property
    def registry(self) -> CollectorRegistry:
        """Returns the registry of all of the gateway's metrics."""
        return self._registry

    async def render(self, redis: Redis) -> bytes:
        """Returns all metrics in Prometheus's text format; while Redis is down, without those that are read from it."""
        try:
            self._load.read = await read_system_load(redis, self._lease_s, self._providers)
        except REDIS_AWAY as exc:
            OUTAGE.report_failure(logger, "the queue's metrics", exc)
            self._load.read = None
        self._redis_up.set(self._load.read is not None)
        return collectors.render(self._registry)


class _LoadCollector(Collector):
    """The load of the whole system as the last scrape read it. Every gateway reports the same: take the maximum."""

    def __init__(self) -> None:
        self.read: SystemLoad | None = None

    def collect(self) -> Iterator[Metric]:
        if (load := self.read) is None:
            return
        counts, server = load.counts, load.server
        for name, says, value in (
            ("queue_depth", "runs that are due and that no worker has claimed", counts.waiting),
            ("queue_oldest_wait_seconds", "how long the oldest of these runs has waited", load.oldest_wait_s),
            ("runs_stranded", "active runs that are missing in the queue, until the sweep repairs it", load.stranded),
            ("sweep_recent", "1 if some process has swept within the last interval", load.is_sweep_recent),
            ("workers", "workers with a recent heartbeat", load.workers),
            ("worker_slots", "runs that these workers execute at a time", load.slots),
            ("worker_slots_free", "of these slots, those that are free; workers that shut down have none", load.slots_free),
            ("webhooks_undistributed", "entries of the outbox that no worker has looked at", load.webhooks.undistributed),
            ("webhooks_oldest_seconds", "how long the oldest open delivery has waited", load.webhooks.oldest_ms / 1000),
            ("webhooks_failed", "failed deliveries that are kept", load.webhooks.failed),
            ("webhooks_gone", "endpoints that answered 410", len(load.webhooks.gone)),
            ("redis_ping_seconds", "time from a PING to its reply", load.reply_s),
            ("redis_memory_bytes", "memory that Redis uses", server.memory_bytes),
            ("redis_memory_max_bytes", "its maxmemory; 0: none", server.memory_max_bytes),
            ("redis_replicas", "connected replicas", server.replicas),
            ("redis_replica_lag_bytes", "bytes that the replica behind all others has not yet got", server.replica_lag_bytes),
            ("redis_replica_silent_seconds", "time since the last word of the most silent replica", server.replica_seen_s),
            ("redis_aof_ok", "1 if the last write to the append-only file succeeded, or there is none", server.is_aof_ok),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"{collectors.NAMESPACE}_{name}", says, value)
        says = "runs that have not ended, by status; running includes runs that wait for a retry"
        runs = GaugeMetricFamily(f"{collectors.NAMESPACE}_runs", says, labels=["status"])
        runs.add_metric(["queued"], counts.waiting)
        runs.add_metric(["running"], max(0, counts.active - counts.waiting - counts.parked - counts.throttled))
        runs.add_metric(["parked"], counts.parked)
        runs.add_metric(["throttled"], counts.throttled)
        yield runs
        says = "deliveries that wait for a try or its answer"
        deliveries = GaugeMetricFamily(f"{collectors.NAMESPACE}_webhooks_open", says, labels=["endpoint"])
        for endpoint, count in load.webhooks.open.items():
            deliveries.add_metric([endpoint], count)
        yield deliveries
        says = "slots that are held, of providers with concurrency_max"
        held = GaugeMetricFamily(f"{collectors.NAMESPACE}_provider_slots_held", says, labels=["provider"])
        says = "processes with a request that waits for a slot"
        waiting = GaugeMetricFamily(f"{collectors.NAMESPACE}_provider_waiting", says, labels=["provider"])
        for provider in load.providers:
            held.add_metric([provider.name], provider.held)
            waiting.add_metric([provider.name], provider.waiting)
        yield held
        yield waiting


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
