"""One connection of a client's, with an end to everything that it may hold back.

uvicorn's parser (0.54, httptools) waits for ever for the rest of a request's head and lets it
grow without bound, and its keep-alive time-out is over with the first byte. Here

    the head    has to be complete within `headers_timeout_s`, within `headers_max_bytes`
    the body    within `body_timeout_s`
    the whole   is refused where the process has `connections_max` of them

A client that is too slow loses its connection. An answer has no place there: it would have to
wait for the same client.
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
    """Raised within the parser, which stops at it."""


class _Flow(FlowControl):
    """uvicorn's, whose event is made only when a client reads slowly: it takes 0.9 KiB."""

    __slots__ = ("_is_writable_event", "_transport", "read_paused", "write_paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = self.write_paused = False

    def pause_writing(self) -> None:
        """The client has fallen behind."""
        if not self.write_paused:
            self.write_paused = True
            self._is_writable_event = asyncio.Event()

    def resume_writing(self) -> None:
        """It has caught up, or is gone."""
        if self.write_paused:
            self.write_paused = False
            self._is_writable_event.set()
            del self._is_writable_event  # who waits at it holds it

    async def drain(self) -> None:
        """Wait until it has."""
        if self.write_paused:
            await self._is_writable_event.wait()


class _Pipeline(list[Any]):
    """In the place of a deque, which takes 0.7 KiB; requests that came while another was answered are few."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        self.insert(0, item)


class Connection(HttpToolsProtocol):
    """uvicorn's connection with the limits of the settings."""

    limits: Settings

    # uvicorn's attributes, too: there is one of these for each open stream, and a dict of thirty names takes 1.5 KiB.
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
        self.pipeline = _Pipeline()  # type: ignore[assignment]
        self._writer: SocketWriter | None = None  # of the request that is answered now
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_head = False
        self._head_bytes = 0
        self._is_head_too_long = False

    # --- the connection ------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came; it has to say something soon."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        if len(self.connections) > self.limits.connections_max:
            transport.abort()
            return
        self._wait(self.limits.headers_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._wait(None)
        super().connection_lost(exc)
        if self._writer is not None:
            self._writer.disconnect()
            self._writer = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._writer = SocketWriter(app, self, cycle)
        super()._start_asgi_task(cycle, self._writer)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        """Parse what came, and look whether the head goes on for too long."""
        if self._timer is None:
            self._wait(self.limits.headers_timeout_s)  # between two requests, even an empty line begins the next
        super().data_received(data)
        # The parser keeps a header to itself until it is complete.
        if self._is_in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.headers_max_bytes:
                self._refuse_head()

    # --- the parser's callbacks ----------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_in_head, self._head_bytes = True, 0
        if self._timer is None:  # it came together with the one before
            self._wait(self.limits.headers_timeout_s)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of its URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is complete."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is; the body has its own time."""
        self._is_in_head = False
        self._wait(self.limits.body_timeout_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request is here."""
        self._wait(None)
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """A part of its body, which nobody reads once the app has returned."""
        if self._writer is None or not self._writer.ignores_body_of(self.cycle):
            super().on_body(body)

    def on_response_complete(self) -> None:
        """The answer is out; the next request, if one waits, is begun."""
        self._writer = None
        super().on_response_complete()

    # --- limits --------------------------------------------------------------

    def _wait(self, timeout_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if timeout_s is None else self.loop.call_later(timeout_s, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.limits.headers_max_bytes:
            self._is_head_too_long = True
            raise HeadTooLong

    def send_400_response(self, msg: str) -> None:
        """The parser stopped: at nonsense, or at us."""
        if self._is_head_too_long:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        self.transport.write(HEAD_TOO_LONG)
        self.transport.close()


def connection_class(settings: Settings) -> type[Connection]:
    """The class that uvicorn makes its connections of; it takes no arguments of ours."""
    return type("Connection", (Connection,), {"limits": settings, "__slots__": ()})
