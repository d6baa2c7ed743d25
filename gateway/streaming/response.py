"""The HTTP response that carries a stream of events."""

import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, Self

from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stagebus.gateway.streaming.client_stream import ClientStream
from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.stream_writer import stream_writer_of
from stagebus.gateway.streaming.thread_relay import ThreadRelay
from stagebus.gateway.streaming.thread_stream import ThreadStream
from stagebus.shared.log.sse import encode_retry

logger = logging.getLogger(__name__)

_MEDIA_TYPE: Final = "text/event-stream"
HEADERS: Final = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
# How long sse-starlette waits at a shutdown beyond the drain, in which the hub ends the streams, before it cancels them.
SHUTDOWN_MARGIN_S: Final = 2.0


class EventStream(EventSourceResponse):
    """A run's events as server-sent events; the body ends after the terminal event, or when the hub drains.

    sse-starlette carries the stream: it sends what `Hub.relay` yields and cancels it when the client disconnects. On a
    server with a `StreamWriter` the response returns once it has begun, and the writer sends the rest.
    sse-starlette's task group for each client and its event formatting take 142 to 154 s of CPU per million events;
    the hub's bytes, written to the socket, take a third.
    """

    def __init__(
        self,
        hub: Hub,
        stream: ClientStream,
        admission: AbstractAsyncContextManager[bool],
        headers: Mapping[str, str] | None = None,
        threads: ThreadRelay | None = None,
    ) -> None:
        """`admission` is entered before the first event and left when the stream is over, see `Hub.relay`.

        Args:
            threads: relays the stream of a thread.
        """
        if threads is not None and isinstance(stream, ThreadStream):
            self._body = threads.relay(stream, admission)
        else:
            self._body = hub.relay(stream, admission)
        super().__init__(
            self._body,
            headers={**HEADERS, **(headers or {})},
            media_type=_MEDIA_TYPE,
            sep="\n",
            ping=0,  # the hub sends its own pings
            send_timeout=hub.write_timeout_s,
            shutdown_grace_period=hub.drain_spread_s + SHUTDOWN_MARGIN_S,
        )
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response, or its beginning if the server's writer sends the rest."""
        writer = stream_writer_of(scope)
        if writer is None or scope["method"] == "HEAD":
            try:
                await super().__call__(scope, receive, send)
            except SendTimeoutError:
                logger.info("closing a stream: its client took nothing for %g s", self.send_timeout)
            finally:
                await self._body.aclose()  # the response to HEAD does not read it
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._stream.attach(writer)
        writer.detach(self._body)

    async def open(self) -> Self:
        """Opens a strict stream before its response begins, so that the request can still fail.

        Raises:
            TooManyStreams: it is not admitted.
        """
        await anext(self._body)
        return self


def retry_response(retry_ms: int, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a stream that ends immediately and makes the client reconnect.

    It answers a temporary fault: after any error status an EventSource gives up for good.
    """
    return Response(encode_retry(retry_ms), headers={**HEADERS, **(headers or {})}, media_type=_MEDIA_TYPE)
