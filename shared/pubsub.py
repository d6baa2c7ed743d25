"""One pub/sub connection for many channels, which heals itself.

A lost message has no successor that would betray it, so a canary does: a message to a
channel of our own, published over the ordinary connection. Where it does not come back
on this one, the connection listens to nobody: a cut that TCP did not tell of, or a
server that was replaced. It is opened anew, and the owner told to read what it missed.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from uuid import uuid4

import hiredis
from redis.asyncio import Connection, Redis

from shared.redis import REDIS_AWAY, open_connection
from shared.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

Handler = Callable[[bytes], None]

CANARY_S: Final = 0.6  # two of them may be missing before a deaf connection is given up: within 2 s
RECONNECT_BACKOFF_S: Final = 0.1
RECONNECT_BACKOFF_MAX_S: Final = 1.0
READ_BYTES: Final = 256 * 1024
SUBSCRIBE_AT_ONCE: Final = 1000


class Channels:
    """Subscribes handlers to channels. Handlers run in the event loop, one message after the other."""

    def __init__(self, redis: Redis, on_reconnected: Callable[[], None]) -> None:
        """`on_reconnected` is called when messages may have been missed and all channels are back."""
        self._redis = redis
        self._on_reconnected = on_reconnected
        self._handlers: dict[bytes, Handler] = {}
        self._confirmations: dict[bytes, list[asyncio.Future[None]]] = {}
        self._connection: Connection | None = None
        self._canary = f"sb:canary:{uuid4().hex}".encode()
        self._canaries_missing = 0
        self._handlers[self._canary] = self._hear_canary
        self._tasks: list[asyncio.Task[None]] = []
        self.is_connected = False

    async def start(self) -> None:
        """Connect in the background; subscriptions wait until that is done."""
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._send_canaries())]

    async def stop(self) -> None:
        """Close the connection."""
        await cancel_and_wait(*self._tasks)

    async def subscribe(self, channel: str, handler: Handler) -> None:
        """Give the channel's messages to `handler`; returns once the server has confirmed it.

        While Redis is away this waits. A channel has one handler.
        """
        name = channel.encode()
        self._handlers[name] = handler
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._confirmations.setdefault(name, [])
        waiting.append(confirmed)
        self._send("SUBSCRIBE", name)
        try:
            await confirmed
        finally:
            waiting.remove(confirmed)
            if not waiting and self._confirmations.get(name) is waiting:
                del self._confirmations[name]

    async def unsubscribe(self, channel: str) -> None:
        """No more messages of the channel."""
        name = channel.encode()
        if self._handlers.pop(name, None) is not None:
            self._send("UNSUBSCRIBE", name)

    def _send(self, command: str, name: bytes) -> None:
        # Past redis-py's own sending, which closes the connection, and so everyone's, where
        # whoever sends is cancelled in it, and opens a dead one again behind the listener's back.
        writer = None if self._connection is None else self._connection._writer  # noqa: SLF001
        if writer is None:
            return  # every channel is subscribed as soon as there is a connection
        try:
            writer.write(hiredis.pack_command((command, name)))  # type: ignore[arg-type]  # the stub knows one word
        except (RuntimeError, OSError):  # RuntimeError is uvloop's word for a transport that was closed
            logger.debug("pub/sub connection is gone; the listener opens another")

    async def _listen(self) -> None:
        backoff_s = RECONNECT_BACKOFF_S
        while True:
            connection = open_connection(self._redis)
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                await self._subscribe_all(connection)
                backoff_s = RECONNECT_BACKOFF_S
                await self._read(connection)
            except REDIS_AWAY as exc:
                logger.info("pub/sub: Redis is away (%s)", exc)
            except Exception:
                logger.exception("pub/sub: the listener failed; opening another connection")
            finally:
                self._connection = None
                self.is_connected = False
                with suppress(*REDIS_AWAY):
                    await connection.disconnect(nowait=True)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, RECONNECT_BACKOFF_MAX_S)

    async def _subscribe_all(self, connection: Connection) -> None:
        self._connection = connection
        self._canaries_missing = 0
        names = list(self._handlers)
        for at in range(0, len(names), SUBSCRIBE_AT_ONCE):
            await connection.send_command("SUBSCRIBE", *names[at : at + SUBSCRIBE_AT_ONCE])

    async def _read(self, connection: Connection) -> None:
        # Straight from redis-py's stream into hiredis: its own read_response costs more per
        # message than everything that we do with it (redis-py 5.3), and a read here often
        # brings many messages. `_reader` is the connection's asyncio.StreamReader.
        reader = connection._reader  # noqa: SLF001
        assert reader is not None, "the connection is open"
        parser = hiredis.Reader()
        missing = set(self._handlers)
        while data := await reader.read(READ_BYTES):
            parser.feed(data)
            while (reply := parser.gets()) is not False:
                kind, name, payload = reply
                if kind == b"message":
                    handler = self._handlers.get(name)
                    if handler is not None:
                        handler(payload)
                elif kind == b"subscribe":
                    self._confirm(name)
                    missing.discard(name)
                    if not missing and not self.is_connected:
                        self.is_connected = True
                        self._on_reconnected()

    def _confirm(self, name: bytes) -> None:
        for confirmed in self._confirmations.pop(name, []):
            if not confirmed.done():
                confirmed.set_result(None)

    def _hear_canary(self, _payload: bytes) -> None:
        self._canaries_missing = 0

    async def _send_canaries(self) -> None:
        while True:
            await asyncio.sleep(CANARY_S)
            connection = self._connection
            if connection is None:
                continue
            if self._canaries_missing > 1:
                logger.warning("pub/sub connection is deaf; opening another")
                with suppress(*REDIS_AWAY):
                    await connection.disconnect(nowait=True)
                continue
            missing = self._canaries_missing
            self._canaries_missing += 1
            try:
                await self._redis.publish(self._canary, b"1")
            except REDIS_AWAY:
                # Perhaps it was never sent, so its silence says nothing of this connection.
                self._canaries_missing = min(missing, self._canaries_missing)
