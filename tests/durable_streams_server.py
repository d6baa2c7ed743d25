"""Serves the gateway's reader of durable streams over logs in memory, for the protocol's conformance tests.

    python -m tests.durable_streams_server PORT

A stream is `/v1/stream/<name>` and has any content type. `STAGEBUS_LONG_POLL_S` sets how long a long poll waits.
Writing is as much of the protocol as the tests of reading need: no producers, no forks, no expiry.
Spec: https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import uuid4

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from stagebus.gateway.api.headers import CORS_EXPOSED, DEFAULTS
from stagebus.gateway.api.responses import EVENT_STREAM
from stagebus.gateway.streaming.response import HEADERS as STREAM_HEADERS
from stagebus.gateway.views.durable_format import SseEncoder, StreamFormat, StreamPage, encode_offset
from stagebus.gateway.views.durable_reader import CLOSED, NEXT_OFFSET, NO_STORE, Tail, answer_read
from stagebus.shared.config.settings import Settings, load_settings
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.errors import StagebusError
from stagebus.shared.position_errors import BadOffset, OffsetGone

PAGE_MAX_MESSAGES = 500
TTL_HEADERS = ("Stream-TTL", "Stream-Expires-At")


class MemoryLog:
    """A durable stream in memory."""

    def __init__(self, content_type: str, metadata: dict[str, str]) -> None:
        self.format = StreamFormat(content_type)
        self.identity = uuid4().hex
        self.metadata = metadata
        self.messages: list[bytes] = []
        self.is_closed = False
        self._change = asyncio.Event()

    @property
    def position(self) -> EventId:
        """The end of the stream."""
        return EventId(1, len(self.messages)) if self.messages else START

    def append(self, messages: list[bytes], *, is_last: bool) -> None:
        """Appends messages, wakes the readers and, after the last ones, closes the stream."""
        self.messages += messages
        self.is_closed = self.is_closed or is_last
        self._change.set()
        self._change = asyncio.Event()

    async def read_tail(self) -> Tail:
        return Tail(self.position, self.is_closed)

    async def read_page(self, after: EventId) -> StreamPage:
        if after > self.position or (after != START and after.attempt != 1):
            raise OffsetGone
        end = min(len(self.messages), after.sequence + PAGE_MAX_MESSAGES)
        is_tail = end == len(self.messages)
        messages = self.messages[after.sequence : end]
        return StreamPage(messages, after, EventId(1, end) if end else START, is_tail, is_tail and self.is_closed)

    async def wait(self, after: EventId, timeout_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._change.wait(), timeout_s)

    async def answer_sse(self, after: EventId, least_cursor: int) -> Response:
        await self.read_page(after)
        headers = {**STREAM_HEADERS, **self.format.sse_headers, "Content-Type": EVENT_STREAM}
        return StreamingResponse(self._events(SseEncoder(self.format, after, least_cursor)), headers=headers)

    async def _events(self, encoder: SseEncoder) -> AsyncIterator[bytes]:
        while True:
            change = self._change
            page = await self.read_page(encoder.offset)
            if frames := encoder.encode(page):
                yield frames
            if page.is_closed:
                return
            if page.is_tail:
                await change.wait()


class DurableStreams:
    """The streams of the server, by name, and its handlers."""

    def __init__(self, settings: Settings) -> None:
        self._logs: dict[str, MemoryLog] = {}
        self._long_poll_s = settings.long_poll_s

    def _log(self, request: Request) -> MemoryLog:
        log = self._logs.get(request.path_params["name"])
        if log is None:
            raise HTTPException(404)
        return log

    async def create(self, request: Request) -> Response:
        """Handles PUT: creates a stream, with messages if the request has a body."""
        name = request.path_params["name"]
        content_type = request.headers.get("content-type", "application/octet-stream")
        metadata = {name: request.headers[name] for name in TTL_HEADERS if name in request.headers}
        known = self._logs.get(name)
        log = known or MemoryLog(content_type, metadata)
        if known is None:
            messages = _messages_of(log, await request.body())
            log.append(messages, is_last=_is_closing(request))
            self._logs[name] = log
        elif log.format.content_type.lower() != content_type.lower():
            raise HTTPException(409)
        headers = {**_headers(log), "Content-Type": log.format.content_type}
        return Response(status_code=201 if known is None else 200, headers={**headers, "Location": str(request.url)})

    async def append(self, request: Request) -> Response:
        """Handles POST: appends, closes, or both."""
        log, body = self._log(request), await request.body()
        if body and log.is_closed:
            raise HTTPException(409, headers=_headers(log))
        messages = _messages_of(log, body)
        if not messages and not (_is_closing(request) and not body):
            raise HTTPException(400)
        log.append(messages, is_last=_is_closing(request))
        return Response(status_code=204, headers=_headers(log))

    async def delete(self, request: Request) -> Response:
        """Handles DELETE."""
        self._log(request)
        del self._logs[request.path_params["name"]]
        return Response(status_code=204)

    async def read(self, request: Request) -> Response:
        """Handles GET and HEAD with the gateway's reader."""
        log = self._log(request)
        response = await answer_read(request, log, self._long_poll_s)
        if request.method == "HEAD":
            response.headers.update(log.metadata)
        return response


def _messages_of(log: MemoryLog, body: bytes) -> list[bytes]:
    """Returns the messages in a body: JSON arrays are flattened by one level."""
    if not log.format.is_json or not body:
        return [body] if body else []
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise HTTPException(400) from None
    return [orjson.dumps(one) for one in (value if isinstance(value, list) else [value])]


def _is_closing(request: Request) -> bool:
    return request.headers.get(CLOSED, "").lower() == "true"


def _headers(log: MemoryLog) -> dict[str, str]:
    closed = {CLOSED: "true"} if log.is_closed else {}
    return {NEXT_OFFSET: encode_offset(log.position), "Cache-Control": NO_STORE, **closed}


async def _answer_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, StagebusError)
    return Response(str(exc), exc.status_hint)


def create_app(settings: Settings) -> Starlette:
    """Returns the server's app."""
    streams = DurableStreams(settings)

    async def dispatch(request: Request) -> Response:
        handlers = {"PUT": streams.create, "POST": streams.append, "DELETE": streams.delete}
        response = await handlers.get(request.method, streams.read)(request)
        for name, value in DEFAULTS.items():
            response.headers.setdefault(name, value)
        return response

    async def answer_http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        return Response(exc.detail, exc.status_code, {**DEFAULTS, **(exc.headers or {})})

    cors = Middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], expose_headers=CORS_EXPOSED
    )
    return Starlette(
        routes=[Route("/v1/stream/{name:path}", dispatch, methods=["GET", "PUT", "POST", "DELETE"])],
        middleware=[cors],
        exception_handlers={
            HTTPException: answer_http, BadOffset: _answer_error, OffsetGone: _answer_error,
        },
    )  # fmt: skip


if __name__ == "__main__":
    uvicorn.run(
        create_app(load_settings()),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
