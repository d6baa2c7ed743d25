"""The response that carries a stream: status, headers, first frame, then what the hub has."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Final

from sse_starlette import EventSourceResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.context import Gateway
from stagebus.gateway.server.access_log import AccessRecord, access_record_of
from stagebus.gateway.streaming.client_stream import OpenStream
from stagebus.gateway.streaming.lean_view import MERGED, StageView
from stagebus.gateway.streaming.stream_writer import AsgiWriter, stream_writer_of
from stagebus.gateway.streaming.subscription import View
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.errors import RunNotFound
from stagebus.shared.log.sse import encode_retry

HEADERS: Final = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
# How soon a client comes back for which there was no room.
FULL_RETRY_MS: Final = 5000


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
        stages_begun: Sequence[str] = (),
    ) -> None:
        super().__init__(_nothing(), headers={**HEADERS, **(headers or {})}, sep="\n")
        self._gateway = gateway
        self._own_headers = headers
        self._principal = principal
        self._run_id = run_id
        self._cursor = cursor
        self._stage_id = stage_id
        self._stages_begun = stages_begun
        self._retry = encode_retry(gateway.settings.sse_retry_ms)
        self._view = view or view_of(stage_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream, or begin it where the server can go on with it alone."""
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        if not await self._may_open():
            await ask_again(FULL_RETRY_MS, self._own_headers)(scope, receive, send)
            return
        direct = stream_writer_of(scope)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._retry, "more_body": True})
            outlet = direct or AsgiWriter(send)
            tenant, hub = self._principal.tenant, self._gateway.hub
            stream = hub.new_stream(
                self._run_id, self._cursor, self._view, outlet, self._stage_id, tenant, self._stages_begun
            )
        except BaseException:
            await self._gateway.limiter.end_stream(self._principal.tenant)
            raise
        if direct is not None:
            exchange = access_record_of(scope)
            exchange.is_handed_over = True
            direct.take_over(partial(_serve, self._gateway, self._principal, stream, exchange))
            return
        # A task of its own: one that woke under all the layers around this call would run
        # through every one of them.
        serving = asyncio.create_task(_serve(self._gateway, self._principal, stream))
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
            stream.close()
            await serving
        finally:
            serving.cancel()

    async def _may_open(self) -> bool:
        """Whether there is room for one more; it counts from now on."""
        limiter, tenant = self._gateway.limiter, self._principal.tenant
        if not await limiter.begin_stream(tenant):
            return False
        if self._gateway.hub.open_streams < self._gateway.settings.streams_max:
            return True
        await limiter.end_stream(tenant)
        return False


async def _serve(
    gateway: Gateway, principal: Principal, stream: OpenStream, exchange: AccessRecord | None = None
) -> None:
    """Send the whole body. Its end gives a disconnect to whoever waits for one.

    No layers and no context managers here: what this holds, it holds for each open stream.
    """
    if exchange is not None:
        exchange.resume()
    gateway.auth.credential_monitor.watch(principal, stream.close)
    try:
        await gateway.hub.relay(stream)
    except RunNotFound:
        pass  # its retention ended, or it is another tenant's; the client's next request gets 404
    finally:
        gateway.auth.credential_monitor.unwatch(stream.close)
        await gateway.limiter.end_stream(principal.tenant)
        await stream.outlet.end()
        if exchange is not None:
            exchange.sent_bytes += stream.sent_bytes
            exchange.report()


def ask_again(retry_ms: int, headers: Mapping[str, str] | None = None) -> Response:
    """A stream that ends at once: what a trouble that passes makes of one, since any error would end it for good."""
    return Response(encode_retry(retry_ms), headers={**HEADERS, **(headers or {})}, media_type=EventStream.media_type)


def view_of(stage_id: str | None) -> View:
    """The events as they are stored: all, or one stage's."""
    return MERGED if stage_id is None else StageView(stage_id)


async def _nothing() -> AsyncIterator[bytes]:
    return  # the body is the hub's
    yield b""
