"""One client connection, with limits for everything that it can hold back.

uvicorn's parser (0.54, httptools) waits without a limit for the rest of a request's head and lets it grow without
bound; its keep-alive time-out ends with the first byte. Here

    the head         must be complete within `headers_timeout_s` and `headers_max_bytes`
    the body         must be complete within `body_timeout_s`
    the connection   is aborted if the process has more than `connections_max`

A client that is too slow loses its connection. It gets no response, because the response would have to wait for the
same client.
"""

import asyncio
from typing import Any, Final

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from stagebus.gateway.server.socket_writer import SocketWriter
from stagebus.shared.config.settings import Settings

_TEXT: Final = b"the URL and the headers are too long\n"
HEAD_TOO_LONG: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_TEXT), _TEXT)
)


class HeadTooLong(Exception):
    """Raised in a parser callback, to stop the parser."""


class _LazyFlowControl(FlowControl):
    """uvicorn's flow control, but its event, which takes 0.9 KiB, exists only while a client reads too slowly."""

    __slots__ = ("_is_writable_event", "_transport", "read_paused", "write_paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = self.write_paused = False

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        if not self.write_paused:
            self.write_paused = True
            self._is_writable_event = asyncio.Event()

    def resume_writing(self) -> None:
        """The buffer has room again, or the client has disconnected."""
        if self.write_paused:
            self.write_paused = False
            self._is_writable_event.set()
            del self._is_writable_event  # the waiting coroutines keep it alive

    async def drain(self) -> None:
        """Waits until the buffer has room."""
        if self.write_paused:
            await self._is_writable_event.wait()


class _PipelinedRequests(list[Any]):
    """Replaces uvicorn's deque, which takes 0.7 KiB when empty. Few clients send a request before a response."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        """Adds a request that waits for the response to an earlier one."""
        self.insert(0, item)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with the limits of the settings and a stream writer for each request."""

    limits: Settings

    # Includes uvicorn's attributes: each open stream has a connection, and a dict of thirty names takes 1.5 KiB.
    __slots__ = (
        "_head_bytes",
        "_is_head_too_long",
        "_is_in_head",
        "_timer",
        "_writer",
        "access_log",
        "access_logger",
        "app",
        "app_state",
        "asgi_version",
        "client",
        "config",
        "connections",
        "cycle",
        "expect_100_continue",
        "flow",
        "headers",
        "limit_concurrency",
        "logger",
        "loop",
        "parser",
        "pipeline",
        "root_path",
        "scheme",
        "scope",
        "server",
        "server_state",
        "tasks",
        "timeout_keep_alive",
        "timeout_keep_alive_task",
        "transport",
        "url",
        "ws_protocol_class",
    )

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.pipeline = _PipelinedRequests()  # type: ignore[assignment]
        self._writer: SocketWriter | None = None  # of the current request
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_head = False
        self._head_bytes = 0
        self._is_head_too_long = False

    # --- the connection ------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time limit of the first request's head."""
        super().connection_made(transport)
        self.flow = _LazyFlowControl(transport)
        if len(self.connections) > self.limits.connections_max:
            transport.abort()
            return
        self._set_timer(self.limits.headers_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the stream that its client has disconnected."""
        self._set_timer(None)
        super().connection_lost(exc)
        if self._writer is not None:
            self._writer.disconnect()
            self._writer = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._writer = SocketWriter(app, self, cycle)
        super()._start_asgi_task(cycle, self._writer)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        """Parses the data, and checks the length of an incomplete header."""
        if self._timer is None:
            self._set_timer(self.limits.headers_timeout_s)  # between two requests even an empty line begins the next
        super().data_received(data)
        # The parser reports a header only when it is complete.
        if self._is_in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.headers_max_bytes:
                self._refuse_head()

    # --- the parser's callbacks ----------------------------------------------

    def on_message_begin(self) -> None:
        """Starts to count the bytes of a request's head."""
        self._is_in_head, self._head_bytes = True, 0
        if self._timer is None:  # it came in one packet with the previous request
            self._set_timer(self.limits.headers_timeout_s)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Counts a part of the URL."""
        self._count_head_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Counts a complete header."""
        self._count_head_bytes(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Ends the time limit of the head and starts that of the body."""
        self._is_in_head = False
        self._set_timer(self.limits.body_timeout_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Ends the time limit of the body."""
        self._set_timer(None)
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Keeps a part of the body, unless the app has returned and cannot read it."""
        if self._writer is None or not self._writer.ignores_body_of(self.cycle):
            super().on_body(body)

    def on_response_complete(self) -> None:
        """Releases the writer; uvicorn starts the next request if one waits."""
        self._writer = None
        super().on_response_complete()

    # --- limits --------------------------------------------------------------

    def _set_timer(self, timeout_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if timeout_s is None else self.loop.call_later(timeout_s, self._abort)

    def _abort(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _count_head_bytes(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.limits.headers_max_bytes:
            self._is_head_too_long = True
            raise HeadTooLong

    def send_400_response(self, msg: str) -> None:
        """Answers a parser error, which is ours if the head is too long."""
        if self._is_head_too_long:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        self.transport.write(HEAD_TOO_LONG)
        self.transport.close()


def connection_class(settings: Settings) -> type[Connection]:
    """Returns the class of uvicorn's connections; it holds the settings, because uvicorn passes no arguments of ours."""
    return type("Connection", (Connection,), {"limits": settings, "__slots__": ()})
