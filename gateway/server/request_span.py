"""The span of one HTTP request, from its arrival until its response is complete, or has begun as a stream.

Spec: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from starlette.types import Scope

from stagebus.gateway.api.headers import SHOWN_RUN
from stagebus.gateway.server.access_log import AccessRecord
from stagebus.shared.observability import spans
from stagebus.shared.observability.spans import NO_SPAN, Span
from stagebus.shared.observability.trace import Trace, bound

_SERVER_ERROR: Final = 500
# Polled by machines; their spans would outnumber all others.
_PROBES: Final = ("/healthz", "/readyz", "/metrics")


@contextmanager
def request_span(scope: Scope, trace: Trace) -> Iterator[Span]:
    """Context manager: binds the request's trace to the task, and records the request."""
    method = scope["method"]
    if not spans.is_on() or scope["path"].endswith(_PROBES):
        with bound(trace):
            yield NO_SPAN
        return
    attributes = {"http.request.method": method, "url.path": scope["path"], "url.scheme": scope["scheme"]}
    with spans.span(method, "server", attributes, parent=trace) as span:
        yield span


def end_request_span(span: Span, scope: Scope, record: AccessRecord) -> None:
    """Adds what the routing and the response have shown."""
    if not span.is_recorded:
        return
    if "route" in scope:
        span.rename(f"{scope['method']} {scope['route'].path}")
        span.set({"http.route": scope["route"].path})
    state = scope["state"]
    principal = state.get("principal")
    span.set(
        {
            "http.response.status_code": record.status or None,
            "stagebus.run.id": scope.get("path_params", {}).get("run_id") or state.get(SHOWN_RUN),
            "stagebus.tenant": None if principal is None else principal.tenant,
        }
    )
    if record.status >= _SERVER_ERROR:
        span.fail(str(record.status))
