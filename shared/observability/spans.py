"""Spans of OpenTelemetry: what a run did, and how long each part took. The only module that uses OpenTelemetry's API.

    POST /runs                        server    the gateway, until the response has begun
    ├─ queue                          internal  from the run's creation to its first claim
    └─ attempt                        consumer  a worker's claim of the run; linked to the claim before it
       ├─ extraction                  internal  a stage
       │  └─ chat gpt-5.6             client    a request to a provider; linked to the one that it repeats
       └─ tools
          └─ execute_tool get_weather internal
             └─ tools/call            client    the MCP SDK's own

Without OpenTelemetry, or without a tracer provider, `span` does nothing. A span is never made for each event or token.
Spec: https://opentelemetry.io/docs/specs/otel/trace/api/, https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any, Final, Literal

from stagebus.shared.observability.trace import BAGGAGE, TRACEPARENT, Trace, bound, current

try:
    from opentelemetry import context as otel_context
    from opentelemetry import metrics, propagate
    from opentelemetry import trace as otel
except ImportError:  # the extra `otel` is not installed
    otel = None  # type: ignore[assignment]

Kind = Literal["internal", "server", "client", "consumer"]
Value = str | bool | int | float | Sequence[str] | None

_SCOPE: Final = "stagebus"
_NS_PER_MS: Final = 1_000_000
# The content of one attribute. A collector refuses what is too large, and a process keeps what is not sent yet.
CONTENT_MAX_CHARS: Final = 64 * 1024
# The id of the next span of this task, for an exporter whose ids we choose; 0: a random one.
chosen_span_id: Final[ContextVar[int]] = ContextVar("chosen_span_id", default=0)

# Whether the spans of this task contain what users, models and tools wrote.
with_content: Final[ContextVar[bool]] = ContextVar("with_content", default=False)


class Span:
    """A span that may not be recorded."""

    __slots__ = ("_span",)

    def __init__(self, span: Any = None) -> None:
        self._span = span

    @property
    def is_recorded(self) -> bool:
        """Returns whether somebody will see the attributes, so that costly ones need not be computed otherwise."""
        return self._span is not None and self._span.is_recording()

    @property
    def has_content(self) -> bool:
        """Returns whether the span is to contain what users, models and tools wrote."""
        return self.is_recorded and with_content.get()

    def set_content(self, attributes: Mapping[str, str]) -> None:
        """Sets attributes with content, cut to `CONTENT_MAX_CHARS`, if spans have content."""
        if self.has_content:
            self.set({name: text[:CONTENT_MAX_CHARS] for name, text in attributes.items()})

    @property
    def traceparent(self) -> str:
        """Returns the span's context for other processes, and for links; empty if there is none."""
        context = self._span.get_span_context() if self._span is not None else None
        if context is None or not context.is_valid:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Sets attributes; those that are None are left out."""
        if self.is_recorded:
            self._span.set_attributes(_known(attributes))

    def rename(self, name: str) -> None:
        """Changes the name, for a span whose operation is known only at its end."""
        if self.is_recorded:
            self._span.update_name(name)

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        """Adds an event at the present time."""
        if self.is_recorded:
            self._span.add_event(name, _known(attributes or {}))

    def fail(self, error_type: str, message: str = "") -> None:
        """Marks the operation as failed.

        Args:
            error_type: a code of few possible values.
            message: for people; without content of users.
        """
        if self.is_recorded:
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(otel.StatusCode.ERROR, message or None)


NO_SPAN: Final = Span()


def is_on() -> bool:
    """Returns whether this process has a tracer provider."""
    return otel is not None and not isinstance(
        otel.get_tracer_provider(), otel.ProxyTracerProvider | otel.NoOpTracerProvider
    )


def current_span() -> Span:
    """Returns the span of the current task."""
    return Span(otel.get_current_span()) if is_on() else NO_SPAN


@contextmanager
def span(
    name: str,
    kind: Kind = "internal",
    attributes: Mapping[str, Value] | None = None,
    *,
    parent: Trace | None = None,
    links: Sequence[str] = (),
    span_id: int = 0,
) -> Iterator[Span]:
    """Context manager: a span around the work inside. Its context is that of the task's `Trace` and outgoing requests.

    An exception marks the span as failed with the code of the error, or its class. Its message is left out, since it may
    contain what users wrote. A cancelled task is no failure.

    Args:
        parent: the trace to continue, of another process; None: the current span.
        links: the `traceparent` of spans that this one follows without being their child.
        span_id: see `attempt_id`; 0: a random one.
    """
    if not is_on():
        yield NO_SPAN
        return
    token = chosen_span_id.set(span_id)
    try:
        started = otel.get_tracer(_SCOPE).start_span(
            name,
            context=None if parent is None else _context_of(parent),
            kind=otel.SpanKind[kind.upper()],
            attributes=_known(attributes or {}),
            links=[
                otel.Link(otel.get_current_span(_context_of(Trace(traceparent=link))).get_span_context())
                for link in links
            ],
        )
    finally:
        chosen_span_id.reset(token)
    opened = Span(started)
    context = otel.set_span_in_context(started, None if parent is None else _context_of(parent))
    attached = otel_context.attach(context)
    try:
        with bound(replace(parent or current(), traceparent=opened.traceparent)):
            yield opened
    except Exception as exc:
        opened.fail(error_type_of(exc))
        raise
    finally:
        otel_context.detach(attached)
        started.end()


def record(name: str, attributes: Mapping[str, Value], *, parent: Trace, start_ms: int, end_ms: int) -> None:
    """Records a span of the past.

    Args:
        start_ms, end_ms: Unix ms.
    """
    if is_on():
        started = otel.get_tracer(_SCOPE).start_span(
            name, _context_of(parent), attributes=_known(attributes), start_time=start_ms * _NS_PER_MS
        )
        started.end(end_ms * _NS_PER_MS)


# The histograms of the conventions, with the buckets that they prescribe.
HISTOGRAMS: Final = {
    "gen_ai.client.operation.duration": ("s", tuple(0.01 * 2**n for n in range(14))),
    "gen_ai.client.token.usage": ("{token}", tuple(4**n for n in range(14))),
}


def measure(name: str, value: float, attributes: Mapping[str, Value]) -> None:
    """Adds a value to one of the `HISTOGRAMS`, for a process with a meter provider."""
    if is_on():
        _histogram(name).record(value, _known(attributes))


@cache
def _histogram(name: str) -> Any:
    unit, buckets = HISTOGRAMS[name]
    meter = metrics.get_meter(_SCOPE)
    return meter.create_histogram(name, unit, explicit_bucket_boundaries_advisory=buckets)


def error_type_of(exc: Exception) -> str:
    """Returns the code of an error of ours, or the class of another one."""
    code = getattr(exc, "code", None)
    return code if isinstance(code, str) and code else type(exc).__name__


def attempt_id(run_id: str, attempt: int) -> int:
    """Returns the span id of a run's attempt. The next attempt, in another process, links to it."""
    return int.from_bytes(hashlib.sha256(f"{run_id} {attempt}".encode()).digest()[:8]) or 1


def traceparent_of_attempt(traceparent: str, run_id: str, attempt: int) -> str:
    """Returns the context of an attempt in the trace of a run."""
    version, trace_id, _, flags = traceparent.split("-")[:4]
    return f"{version}-{trace_id}-{attempt_id(run_id, attempt):016x}-{flags}"


def root_of(run_id: str) -> str:
    """Returns the context that all spans of a run share if its creation had none, so that they are one trace."""
    digest = hashlib.sha256(run_id.encode()).hexdigest()
    return f"00-{digest[:32]}-{digest[32:48]}-01"


def _context_of(trace: Trace) -> Any:
    headers = {TRACEPARENT: trace.traceparent, BAGGAGE: trace.baggage}
    return propagate.extract({name: value for name, value in headers.items() if value}, otel_context.Context())


def _known(attributes: Mapping[str, Value]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
