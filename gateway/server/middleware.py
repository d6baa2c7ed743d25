"""Around every request: its id, one log line, its metrics, headers, and the answer to an unexpected error."""

import asyncio
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stagebus.gateway.api.headers import DEFAULTS
from stagebus.gateway.api.problems import answer_cut_off, answer_internal
from stagebus.gateway.auth.tickets import take_from_query
from stagebus.gateway.server.access_log import ACCESS_RECORD, AccessRecord
from stagebus.gateway.tenant_limiter import ratelimit_headers
from stagebus.shared.observability.trace import REQUEST_ID, TRACEPARENT, Trace, bound
from stagebus.shared.store.quotas import Quota

logger = logging.getLogger(__name__)


class RequestMiddleware:
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
        trace = Trace.from_headers(given.get(REQUEST_ID), given.get(TRACEPARENT))
        exchange = AccessRecord(trace)

        async def send_seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                quota: Quota | None = scope["state"].get("quota")
                headers.update(ratelimit_headers(quota) if quota else {})
                headers[REQUEST_ID] = trace.request_id
                for name, value in DEFAULTS.items():
                    headers.setdefault(name, value)
                exchange.status = message["status"]
                exchange.is_stream = headers.get("content-type", "").startswith("text/event-stream")
            else:
                exchange.sent_bytes += len(message.get("body", b""))
            await send(message)

        scope.setdefault("state", {}).update({"trace": trace, ACCESS_RECORD: exchange})
        with bound(trace):
            try:
                await self._app(scope, receive, send_seen)
            except asyncio.CancelledError:
                if not exchange.status:
                    # The grace of a shutdown is over; the server's own answer would be a bare 500.
                    await (await answer_cut_off(Request(scope, receive)))(scope, receive, send_seen)
                raise
            except Exception:
                logger.exception("internal error")
                if exchange.status:
                    raise  # the server cuts the connection, so that nobody takes half an answer for a whole one
                await answer_internal(Request(scope, receive))(scope, receive, send_seen)
            finally:
                exchange.learn(scope)
                if not exchange.is_handed_over:
                    exchange.report()
