"""Sends a process's spans and metrics by OTLP, with OpenTelemetry's SDK and its own environment variables.

    STAGEBUS_OTEL=true OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 python -m stagebus.worker

Sampling, batching, headers and resource attributes are the SDK's: OTEL_TRACES_SAMPLER, OTEL_BSP_…, OTEL_SERVICE_NAME.
Spec: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from prometheus_client import CollectorRegistry

from stagebus.shared.errors import StagebusError
from stagebus.shared.observability.spans import chosen_span_id

logger = logging.getLogger(__name__)

# At its end a process sends what it has not sent yet; a collector that does not answer must not hold it.
SHUTDOWN_MAX_S: Final = 2.0


class OtelMissing(StagebusError):
    """STAGEBUS_OTEL is set and the packages are not installed."""

    code = "otel_missing"
    title = "OpenTelemetry is not installed"

    def __init__(self) -> None:
        super().__init__("STAGEBUS_OTEL needs OpenTelemetry's SDK: pip install 'stagebus[otel]'")


def start_export(service: str, instance: str, registry: CollectorRegistry | None = None) -> Callable[[], None]:
    """Installs the process's tracer provider and, for a registry, its meter provider.

    Args:
        service: the value of `service.name` if OTEL_SERVICE_NAME does not set one.
        instance: the value of `service.instance.id`.
        registry: the Prometheus metrics to send as well.

    Returns:
        A function that sends the rest and stops, within `SHUTDOWN_MAX_S`.

    Raises:
        OtelMissing: the packages are not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    except ImportError:
        raise OtelMissing from None

    class ChosenIds(RandomIdGenerator):
        """Random ids, except for spans whose id other processes have to know."""

        def generate_span_id(self) -> int:
            """Returns the id that the task chose for its next span, or a random one."""
            return chosen_span_id.get() or super().generate_span_id()

    resource = Resource({"service.name": service, "service.instance.id": instance}).merge(
        OTELResourceDetector().detect()
    )
    provider = TracerProvider(resource=resource, id_generator=ChosenIds(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    stops = [provider.shutdown, *([_start_metrics(resource, registry)] if registry is not None else [])]
    logger.info("traces are sent by OTLP as service %s", resource.attributes["service.name"])
    return partial(stop_in_time, stops, SHUTDOWN_MAX_S)


def stop_in_time(stops: Sequence[Callable[[], object]], max_s: float) -> None:
    """Calls the functions concurrently and returns after `max_s` at the latest.

    The SDK waits for a request that it has sent, however long that takes. What is left then ends with the process.
    """
    deadline = time.monotonic() + max_s
    threads = [threading.Thread(target=stop, daemon=True) for stop in stops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _start_metrics(resource: Any, registry: CollectorRegistry) -> Callable[[], object]:
    from opentelemetry import metrics
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    mirror_registry(provider.get_meter("stagebus"), registry)
    return provider.shutdown


def mirror_registry(meter: Any, registry: CollectorRegistry) -> None:
    """Makes an observable instrument for each Prometheus metric of a registry.

    A histogram becomes the counters `…_count` and `…_sum`: observable instruments have no buckets.
    """
    for family in list(registry.collect()):
        if family.type == "counter":
            meter.create_observable_counter(
                family.name, [_observe(registry, f"{family.name}_total")], family.unit, family.documentation
            )
        elif family.type == "gauge":
            meter.create_observable_gauge(
                family.name, [_observe(registry, family.name)], family.unit, family.documentation
            )
        elif family.type == "histogram":
            for suffix in ("_count", "_sum"):
                name = family.name + suffix
                meter.create_observable_counter(name, [_observe(registry, name)], family.unit, family.documentation)


def _observe(registry: CollectorRegistry, name: str) -> Callable[[Any], Iterable[Any]]:
    """Returns the callback that reads the samples of one name."""
    from opentelemetry.metrics import Observation

    def observe(_options: Any) -> Iterator[Any]:
        for family in registry.restricted_registry([name]).collect():
            for sample in family.samples:
                if sample.name == name:
                    yield Observation(sample.value, dict(sample.labels))

    return observe
