"""What every process's metrics have in common: the prefix, the buckets, the registry, the text format.

    stagebus_http_requests_total{method="POST",route="/runs",status="202"} 17

Each process counts for itself and is scraped for itself; what belongs to no process
(queue depth, active runs) is read from Redis by whoever is scraped.
Spec: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

NAMESPACE: Final = "stagebus"
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

# Seconds: a script on a near Redis takes a fraction of the first, a model's first token some of the last.
LATENCY_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def new_registry() -> CollectorRegistry:
    """A registry of one's own, with the process's memory, CPU, file descriptors and collections."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The registry as Prometheus reads it."""
    return generate_latest(registry)
