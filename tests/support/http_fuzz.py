"""Broken HTTP at the gateway's connection, without a socket: however the bytes are cut, the app gets the same requests.

A connection closes at the first fault. Requests before it that arrived in the same packet may be dropped.
"""

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from stagebus.gateway.server.connection import Connection, connection_class
from stagebus.shared.config.settings import Settings

# One after another on one connection: with a length, with chunks and trailers, with an upgrade, with neither.
PIPELINE = (
    b"POST /a?b=c HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"
    b"POST /chunks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;e=f\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: t\r\nHost: evil\r\n\r\n"
    b"GET /up HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    b"\r\nGET /last HTTP/1.1\r\nHost: localhost\r\n\r\n"
)
_SETTLE_STEPS = 30

Request = tuple[str, bytes, list[tuple[bytes, bytes]], bytes]


class _Socket:
    """The transport's socket, as far as the connection reads it."""

    family = socket.AF_UNIX

    def getsockname(self) -> str:
        return ""

    getpeername = getsockname


class _Transport(asyncio.Transport):
    """Collects what the server writes."""

    def __init__(self) -> None:
        super().__init__({"socket": _Socket()})
        self.written = bytearray()
        self.is_closed = self.is_paused = False

    def write(self, data: Any) -> None:
        if not self.is_closed:
            self.written += data

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class HttpFuzz:
    """An app that notes its requests, behind connections without sockets."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._seen: list[Request] = []
        self._class: type[Connection] = connection_class(Settings())
        self._config = uvicorn.Config(
            self._app, http=self._class, ws="none", lifespan="off", interface="asgi3", log_config=None
        )
        self._config.load()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message["body"]
            if not message.get("more_body"):
                break
        self._seen.append((scope["method"], scope["raw_path"], scope["headers"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def requests_of(self, parts: list[bytes]) -> tuple[list[Request], bytes]:
        """Sends the parts over one connection; returns the complete requests that the app got, and all responses."""
        return self._loop.run_until_complete(self._send(parts))

    async def _send(self, parts: list[bytes]) -> tuple[list[Request], bytes]:
        self._seen = []
        transport, state = _Transport(), ServerState()
        connection = self._class(config=self._config, server_state=state, app_state={}, _loop=self._loop)
        connection.connection_made(transport)
        for part in parts:
            if transport.is_closed:
                break
            connection.data_received(part)
            await self._settle(transport)
        transport.close()
        connection.connection_lost(None)
        await asyncio.gather(*state.tasks)
        return self._seen, bytes(transport.written)

    @staticmethod
    async def _settle(transport: _Transport) -> None:
        """Lets the app answer. A paused transport delivers nothing."""
        for _ in range(_SETTLE_STEPS):
            await asyncio.sleep(0)
        assert transport.is_closed or not transport.is_paused, "reading stays paused"


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """Returns the data in parts."""
    ends = sorted({min(place, len(data)) for place in at} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False) if begin < end]
