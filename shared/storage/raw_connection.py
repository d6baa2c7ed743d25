"""A wire: a connection to Redis whose replies go from the socket's callback straight to a handler.

redis-py opens it (address, TLS, AUTH, SELECT), then its socket gets another protocol.
redis-py's own way, a task that waits at a StreamReader, takes two more turns of the event
loop and a future for each read; where most reads bring one message, as in a process that
is not busy, that is a large part of all that a message costs.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import hiredis
from redis.asyncio import Connection, Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.storage.redis_client import open_connection


class RedisProtocol(asyncio.Protocol):
    """Sends commands and hands over what comes back, in order."""

    def __init__(self, connection: Connection, on_reply: Callable[[Any], None]) -> None:
        self._connection = connection
        self._on_reply = on_reply
        # Set by the owner: called once, with why nothing more comes.
        self.on_lost: Callable[[Exception], None] = _ignore
        self._failure: Exception | None = None
        self._is_gone = asyncio.Event()
        # NOSCRIPT and the like have classes of their own, which redis-py knows.
        self._parser = hiredis.Reader(replyError=connection._parser.parse_error)  # noqa: SLF001
        writer = connection._writer  # noqa: SLF001
        assert writer is not None, "the connection is open"
        self._transport: asyncio.Transport = writer.transport  # type: ignore[assignment]
        self._transport.set_protocol(self)

    @classmethod
    async def open(cls, redis: Redis, on_reply: Callable[[Any], None]) -> Self:
        """Connect as `redis` does.

        Args:
            on_reply: called with each reply, in the event loop; what it raises ends the wire.

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
        """Send one command; whether it arrived, its reply tells."""
        self.send_packed(hiredis.pack_command(args))  # type: ignore[arg-type]  # the stub knows one word

    def send_packed(self, commands: bytes) -> None:
        """Send commands that are packed already."""
        if self._failure is not None:
            return
        try:
            self._transport.write(commands)
        except (RuntimeError, OSError) as exc:  # RuntimeError is uvloop's word for a transport that was closed
            self.close(RedisConnectionError(str(exc)))

    def close(self, why: Exception) -> None:
        """Nothing more is sent, nothing more comes."""
        if self._failure is None:
            self._failure = why
            self._transport.abort()
            self._connection._close()  # type: ignore[no-untyped-call]  # noqa: SLF001
            self.on_lost(why)

    async def wait_gone(self) -> Exception | None:
        """Wait until the socket is closed, by whomever; why it is."""
        await self._is_gone.wait()
        return self._failure

    # --- asyncio.Protocol ----------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes came: hand over every reply that is complete."""
        try:
            self._parser.feed(data)
            while self._failure is None and (reply := self._parser.gets()) is not False:
                self._on_reply(reply)
        except Exception as exc:  # noqa: BLE001 - whoever waits for the end hears of it
            failure = RedisConnectionError(f"what came cannot be read: {exc!r}")
            failure.__cause__ = exc
            self.close(failure)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side closed it, or we did."""
        self.close(RedisConnectionError(str(exc) if exc else "Redis closed the connection"))
        self._is_gone.set()


def _ignore(_: Exception) -> None:
    pass
