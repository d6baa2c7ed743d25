"""A connection to Redis whose replies go from the socket's callback directly to a handler.

redis-py opens the connection (address, TLS, AUTH, SELECT); then this class replaces the protocol of its socket.
redis-py itself reads with a task and a StreamReader, which costs two more iterations of the event loop and a future per
read. Where most reads bring one message, as in a process that is not busy, that is a large part of a message's cost.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import hiredis
from redis.asyncio import Connection, Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.storage.redis_client import leave_server, open_connection


class RedisProtocol(asyncio.Protocol):
    """Sends commands and hands over the replies in order."""

    def __init__(self, connection: Connection, on_reply: Callable[[Any], None]) -> None:
        self._connection = connection
        self._on_reply = on_reply
        # Set by the owner. Called once, with the reason, when the connection is lost or closed.
        self.on_lost: Callable[[Exception], None] = _ignore
        self._failure: Exception | None = None
        self._closed = asyncio.Event()
        # redis-py has classes for NOSCRIPT and other errors.
        self._parser = hiredis.Reader(replyError=connection._parser.parse_error)  # noqa: SLF001
        writer = connection._writer  # noqa: SLF001
        assert writer is not None, "the connection is open"
        self._transport: asyncio.Transport = writer.transport  # type: ignore[assignment]
        self._transport.set_protocol(self)

    @classmethod
    async def open(cls, redis: Redis, on_reply: Callable[[Any], None]) -> Self:
        """Connects with the settings of `redis`.

        Args:
            on_reply: called with each reply in the event loop; an exception from it closes the connection.

        Raises:
            RedisError, OSError: Redis is away.
        """
        connection = open_connection(redis)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            connection._close()  # type: ignore[no-untyped-call]  # noqa: SLF001 - its own disconnect waits
            raise
        return cls(connection, on_reply)

    def send(self, *args: bytes | str | float) -> None:
        """Sends one command. Only its reply tells whether it arrived."""
        self.send_packed(hiredis.pack_command(args))  # type: ignore[arg-type]  # the stub allows one type of argument

    def send_packed(self, commands: bytes) -> None:
        """Sends commands that are packed already."""
        if self._failure is not None:
            return
        try:
            self._transport.write(commands)
        except (RuntimeError, OSError) as exc:  # uvloop raises RuntimeError for a closed transport
            self.close(RedisConnectionError(str(exc)))

    def close(self, reason: Exception) -> None:
        """Closes the connection; no more replies are handed over."""
        if self._failure is None:
            self._failure = reason
            self._transport.abort()
            self._connection._close()  # type: ignore[no-untyped-call]  # noqa: SLF001
            self.on_lost(reason)

    async def wait_closed(self) -> Exception | None:
        """Waits until the socket is closed by either side and returns the reason."""
        await self._closed.wait()
        return self._failure

    # --- asyncio.Protocol ----------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parses the bytes and hands over every complete reply; closes the connection if it leads to the wrong server."""
        try:
            self._parser.feed(data)
            while self._failure is None and (reply := self._parser.gets()) is not False:
                if isinstance(reply, Exception) and (failure := leave_server(self._connection, reply)) is not None:
                    self.close(failure)
                else:
                    self._on_reply(reply)
        except Exception as exc:  # noqa: BLE001 - `on_lost` and `wait_closed` pass it on
            broken = RedisConnectionError(f"the reply cannot be read: {exc!r}")
            broken.__cause__ = exc
            self.close(broken)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio when either side closed the socket."""
        self.close(RedisConnectionError(str(exc) if exc else "Redis closed the connection"))
        self._closed.set()


def _ignore(_: Exception) -> None:
    pass
