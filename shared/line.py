"""A line: one connection on which many commands are under way at once, answered in their order.

redis-py gives every command a connection of its pool, looks whether that is still alive
and sets two time-outs around it, which is more CPU than all else that a worker does for
a token: 115-140 us a command, where this takes 20-27 and the server half of its own
(redis-py 5.3, ten commands or more under way). Here a command is one packing and one
future, and those of one turn of the event loop travel in one write.

For commands that are safe to send again: when the connection breaks, nobody knows which
of them were carried out. Each caller has one under way, so nothing piles up here.
"""

import asyncio
from collections import deque
from typing import Any, Final

import hiredis
from redis.asyncio import Connection, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.redis import REDIS_AWAY, open_connection
from shared.tasks import cancel_and_wait

READ_BYTES: Final = 64 * 1024


class Line:
    """Sends scripts; opens its connection with the first, and again after it broke."""

    def __init__(self, redis: Redis, timeout_s: float) -> None:
        """A server that answers nothing for `timeout_s`, while something is asked of it, counts as away."""
        self._redis = redis
        self._timeout_s = timeout_s
        self._opening = asyncio.Lock()
        self._connection: Connection | None = None
        self._reading: asyncio.Task[None] | None = None
        self._outgoing: list[bytes] = []
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._answers = 0
        self._watch: asyncio.TimerHandle | None = None

    async def evalsha(self, *args: Any) -> Any:
        """EVALSHA, as redis-py has it.

        Raises:
            RedisError, OSError: Redis is away, or the script failed; it may have been carried out.
        """
        return await self._call("EVALSHA", *args)

    async def eval(self, *args: Any) -> Any:
        """EVAL, in the same way."""
        return await self._call("EVAL", *args)

    async def aclose(self) -> None:
        """Close the connection; who still waits for an answer gets an error."""
        self._break(self._connection, RedisConnectionError("the line was closed"))
        if self._reading is not None:
            await cancel_and_wait(self._reading)

    async def _call(self, *args: Any) -> Any:
        command = hiredis.pack_command(args)
        while self._connection is None:
            await self._open()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(answer)
        if not self._outgoing:
            loop.call_soon(self._flush)
        self._outgoing.append(command)
        if self._watch is None:
            self._watch = loop.call_later(self._timeout_s, self._look, self._answers)
        return await answer

    async def _open(self) -> None:
        async with self._opening:
            if self._connection is None:
                connection = open_connection(self._redis)
                await connection.connect()  # type: ignore[no-untyped-call]
                self._connection = connection
                self._reading = asyncio.create_task(self._read(connection))

    def _flush(self) -> None:
        data, self._outgoing = b"".join(self._outgoing), []
        connection = self._connection
        if not data or connection is None:
            return
        writer = connection._writer  # noqa: SLF001 - redis-py 5.3 writes with a time-out or not at all
        try:
            assert writer is not None, "the connection is open"
            writer.write(data)
        except (RuntimeError, OSError) as exc:  # RuntimeError is uvloop's word for a transport that was closed
            self._break(connection, RedisConnectionError(str(exc)))

    async def _read(self, connection: Connection) -> None:
        reader = connection._reader  # noqa: SLF001 - as in pubsub
        assert reader is not None, "the connection is open"
        parser = hiredis.Reader(replyError=connection._parser.parse_error)  # noqa: SLF001 - NOSCRIPT has a class
        try:
            while data := await reader.read(READ_BYTES):
                parser.feed(data)
                while (reply := parser.gets()) is not False:
                    self._answer(reply)
            self._break(connection, RedisConnectionError("Redis closed the connection"))
        except REDIS_AWAY as exc:
            self._break(connection, RedisConnectionError(str(exc)))

    def _answer(self, reply: Any) -> None:
        self._answers += 1
        answer = self._waiting.popleft()
        if answer.done():  # its caller was cancelled
            return
        if isinstance(reply, Exception):
            answer.set_exception(reply)
        else:
            answer.set_result(reply)

    def _look(self, answers: int) -> None:
        self._watch = None
        if self._waiting and answers == self._answers:
            self._break(self._connection, RedisTimeoutError("Redis does not answer"))
        elif self._waiting:
            self._watch = asyncio.get_running_loop().call_later(self._timeout_s, self._look, self._answers)

    def _break(self, connection: Connection | None, failure: Exception) -> None:
        """Nothing more comes of this connection; all who wait hear of it, and may send again."""
        if connection is None or connection is not self._connection:
            return  # another took its place
        self._connection = None
        self._outgoing.clear()
        waiting, self._waiting = self._waiting, deque()
        for answer in waiting:
            if not answer.done():
                answer.set_exception(failure)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._reading is not None:
            self._reading.cancel()
        connection._close()  # type: ignore[no-untyped-call]  # noqa: SLF001 - redis-py's own disconnect waits
