"""The stream writer of our own server: writes a detached stream to its connection's socket.

It empties objects of uvicorn 0.54, whose connection keeps the request that it answers.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Final

from starlette.types import Message, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from stagebus.gateway.server.access_log import AccessRecord
from stagebus.gateway.streaming.stream_writer import STREAM_WRITER, StreamTorn

_BODY_END: Final[Message] = {"type": "http.response.body", "body": b"", "more_body": False}


class SocketWriter:
    """An ASGI app around the app, for one request of one connection; afterwards the writer of the app's stream.

        answering      the app runs, and may call `detach`
        detached       the app has returned, and the writer sends the body
        disconnected   the client has gone; nothing is written

    Attributes:
        access_record: of a detached response; its line is written when the body has ended.
    """

    __slots__ = (
        "__weakref__",
        "_app",
        "_body",
        "_cycle",
        "_is_disconnected",
        "_protocol",
        "access_record",
        "on_disconnect",
        "sent_bytes",
    )

    def __init__(self, app: ASGI3Application, protocol: HttpToolsProtocol, cycle: RequestResponseCycle) -> None:
        self._app: ASGI3Application | None = app
        self._protocol = protocol
        self._cycle = cycle
        self._body: AsyncGenerator[bytes, None] | None = None
        self._is_disconnected = False
        self.access_record: AccessRecord | None = None
        self.on_disconnect: Callable[[], None] = _do_nothing
        self.sent_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the app answer the request, then sends the body that the app has detached."""
        assert self._app is not None
        scope.setdefault("extensions", {})[STREAM_WRITER] = self
        if scope["http_version"] == "1.0":
            send = _without_chunks(self._cycle, send)
        await self._app(scope, receive, send)  # type: ignore[arg-type]
        if self._body is None:
            return
        self._app = None
        self._forget_request()
        del scope, receive, send
        if self._is_disconnected:  # before `on_disconnect` was set
            self.on_disconnect()
        if self.access_record is not None:
            self.access_record.bind_trace()
        is_complete = False
        try:
            async for data in self._body:
                await self._send(data)
                del data  # else a whole log page would stay in memory while the stream is quiet
            is_complete = True
        except StreamTorn:
            pass
        finally:
            await self._end(self._body, is_complete=is_complete)

    def detach(self, body: AsyncGenerator[bytes, None]) -> None:
        """Takes the response over from the app."""
        self._body = body

    @property
    def is_detached(self) -> bool:
        """True if the response continues after the app returns."""
        return self._body is not None

    def disconnect(self) -> None:
        """The connection is lost."""
        self._is_disconnected = True
        self._cycle.disconnected = True  # uvicorn sets this for the connection's latest request only
        self.on_disconnect()

    def ignores_body_of(self, cycle: RequestResponseCycle) -> bool:
        """Returns True if the rest of the request's body can be dropped, because the app has returned."""
        return cycle is self._cycle and self._app is None

    @property
    def is_writable(self) -> bool:
        """True if the client is connected and the socket's buffer has room."""
        return not (self._cycle.flow.write_paused or self._is_disconnected)

    def write(self, data: bytes) -> None:
        """Writes a part of the body, as `RequestResponseCycle.send` does (uvicorn 0.54)."""
        self.sent_bytes += len(data)
        is_chunked = self._cycle.chunked_encoding
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if is_chunked else data)

    async def _send(self, data: bytes) -> None:
        if self._cycle.flow.write_paused and not self._is_disconnected:
            await self._cycle.flow.drain()
        if not self._is_disconnected:
            self.write(data)

    async def _end(self, body: AsyncGenerator[bytes, None], *, is_complete: bool) -> None:
        """Closes the body and ends the response; the connection may carry another request then.

        A response that is not complete ends with its connection, so that its client sees that.
        """
        self.on_disconnect, self._body = _do_nothing, None
        try:
            await body.aclose()  # it is still open if sending to the client was cancelled
        finally:
            if self.access_record is not None:
                self.access_record.sent_bytes += self.sent_bytes
                self.access_record.write()
            if not is_complete:
                self._cycle.disconnected = True  # uvicorn would report that the response is not complete
                self._cycle.transport.close()
            elif not self._is_disconnected:
                await self._cycle.send(_BODY_END)  # type: ignore[arg-type]

    def _forget_request(self) -> None:
        # The end of the response needs the method and nothing else.
        self._cycle.scope = {"method": self._cycle.scope["method"]}  # type: ignore[typeddict-item]
        self._cycle.message_event = _NO_WAITERS  # type: ignore[assignment]
        self._cycle.body = bytearray()
        self._cycle.flow.resume_reading()
        if self._protocol.cycle is self._cycle:  # the next request has not come yet
            self._protocol.scope, self._protocol.headers = self._cycle.scope, []


class _NoWaiters:
    """Replaces an event that nothing waits for."""

    __slots__ = ()

    def set(self) -> None:
        pass


_NO_WAITERS: Final = _NoWaiters()


def _without_chunks(cycle: RequestResponseCycle, send: Send) -> Send:
    """Returns a `send` for an HTTP/1.0 client, which would take uvicorn's chunks for the body.

    The end of the connection ends a body without a Content-Length; uvicorn closes it after each HTTP/1.0 response.
    Spec: https://www.rfc-editor.org/rfc/rfc9112#section-6.3
    """
    is_length_known = False

    async def send_plain(message: Message) -> None:
        nonlocal is_length_known
        if message["type"] == "http.response.start":
            is_length_known = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            cycle.chunked_encoding = None if is_length_known else False
        elif not is_length_known:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return send_plain


def _do_nothing() -> None:
    pass
