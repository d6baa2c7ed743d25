"""One request and its answer, as the log and the metrics get to know of them when they are over."""

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

PATH_SHOWN_CHARS: Final = 200
UNMATCHED: Final = "unmatched"
# In a request's state.
ACCESS_RECORD: Final = "exchange"

# A client may invent methods; a label's values may not grow with them.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class AccessRecord:
    """What was seen so far; status 0 where there was no response.

    Holds nothing of the request but what its report says: a stream's is alive for as long
    as the stream is.
    """

    __slots__ = (
        "_fields",
        "_is_probe",
        "_metrics",
        "_route",
        "_started",
        "_trace",
        "is_handed_over",
        "is_stream",
        "sent_bytes",
        "status",
    )

    def __init__(self, trace: Trace) -> None:
        self.status = 0
        self.sent_bytes = 0
        self.is_stream = False
        self.is_handed_over = False  # the response goes on after the app has returned
        self._trace = trace
        self._started = time.perf_counter()

    def learn(self, scope: Scope) -> None:
        """What only the layers within could tell: the route, and the one whom `guard` let in."""
        principal = scope["state"].get("principal")
        self._metrics: Metrics = scope["app"].state.gateway.metrics
        self._route: str = scope["route"].path if "route" in scope else UNMATCHED
        endpoint = endpoint_of(scope)
        self._is_probe = endpoint is not None and endpoint.is_probe
        self._fields = (
            scope["method"],
            scope["path"][:PATH_SHOWN_CHARS],
            scope["client"][0] if scope.get("client") else "",
            *(() if principal is None else (principal.subject, principal.tenant)),
        )

    def resume(self) -> None:
        """From now on, this task works on behalf of the request again."""
        trace.bind(self._trace)

    def report(self) -> None:
        """It is over: count it and write its line."""
        duration_s = time.perf_counter() - self._started
        method, path, client, *who = self._fields
        label = method if method in _METHODS else "other"
        self._metrics.requests.labels(label, self._route, self.status).inc()
        if not self.is_stream:
            self._metrics.request_seconds.labels(label, self._route).observe(duration_s)
        is_quiet = self._is_probe and self.status < 400  # noqa: PLR2004 - the first error status
        fields = {
            "method": label,
            "path": path,
            "status": self.status,
            "bytes": self.sent_bytes,
            "duration_ms": round(duration_s * 1000, 1),
            "client": client,
            **dict(zip(("subject", "tenant"), who, strict=False)),
        }
        logger.log(logging.DEBUG if is_quiet else logging.INFO, "request", extra={FIELDS: fields})


def access_record_of(scope: Scope) -> AccessRecord:
    """That of the request."""
    exchange: AccessRecord = scope["state"][ACCESS_RECORD]
    return exchange
