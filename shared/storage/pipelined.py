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
from collections.abc import Awaitable, Sequence
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage.raw_connection import RedisProtocol

Command = tuple[str | int | float | bytes, ...]


class PipelinedConnection:
    """Sends scripts and transactions; opens its connection with the first, and again after it broke."""

    def __init__(self, redis: Redis, timeout_s: float) -> None:
        """A server that answers nothing for `timeout_s`, while something is asked of it, counts as away."""
        self._redis = redis
        self._timeout_s = timeout_s
        self._opening: asyncio.Task[None] | None = None
        self._wire: RedisProtocol | None = None
        self._outgoing: list[bytes] = []
        self._waiting: deque[asyncio.Future[Any] | None] = deque()  # None: nobody looks at this answer
        self._answers = 0
        self._watch: asyncio.TimerHandle | None = None

    def execute_command(self, *args: Any) -> Awaitable[Any]:
        """Sends one command and returns its reply, as redis-py's method of this name does.

        Raises:
            RedisError, OSError: Redis is away or the command failed; the server may have executed it.
        """
        command = hiredis.pack_command(args)
        return self._open_and_send(command) if self._wire is None else self._send(command)

    async def transaction(self, commands: Sequence[Command]) -> list[Any]:
        """Commands that are carried out at one moment, with nobody else's between them.

        Raises:
            RedisError, OSError: Redis is away, or one of them failed.
        """
        whole: list[Command] = [("MULTI",), *commands, ("EXEC",)]
        packed = b"".join([hiredis.pack_command(command) for command in whole])  # type: ignore[arg-type]  # as in Wire
        replies: list[Any] = await self._open_and_send(packed, len(commands) + 1)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def aclose(self) -> None:
        """Close the connection; who still waits for an answer gets an error."""
        if self._opening is not None:
            opening, self._opening = self._opening, None  # one that has not begun clears nothing up
            await cancel_and_wait(opening)
        if (wire := self._wire) is not None:
            wire.close(RedisConnectionError("the line was closed"))
            await wire.wait_gone()

    async def _open_and_send(self, command: bytes, skipped: int = 0) -> Any:
        while self._wire is None:
            await self._open()
        return await self._send(command, skipped)

    def _send(self, command: bytes, skipped: int = 0) -> asyncio.Future[Any]:
        """The answer that comes after so many others."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        if skipped:
            self._waiting.extend([None] * skipped)
        self._waiting.append(answer)
        if not self._outgoing:
            loop.call_soon(self._flush)
        self._outgoing.append(command)
        if self._watch is None:
            self._watch = loop.call_later(self._timeout_s, self._look, self._answers)
        return answer

    async def _open(self) -> None:
        """Connect, or wait with the others for who does: a failure is that of all, not of one after the other."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
        opening = self._opening
        await asyncio.wait([opening])
        if opening.cancelled():
            raise RedisConnectionError("the line was closed")
        opening.result()

    async def _connect(self) -> None:
        try:
            self._wire = await RedisProtocol.open(self._redis, self._answer)
            self._wire.on_lost = self._fail
        finally:
            self._opening = None

    def _flush(self) -> None:
        data, self._outgoing = b"".join(self._outgoing), []
        if data and self._wire is not None:
            self._wire.send_packed(data)

    def _answer(self, reply: Any) -> None:
        self._answers += 1
        answer = self._waiting.popleft()
        if answer is None or answer.done():  # its caller was cancelled
            return
        if isinstance(reply, Exception):
            answer.set_exception(reply)
        else:
            answer.set_result(reply)

    def _look(self, answers: int) -> None:
        self._watch = None
        if self._waiting and answers == self._answers and self._wire is not None:
            self._wire.close(RedisTimeoutError("Redis does not answer"))
        elif self._waiting:
            self._watch = asyncio.get_running_loop().call_later(self._timeout_s, self._look, self._answers)

    def _fail(self, failure: Exception) -> None:
        """Nothing more comes of this connection; all who wait hear of it, and may send again."""
        self._wire = None
        self._outgoing.clear()
        waiting, self._waiting = self._waiting, deque()
        for answer in waiting:
            if answer is not None and not answer.done():
                answer.set_exception(failure)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
