"""Around every request: its id, one log line, its metrics, and the answer to an unexpected error."""

import logging
import re
import time
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import routes
from gateway.metrics import Metrics
from gateway.problems import answer_internal
from gateway.stream import DIRECT_SEND
from gateway.tenant_limits import headers_of
from shared.logging import FIELDS
from shared.quotas import Quota

logger = logging.getLogger(__name__)

HEADER: Final = "X-Request-ID"
PATH_SHOWN_CHARS: Final = 200
UNMATCHED: Final = "unmatched"

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
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
        request_id = request_id_of(Headers(scope=scope).get(HEADER))
        response = _Response()

        async def send_seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[HEADER] = request_id
                quota: Quota | None = scope["state"].get("quota")
                headers.update(headers_of(quota) if quota else {})
                response.status = message["status"]
                response.is_stream = headers.get("content-type", "").startswith("text/event-stream")
            else:
                response.sent_bytes += len(message.get("body", b""))
            await send(message)

        scope.setdefault("state", {}).update({"request_id": request_id, DIRECT_SEND: send_seen})
        started = time.perf_counter()
        try:
            await self._app(scope, receive, send_seen)
        except Exception:
            logger.exception("internal error", extra={FIELDS: {"request_id": request_id}})
            if response.status:
                raise  # the server cuts the connection, so that nobody takes half an answer for a whole one
            await answer_internal()(scope, receive, send_seen)
        finally:
            _report(scope, response, request_id, time.perf_counter() - started)


def request_id_of(given: str | None) -> str:
    """The client's own request id where it is a sane one, else a fresh one."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else uuid4().hex


def _report(scope: Scope, response: _Response, request_id: str, duration_s: float) -> None:
    route = scope["route"].path if "route" in scope else UNMATCHED
    method = scope["method"] if scope["method"] in _METHODS else "other"
    metrics: Metrics = scope["app"].state.gateway.metrics
    metrics.requests.labels(method, route, response.status).inc()
    if not response.is_stream:
        metrics.request_seconds.labels(method, route).observe(duration_s)
    is_probe = route in routes.PROBES and response.status < 400  # noqa: PLR2004 - the first error status
    fields = {
        "method": method,
        "path": scope["path"][:PATH_SHOWN_CHARS],  # without the query, which may carry a ticket
        "status": response.status,
        "bytes": response.sent_bytes,
        "duration_ms": round(duration_s * 1000, 1),
        "request_id": request_id,
        "client": scope["client"][0] if scope.get("client") else "",
    }
    logger.log(logging.DEBUG if is_probe else logging.INFO, "request", extra={FIELDS: fields})
