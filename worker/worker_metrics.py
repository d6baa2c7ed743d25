"""The worker's Prometheus metrics, served on a port of its own if the operator configures one.

Labels are names that the operator wrote: providers, models as the providers file lists them, tools. Names that a
client or a model made up never become labels, so the number of time series does not grow.
"""

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.events import ToolResult
from stagebus.shared.domain.usage import Usage
from stagebus.shared.local.process_errors import PortTaken
from stagebus.shared.observability import collectors
from stagebus.shared.observability.loop_lag import LoopLag
from stagebus.shared.observability.sweep_metrics import SweepMetrics

UNKNOWN_TOOL: Final = "unknown"

_WORK_BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class WorkerMetrics:
    """The metrics of one worker, in their own registry."""

    def __init__(self) -> None:
        self._registry = collectors.new_registry()
        self.loop_lag = LoopLag(self._registry)
        self.sweeps = SweepMetrics(self._registry)
        by_model = ["provider", "model"]
        self._runs_ended = self._counter("runs_ended", "runs that this worker ended", ["status"])
        self._runs_held = Gauge(
            "runs_held", "runs that this worker holds", namespace=collectors.NAMESPACE, registry=self._registry
        )
        self._leases_lost = Counter(
            "leases_lost", "runs that another worker, or the sweep, took from this one", namespace=collectors.NAMESPACE,
            registry=self._registry,
        )  # fmt: skip
        self._stage_seconds = self._histogram(
            "stage_seconds", "seconds from a stage's begin to its completion", ["stage"]
        )
        self._requests = self._counter("model_requests", "requests to a provider", by_model)
        self.errors = self._counter("model_errors", "requests that failed, by error code", [*by_model, "code"])
        self.retries = self._counter("model_retries", "requests that were retried or sent to a fallback", by_model)
        self.tokens = self._counter("model_tokens", "tokens as counted by the provider", [*by_model, "kind"])
        self.first_token_s = self._histogram(
            "model_first_token_seconds", "seconds from a request to its first chunk", by_model
        )
        self._tool_calls = self._counter("tool_calls", "tool calls that ended", ["tool", "outcome"])
        self._tool_seconds = self._histogram("tool_seconds", "seconds from a tool call's start to its result", ["tool"])
        self._webhook_tries = self._counter(
            "webhook_tries", "tries to send a webhook, by the state of the delivery after it", ["endpoint", "result"]
        )
        self._append_seconds = self._histogram(
            "append_seconds", "seconds from an append to its reply", buckets=collectors.LATENCY_BUCKETS_S
        )
        self._append_events = self._histogram("append_events", "events per append", buckets=_BATCH_BUCKETS)

    def _counter(self, name: str, says: str, labels: list[str]) -> Counter:
        return Counter(name, says, labels, namespace=collectors.NAMESPACE, registry=self._registry)

    def _histogram(
        self, name: str, says: str, labels: list[str] | None = None, buckets: tuple[float, ...] = _WORK_BUCKETS_S
    ) -> Histogram:
        return Histogram(
            name, says, labels or [], namespace=collectors.NAMESPACE, registry=self._registry, buckets=buckets
        )

    @property
    def registry(self) -> CollectorRegistry:
        """Returns the registry of all of the worker's metrics."""
        return self._registry

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Serves scrapes in a thread.

        Returns:
            A function that stops the server.

        Raises:
            PortTaken: the address is in use or not available.
        """
        try:
            server, thread = start_http_server(port, host, self._registry)
        except OSError as exc:
            raise PortTaken("STAGEBUS_WORKER_METRICS_PORT", host, port, exc.strerror or str(exc)) from exc

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop

    def render(self) -> bytes:
        """Returns all metrics in the Prometheus text format."""
        return collectors.render(self._registry)

    def watch_runs(self, held: Callable[[], int]) -> None:
        """Reads the number of held runs from `held` at each scrape."""
        self._runs_held.set_function(held)

    def run_ended(self, status: str) -> None:
        """Counts a run that this worker ended."""
        self._runs_ended.labels(status).inc()

    def lease_lost(self) -> None:
        """Counts a run that this worker had to stop because it no longer owned it."""
        self._leases_lost.inc()

    def stage_ended(self, kind: str, seconds: float) -> None:
        """Records the duration of a completed stage."""
        self._stage_seconds.labels(kind).observe(seconds)

    def request_started(self, route: ModelRoute) -> "ModelRequestMetrics":
        """Counts a request to a provider; its outcome is reported to the returned object."""
        self._requests.labels(route.provider, route.listed).inc()
        return ModelRequestMetrics(self, route)

    def tool_ended(self, result: ToolResult, *, is_known: bool) -> None:
        """Counts a finished tool call. `is_known` is False if the model made the tool's name up."""
        tool = result.name if is_known else UNKNOWN_TOOL
        self._tool_calls.labels(tool, "error" if result.is_error else "ok").inc()
        if result.same_as is None:
            self._tool_seconds.labels(tool).observe(result.duration_ms / 1000)

    def webhook_tried(self, endpoint: str, result: str) -> None:
        """Counts a try to send a webhook."""
        self._webhook_tries.labels(endpoint, result).inc()

    def appended(self, events: int, seconds: float) -> None:
        """Records an append that succeeded."""
        self._append_events.observe(events)
        self._append_seconds.observe(seconds)


class ModelRequestMetrics:
    """The metrics of one request to a provider."""

    def __init__(self, counts: WorkerMetrics, route: ModelRoute) -> None:
        self._counts = counts
        self._labels = (route.provider, route.listed)
        self._sent_at = time.monotonic()

    def began(self) -> None:
        """Records the time of the first chunk."""
        self._counts.first_token_s.labels(*self._labels).observe(time.monotonic() - self._sent_at)

    def used(self, usage: Usage) -> None:
        """Counts the tokens that the provider reported with the complete answer."""
        self._counts.tokens.labels(*self._labels, "prompt").inc(usage.prompt_tokens)
        self._counts.tokens.labels(*self._labels, "completion").inc(usage.completion_tokens)

    def failed(self, code: str) -> None:
        """Counts a failed or incomplete answer."""
        self._counts.errors.labels(*self._labels, code).inc()

    def retried(self) -> None:
        """Counts a retry of the stage, or a fallback to another model."""
        self._counts.retries.labels(*self._labels).inc()
