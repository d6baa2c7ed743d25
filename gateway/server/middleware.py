"""The outermost layer of every request: request id, access log, metrics, headers, and answers to unexpected errors."""

import asyncio
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stagebus.gateway.api.headers import DEFAULTS, RUN_ID, SHOWN_RUN
from stagebus.gateway.api.problems import answer_cut_off, answer_error, answer_internal
from stagebus.gateway.api.urls import PROBLEMS_PATH
from stagebus.gateway.auth.tickets import take_from_query
from stagebus.gateway.context import LifespanNotEntered, started_gateway
from stagebus.gateway.server.access_log import AccessRecord
from stagebus.gateway.server.request_span import end_request_span, request_span
from stagebus.gateway.server.socket_writer import SocketWriter
from stagebus.gateway.streaming.stream_writer import StreamTorn, stream_writer_of
from stagebus.gateway.tenant_limiter import ratelimit_headers
from stagebus.shared.observability.spans import Span
from stagebus.shared.observability.trace import BAGGAGE, REQUEST_ID, TRACEPARENT, Trace, current
from stagebus.shared.store.quotas import Quota

logger = logging.getLogger(__name__)


class RequestMiddleware:
    """ASGI middleware. It is the outermost one, so that it sees every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request and writes its access record."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            metrics = started_gateway(scope["app"]).metrics
        except LifespanNotEntered as exc:
            # The problem's `type` leads to its explanation, which needs no part of a started gateway.
            is_explanation = scope["path"].removeprefix(scope.get("root_path", "")).startswith(PROBLEMS_PATH)
            app = self._app if is_explanation else answer_error(Request(scope, receive), exc)
            await app(scope, receive, send)
            return
        take_from_query(scope)
        with request_span(scope, _trace_of(scope)) as span:
            await self._serve(scope, receive, send, AccessRecord(current(), metrics), span)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, record: AccessRecord, span: Span) -> None:
        trace = current()

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _set_headers(scope, message, trace)
                record.status = message["status"]
                content_type = MutableHeaders(scope=message).get("content-type", "")
                record.is_stream = content_type.startswith("text/event-stream")
            else:
                record.sent_bytes += len(message.get("body", b""))
            await send(message)

        scope.setdefault("state", {})["trace"] = trace
        try:
            await self._app(scope, receive, send_recorded)
        except asyncio.CancelledError:
            if not record.status:
                # The shutdown's grace period is over. The server itself would answer with a bare 500.
                await (await answer_cut_off(Request(scope, receive)))(scope, receive, send_recorded)
            raise
        except Exception as exc:
            _log(exc)
            if record.status:
                raise  # the server cuts the connection, so that the client sees that the response is incomplete
            await answer_internal(Request(scope, receive))(scope, receive, send_recorded)
        finally:
            record.set_request(scope)
            end_request_span(span, scope, record)
            writer = stream_writer_of(scope)
            if isinstance(writer, SocketWriter) and writer.is_detached:
                writer.access_record = record
            else:
                record.write()


def _trace_of(scope: Scope) -> Trace:
    headers = Headers(scope=scope)
    baggage_keys = started_gateway(scope["app"]).settings.baggage_keys
    # Several headers of baggage are one list.
    baggage = ",".join(headers.getlist(BAGGAGE)) if baggage_keys else ""
    return Trace.from_headers(headers.get(REQUEST_ID), headers.get(TRACEPARENT), baggage, baggage_keys)


def _log(exc: Exception) -> None:
    if not isinstance(exc, StreamTorn):
        logger.error("internal error", exc_info=exc)


def _set_headers(scope: Scope, message: Message, trace: Trace) -> None:
    """Adds the headers that every response has."""
    headers = MutableHeaders(scope=message)
    quota: Quota | None = scope["state"].get("quota")
    headers.update(ratelimit_headers(quota) if quota else {})
    headers[REQUEST_ID] = trace.request_id
    if run_id := scope["state"].get(SHOWN_RUN):
        headers[RUN_ID] = run_id
    for name, value in DEFAULTS.items():
        headers.setdefault(name, value)
