"""Around every request: its id, one log line, its metrics, headers, and the answer to an unexpected error."""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import routes
from gateway.auth.tickets import take_from_query
from gateway.headers import DEFAULTS
from gateway.metrics import Metrics
from gateway.problems import answer_cut_off, answer_internal
from gateway.stream import DIRECT_SEND
from gateway.tenant_limits import headers_of
from shared.logging import FIELDS
from shared.quotas import Quota
from shared.trace import REQUEST_ID, TRACEPARENT, Trace, bound

logger = logging.getLogger(__name__)

PATH_SHOWN_CHARS: Final = 200
UNMATCHED: Final = "unmatched"

# A client may invent methods; a label's values may not grow with them.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(slots=True)
class _Response:
    """What was seen of a response as it went out; status 0 where there was none."""

    status: int = 0
    sent_bytes: int = 0
    is_stream: bool = False


class Access:
    """ASGI middleware; outermost, so that it sees every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and say so."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        take_from_query(scope)
        given = Headers(scope=scope)
        trace = Trace.of_headers(given.get(REQUEST_ID), given.get(TRACEPARENT))
        response = _Response()

        async def send_seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                quota: Quota | None = scope["state"].get("quota")
                headers.update(headers_of(quota) if quota else {})
                headers[REQUEST_ID] = trace.request_id
                for name, value in DEFAULTS.items():
                    headers.setdefault(name, value)
                response.status = message["status"]
                response.is_stream = headers.get("content-type", "").startswith("text/event-stream")
            else:
                response.sent_bytes += len(message.get("body", b""))
            await send(message)

        scope.setdefault("state", {}).update({"trace": trace, DIRECT_SEND: send_seen})
        started = time.perf_counter()
        with bound(trace):
            try:
                await self._app(scope, receive, send_seen)
            except asyncio.CancelledError:
                if not response.status:
                    # The grace of a shutdown is over; the server's own answer would be a bare 500.
                    await (await answer_cut_off(Request(scope, receive)))(scope, receive, send_seen)
                raise
            except Exception:
                logger.exception("internal error")
                if response.status:
                    raise  # the server cuts the connection, so that nobody takes half an answer for a whole one
                await answer_internal()(scope, receive, send_seen)
            finally:
                _report(scope, response, time.perf_counter() - started)


def _report(scope: Scope, response: _Response, duration_s: float) -> None:
    route = scope["route"].path if "route" in scope else UNMATCHED
    method = scope["method"] if scope["method"] in _METHODS else "other"
    metrics: Metrics = scope["app"].state.gateway.metrics
    metrics.requests.labels(method, route, response.status).inc()
    if not response.is_stream:
        metrics.request_seconds.labels(method, route).observe(duration_s)
    is_probe = route in routes.PROBES and response.status < 400  # noqa: PLR2004 - the first error status
    fields = {
        "method": method,
        "path": scope["path"][:PATH_SHOWN_CHARS],
        "status": response.status,
        "bytes": response.sent_bytes,
        "duration_ms": round(duration_s * 1000, 1),
        "client": scope["client"][0] if scope.get("client") else "",
        **_who(scope),
    }
    logger.log(logging.DEBUG if is_probe else logging.INFO, "request", extra={FIELDS: fields})


def _who(scope: Scope) -> dict[str, str]:
    """The one whom `guard` let in, if it did."""
    principal = scope["state"].get("principal")
    return {} if principal is None else {"subject": principal.subject, "tenant": principal.tenant}
