"""The response that carries a stream: status, headers, first frame, then what the hub has."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

from sse_starlette import EventSourceResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.auth.principal import Principal
from gateway.open_stream import OpenStream
from gateway.state import Gateway
from gateway.subscription import View
from gateway.views.sse import MERGED, StageView
from shared.cursor import EventId
from shared.errors import RunNotFound
from shared.sse import encode_retry

HEADERS: Final = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
# How soon a client comes back for which there was no room.
FULL_RETRY_MS: Final = 5000
# In a request's state: the outermost `send` of our own, for bodies of many parts. What Starlette wraps around it,
# three times, only looks whether a response has begun, and costs 4 us a part.
DIRECT_SEND: Final = "direct_send"


class EventStream(EventSourceResponse):
    """A run's events from a cursor on, as server-sent events.

    Takes sse-starlette's headers and media type but not its per-client task group and
    per-event formatting, which cost 142-154 s of CPU a million events where sending the
    hub's bytes costs a third of it. The body ends after the terminal event, or without one
    when this gateway shuts down.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        gateway: Gateway,
        principal: Principal,
        run_id: str,
        cursor: EventId,
        *,
        stage_id: str | None = None,
        view: View | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(_nothing(), headers={**HEADERS, **(headers or {})}, sep="\n")
        self._gateway = gateway
        self._own_headers = headers
        self._hub = gateway.hub
        self._principal = principal
        self._vigil = gateway.auth.vigil
        self._run_id = run_id
        self._cursor = cursor
        self._stage_id = stage_id
        self._retry = encode_retry(gateway.settings.sse_retry_ms)
        self._view = view or view_of(stage_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream over ASGI."""
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        async with self._gateway.limiter.stream(self._principal.tenant) as may_open:
            if may_open and self._hub.open_streams < self._gateway.settings.streams_max:
                await self._stream(receive, send, scope["state"][DIRECT_SEND])
            else:
                await ask_again(FULL_RETRY_MS, self._own_headers)(scope, receive, send)

    async def _stream(self, receive: Receive, send: Send, send_part: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._retry, "more_body": True})

        async def send_bytes(data: bytes) -> None:
            await send_part({"type": "http.response.body", "body": data, "more_body": True})

        tenant = self._principal.tenant
        async with self._hub.open(self._run_id, self._cursor, self._view, send_bytes, self._stage_id, tenant) as stream:
            # A task of its own: one that woke under all the layers around this call would run
            # through every one of them.
            relaying = asyncio.create_task(self._relay(stream, send))
            try:
                with self._vigil.over(self._principal, stream.close):
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    stream.close()
                    await relaying
            finally:
                relaying.cancel()

    async def _relay(self, stream: OpenStream, send: Send) -> None:
        """Send the whole body; its end gives a disconnect to whoever waits for one."""
        try:
            await self._hub.relay(stream)
        except RunNotFound:
            pass  # its retention ended, or it is another tenant's; the client's next request gets 404
        finally:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def ask_again(retry_ms: int, headers: Mapping[str, str] | None = None) -> Response:
    """A stream that ends at once: what a trouble that passes makes of one, since any error would end it for good."""
    return Response(encode_retry(retry_ms), headers={**HEADERS, **(headers or {})}, media_type=EventStream.media_type)


def view_of(stage_id: str | None) -> View:
    """The events as they are stored: all, or one stage's."""
    return MERGED if stage_id is None else StageView(stage_id)


async def _nothing() -> AsyncIterator[bytes]:
    return  # the body is the hub's
    yield b""
