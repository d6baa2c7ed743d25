"""One client connection, with limits for everything that it can hold back.

uvicorn's parser (0.54, httptools) waits without a limit for the rest of a request's head and lets it grow without
bound; its keep-alive time-out ends with the first byte. Here

    the head         must be complete within `headers_timeout_s` and `headers_max_bytes`
    the body         must be complete within `body_timeout_s`, its trailers within `headers_max_bytes`
    early requests   that wait for earlier responses are at most `PIPELINED_MAX`; then the connection closes
    the response     must be taken: the client may pause for `write_timeout_s`, see `stalled_clients.py`, too
    the connection   is aborted if the process has more than `connections_max`

A client that is too slow loses its connection. It gets no response, because the response would have to wait for the
same client.

A request to upgrade the connection (`Upgrade: h2c`) is answered as HTTP/1.1, as a server may.
Spec: https://www.rfc-editor.org/rfc/rfc9110#section-7.8
"""

import asyncio
import socket
from collections.abc import Sized
from enum import Enum, auto
from typing import Any, Final

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from stagebus.gateway.server.request_head import BAD_REQUEST, refusal_of
from stagebus.gateway.server.socket_writer import SocketWriter
from stagebus.shared.config.settings import Settings


def _closing_response(status_line: bytes, text: bytes) -> bytes:
    return (
        b"HTTP/1.1 %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
        % (status_line, len(text), text)
    )


HEAD_TOO_LONG: Final = _closing_response(
    b"431 Request Header Fields Too Large", b"the URL and the headers are too long\n"
)
INVALID: Final = _closing_response(BAD_REQUEST, b"Invalid HTTP request received.")
# Requests that may wait for an earlier response. A client must expect that later ones get no response, and sends them
# again on another connection: https://www.rfc-editor.org/rfc/rfc9112#section-9.3.2
PIPELINED_MAX: Final = 16


class Phase(Enum):
    """The part of a request that the parser expects next."""

    IDLE = auto()  # a new request
    HEAD = auto()
    UPGRADE = auto()  # none: the head is complete and will be parsed again
    BODY = auto()  # or its trailers


class HeadRefused(Exception):
    """Raised in a parser callback, to stop the parser."""


class PipelineFull(Exception):
    """Raised in a parser callback, to stop the parser."""


class _LazyFlowControl(FlowControl):
    """uvicorn's flow control, but its event, which takes 0.9 KiB, exists only while a client reads too slowly.

    Nothing is read while requests wait for earlier responses.
    """

    __slots__ = ("_is_writable_event", "_pipelined", "_transport", "read_paused", "write_paused")

    def __init__(self, transport: asyncio.Transport, pipelined: Sized) -> None:
        self._transport = transport
        self._pipelined = pipelined
        self.read_paused = self.write_paused = False

    def resume_reading(self) -> None:
        """Reads again, unless requests wait."""
        if not self._pipelined:
            super().resume_reading()

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
        "_is_ended",
        "_is_in_body_packet",
        "_phase",
        "_refusal",
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
        self._phase = Phase.IDLE
        self._head_bytes = 0  # or of the trailers
        self._refusal = INVALID  # the response if the parser stops
        self._is_in_body_packet = False
        self._is_ended = False  # what the client sends is no longer read

    # --- the connection ------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time limit of the first request's head."""
        super().connection_made(transport)
        self.flow = _LazyFlowControl(transport, self.pipeline)
        if len(self.connections) > self.limits.connections_max:
            transport.abort()
            return
        self._limit_unread()
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
        """Parses the data, and checks the length of an incomplete header or trailer."""
        if self._is_ended:
            return
        if self._timer is None:
            self._set_timer(self.limits.headers_timeout_s)  # between two requests even an empty line begins the next
        self._unset_keepalive_if_required()
        self._parse(data)
        # The parser reports a field only when it is complete, so all bytes count that are not part of a body.
        if self._is_in_body_packet:
            self._is_in_body_packet = False
        elif self._phase is not Phase.IDLE and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.headers_max_bytes:
                self._refuse(HEAD_TOO_LONG)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            if self._phase is Phase.UPGRADE:
                self._ignore_upgrade(data[exc.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._refusal)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parses the request again, without its `Upgrade`: the parser takes what follows for another protocol.

        Args:
            rest: the data after the head.
        """
        self._phase = Phase.IDLE
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._parse(b"\r\n".join((*lines, b"", rest)))

    # --- the parser's callbacks ----------------------------------------------

    def on_message_begin(self) -> None:
        """Starts to count the bytes of a request's head."""
        if len(self.pipeline) >= PIPELINED_MAX:
            raise PipelineFull
        self._phase, self._head_bytes = Phase.HEAD, 0
        if self._timer is None:  # it came in one packet with the previous request
            self._set_timer(self.limits.headers_timeout_s)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Counts a part of the URL."""
        self._count_head_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Counts a complete header, or a trailer, which is dropped: it must not become a header.

        Spec: https://www.rfc-editor.org/rfc/rfc9110#section-6.5.1
        """
        self._count_head_bytes(len(name) + len(value))
        if self._phase is Phase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Checks the head, ends its time limit and starts that of the body."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._phase = Phase.UPGRADE
            return
        status_line = refusal_of(self.parser.get_http_version(), self.url, self.headers)
        if status_line is not None:
            self._refusal = _closing_response(status_line, b"Invalid HTTP request received.")
            raise HeadRefused
        self._phase, self._head_bytes = Phase.BODY, 0
        self._set_timer(self.limits.body_timeout_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Ends the time limit of the body."""
        if self._phase is Phase.UPGRADE:
            return
        self._phase = Phase.IDLE
        self._set_timer(None)
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Keeps a part of the body, unless the app has returned and cannot read it."""
        self._is_in_body_packet, self._head_bytes = True, 0
        if self._writer is None or not self._writer.ignores_body_of(self.cycle):
            super().on_body(body)

    def on_response_complete(self) -> None:
        """Releases the writer; uvicorn starts the next request if one waits."""
        self._writer = None
        super().on_response_complete()

    # --- limits --------------------------------------------------------------

    def _limit_unread(self) -> None:
        """Lets the system close the connection if the client does not take what the system holds for it.

        `StalledClients` sees only what is in this process; on Linux the socket's own buffer may hold 2.7 MB more.
        Source: tcp(7), TCP_USER_TIMEOUT
        """
        sock = self.transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self.limits.write_timeout_s * 1000))

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
            self._refusal = HEAD_TOO_LONG
            raise HeadRefused

    def _refuse(self, response: bytes) -> None:
        """Sends a refusal and closes the connection, but not in the middle of an earlier response."""
        cycle: RequestResponseCycle | None = self.cycle
        if self._phase is not Phase.BODY and cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False  # the connection closes after the responses to the requests so far
            self._is_ended = True
            self._set_timer(None)
            return
        if self._phase is not Phase.BODY or (cycle is not None and not (cycle.response_started or self.pipeline)):
            self.transport.write(response)
        self.transport.close()

    @property
    def is_waiting_for_client(self) -> bool:
        """True if nothing is written until the client takes what was written, and then either more or the end follows."""
        return self.flow.write_paused or self.transport.is_closing()


def connection_class(settings: Settings) -> type[Connection]:
    """Returns the class of uvicorn's connections; it holds the settings, because uvicorn passes no arguments of ours."""
    return type("Connection", (Connection,), {"limits": settings, "__slots__": ()})
