"""The way to one client of a stream, from its first frame on.

    AsgiWriter    what any server has: a coroutine for each part
    SocketWriter  on our own server's connections: a write to the socket, and nobody waits

All that carries a request to its handler, and the request itself, is 20 KiB: some twenty
coroutines within one another, the headers, the scope. A stream may stay for an hour. So on our
own server the app returns as soon as the response has begun, and what is left of the
stream goes on without it.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from starlette.types import Message, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

# In a scope's extensions, where the server can go on with a stream after the app has returned.
HANDOVER: Final = "stagebus.handover"

_LAST: Final[Message] = {"type": "http.response.body", "body": b"", "more_body": False}


class StreamWriter(Protocol):
    """Takes a body's bytes; `on_lost` is called once the client is gone."""

    on_lost: Callable[[], None]

    @property
    def is_free(self) -> bool:
        """Whether `write` may be called now: nothing waits before the client."""
        ...

    def write(self, data: bytes) -> None:
        """Send at once."""
        ...

    async def send(self, data: bytes) -> None:
        """Send as soon as the client, or a buffer on the way to it, has room."""
        ...

    async def end(self) -> None:
        """The body is complete."""
        ...


class AsgiWriter:
    """Sends through the app's layers, as ASGI has it."""

    is_free: Final = False

    def __init__(self, send: Send) -> None:
        self._send = send
        self.on_lost: Callable[[], None] = _nobody

    def write(self, data: bytes) -> None:
        """Never called."""
        raise NotImplementedError

    async def send(self, data: bytes) -> None:
        """Send a part."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Send the end."""
        self.on_lost = _nobody
        await self._send(_LAST)


class SocketWriter:
    """A request on a connection of ours, as ASGI app around the app; then the stream's way out."""

    __slots__ = ("__weakref__", "_app", "_cycle", "_is_lost", "_protocol", "_rest", "on_lost")

    def __init__(self, app: ASGI3Application, protocol: HttpToolsProtocol, cycle: RequestResponseCycle) -> None:
        self._app: ASGI3Application | None = app
        self._protocol = protocol
        self._cycle = cycle
        self._is_lost = False
        self._rest: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.on_lost: Callable[[], None] = _nobody

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app answer; where it left a stream, go on with that."""
        assert self._app is not None
        scope.setdefault("extensions", {})[HANDOVER] = self
        try:
            await self._app(scope, receive, send)  # type: ignore[arg-type]
        finally:
            if self._rest is not None:
                rest, self._rest, self._app = self._rest, None, None
                self._forget_request()
                del scope, receive, send
                if self._is_lost:  # before anybody could be told
                    self.on_lost()
                await rest()

    def take_over(self, rest: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Called by the app when its response has begun: `rest` follows its return, and ends the response."""
        self._rest = rest

    def lose(self) -> None:
        """The connection is gone."""
        self._is_lost = True
        self._cycle.disconnected = True  # uvicorn says so to the connection's last request alone
        self.on_lost()

    def has_taken_over(self, cycle: RequestResponseCycle) -> bool:
        """Whether the app has returned from the request, and its response goes on."""
        return cycle is self._cycle and self._app is None

    def _forget_request(self) -> None:
        # The end of the response looks at the method, and at nothing else.
        self._cycle.scope = {"method": self._cycle.scope["method"]}  # type: ignore[typeddict-item]
        self._cycle.message_event = _NOBODY_WAITS  # type: ignore[assignment]
        self._cycle.body = bytearray()
        self._cycle.flow.resume_reading()
        if self._protocol.cycle is self._cycle:  # and the next request has not come yet
            self._protocol.scope, self._protocol.headers = self._cycle.scope, []

    # --- Outlet --------------------------------------------------------------

    @property
    def is_free(self) -> bool:
        """Whether the socket takes what comes, as far as is known."""
        return not (self._cycle.flow.write_paused or self._is_lost)

    def write(self, data: bytes) -> None:
        """Send a part, as `RequestResponseCycle.send` does (uvicorn 0.54)."""
        is_chunked = self._cycle.chunked_encoding
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if is_chunked else data)

    async def send(self, data: bytes) -> None:
        """Send a chunk when the socket takes it."""
        if self._cycle.flow.write_paused and not self._is_lost:
            await self._cycle.flow.drain()
        if not self._is_lost:
            self.write(data)

    async def end(self) -> None:
        """Send the last chunk; the connection may carry another request then."""
        self.on_lost = _nobody
        if not self._is_lost:
            await self._cycle.send(_LAST)  # type: ignore[arg-type]


class _NobodyWaits:
    """In the place of an event at which nobody will wait any more."""

    __slots__ = ()

    def set(self) -> None:
        pass


_NOBODY_WAITS: Final = _NobodyWaits()


def _nobody() -> None:
    pass


def stream_writer_of(scope: Scope) -> SocketWriter | None:
    """The connection itself, where it is one of ours."""
    outlet: SocketWriter | None = scope.get("extensions", {}).get(HANDOVER)
    return outlet
