"""The access log: one line and one set of metrics for each request, written when its response is complete."""

import logging
import time
from typing import Final

from starlette.types import Scope

from stagebus.gateway.api.method_router import endpoint_of
from stagebus.gateway.gateway_metrics import Metrics
from stagebus.shared.observability import trace
from stagebus.shared.observability.logging import FIELDS
from stagebus.shared.observability.trace import Trace

logger = logging.getLogger("stagebus.access")

PATH_MAX_CHARS: Final = 200
UNMATCHED: Final = "unmatched"

# Clients may send invented methods, which must not add metric labels.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FIRST_ERROR_STATUS: Final = 400


class AccessRecord:
    """The access log's data about one request; status 0 means that no response began.

    It keeps nothing else of the request: the record of a stream lives as long as the stream.
    """

    __slots__ = (
        "_fields",
        "_is_probe",
        "_metrics",
        "_route",
        "_started",
        "_trace",
        "is_stream",
        "sent_bytes",
        "status",
    )

    def __init__(self, trace: Trace, metrics: Metrics) -> None:
        self.status = 0
        self.sent_bytes = 0
        self.is_stream = False
        self._trace = trace
        self._metrics = metrics
        self._started = time.perf_counter()

    def set_request(self, scope: Scope) -> None:
        """Sets the fields that the routing and the guard have put into the scope by now."""
        principal = scope["state"].get("principal")
        self._route: str = scope["route"].path if "route" in scope else UNMATCHED
        endpoint = endpoint_of(scope)
        self._is_probe = endpoint is not None and endpoint.is_probe
        self._fields = (
            scope["method"],
            scope["path"][:PATH_MAX_CHARS],
            scope["client"][0] if scope.get("client") else "",
            *(() if principal is None else (principal.subject, principal.tenant)),
        )

    def bind_trace(self) -> None:
        """Binds the request's trace to the current task, for the part of a stream after the request."""
        trace.bind(self._trace)

    def write(self) -> None:
        """Counts the request and writes its line."""
        duration_s = time.perf_counter() - self._started
        method, path, client, *identity = self._fields
        label = method if method in _METHODS else "other"
        self._metrics.requests.labels(label, self._route, self.status).inc()
        if not self.is_stream:
            self._metrics.request_seconds.labels(label, self._route).observe(duration_s)
        is_quiet = self._is_probe and self.status < _FIRST_ERROR_STATUS
        fields = {
            "method": label,
            "path": path,
            "status": self.status,
            "bytes": self.sent_bytes,
            "duration_ms": round(duration_s * 1000, 1),
            "client": client,
            **dict(zip(("subject", "tenant"), identity, strict=False)),
        }
        logger.log(logging.DEBUG if is_quiet else logging.INFO, "request", extra={FIELDS: fields})
