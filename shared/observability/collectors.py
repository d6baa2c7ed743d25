"""The common parts of all processes' Prometheus metrics: prefix, buckets, registry and text format.

    stagebus_http_requests_total{method="POST",route="/runs",status="202"} 17

Each process has its own counters and is scraped separately. Values that belong to no process (queue depth, active runs)
are read from Redis by the scraped process.
Spec: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

NAMESPACE: Final = "stagebus"
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

# From a script on a nearby Redis (below the first) to the first token of a model (some of the last), in seconds.
LATENCY_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def new_registry() -> CollectorRegistry:
    """Creates a registry with the memory, CPU, file descriptors and garbage collections of the process."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """Returns the metrics in the text format of Prometheus."""
    return generate_latest(registry)
