"""One pub/sub connection for many channels, which heals itself.

A lost message has no successor that would betray it, so a canary does: a message to a
channel of our own, published over the ordinary connection. Where it does not come back
on this one, the connection listens to nobody: a cut that TCP did not tell of, or a
server that was replaced. It is opened anew, and the owner told to read what it missed.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any, Final
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage.raw_connection import RedisProtocol
from stagebus.shared.storage.redis_client import REDIS_AWAY

logger = logging.getLogger(__name__)

Handler = Callable[[bytes], None]

CANARY_S: Final = 0.6  # two of them may be missing before a deaf connection is given up: within 2 s
# While no channel is listened to nobody misses anything, and only every so many-th is sent: half of what an idle worker says.
IDLE_CANARY_EVERY: Final = 5
RECONNECT_BACKOFF_S: Final = 0.1
RECONNECT_BACKOFF_MAX_S: Final = 1.0
SUBSCRIBE_AT_ONCE: Final = 1000


class Channels:
    """Subscribes handlers to channels. Handlers run in the event loop, one message after the other."""

    def __init__(self, redis: Redis, on_reconnected: Callable[[], None]) -> None:
        """`on_reconnected` is called when messages may have been missed and all channels are back."""
        self._redis = redis
        self._on_reconnected = on_reconnected
        self._handlers: dict[bytes, Handler] = {}
        self._confirmations: dict[bytes, list[asyncio.Future[None]]] = {}
        self._wire: RedisProtocol | None = None
        self._leaving: Counter[bytes] = Counter()  # by channel, how often it was left without the server's word yet
        self._missing: set[bytes] = set()  # channels that this connection has not confirmed yet
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
        if self._wire is not None:  # else every channel is subscribed as soon as there is one
            self._wire.send("SUBSCRIBE", name)
        try:
            await confirmed
        finally:
            waiting.remove(confirmed)
            if not waiting and self._confirmations.get(name) is waiting:
                del self._confirmations[name]

    async def unsubscribe(self, channel: str) -> None:
        """No more messages of the channel."""
        name = channel.encode()
        if self._handlers.pop(name, None) is not None and self._wire is not None:
            self._leaving[name] += 1
            self._wire.send("UNSUBSCRIBE", name)

    async def _listen(self) -> None:
        backoff_s = RECONNECT_BACKOFF_S
        while True:
            try:
                wire = await RedisProtocol.open(self._redis, self._take)
            except REDIS_AWAY as exc:
                logger.info("pub/sub: Redis is away (%s)", exc)
            except Exception:
                logger.exception("pub/sub: no connection; trying again")
            else:
                try:
                    self._subscribe_all(wire)
                    backoff_s = RECONNECT_BACKOFF_S
                    logger.info("pub/sub: the connection ended (%s)", await wire.wait_gone())
                finally:
                    self._wire = None
                    self.is_connected = False
                    wire.close(RedisConnectionError("the listener was stopped"))
                    await wire.wait_gone()
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, RECONNECT_BACKOFF_MAX_S)

    def _subscribe_all(self, wire: RedisProtocol) -> None:
        self._wire = wire
        self._canaries_missing = 0
        self._leaving.clear()
        names = list(self._handlers)
        self._missing = set(names)
        for at in range(0, len(names), SUBSCRIBE_AT_ONCE):
            wire.send("SUBSCRIBE", *names[at : at + SUBSCRIBE_AT_ONCE])

    def _take(self, reply: Any) -> None:
        kind, name, payload = reply
        if kind == b"message":
            handler = self._handlers.get(name)
            if handler is not None:
                self._hand_over(handler, payload)
        elif kind == b"unsubscribe":
            self._leaving[name] -= 1
            if self._leaving[name] <= 0:
                del self._leaving[name]
        elif kind == b"subscribe":
            # One that was left before it was confirmed says nothing of a later one.
            if not self._leaving[name]:
                self._confirm(name)
            self._missing.discard(name)
            if not self._missing and not self.is_connected:
                self.is_connected = True
                self._on_reconnected()

    def _hand_over(self, handler: Handler, payload: bytes) -> None:
        try:
            handler(payload)
        except Exception:
            # Of this channel alone: a reconnect would make the owners of all others read what they missed.
            logger.exception("pub/sub: a handler failed")

    def _confirm(self, name: bytes) -> None:
        for confirmed in self._confirmations.pop(name, []):
            if not confirmed.done():
                confirmed.set_result(None)

    def _hear_canary(self, _payload: bytes) -> None:
        self._canaries_missing = 0

    async def _send_canaries(self) -> None:
        for turn in count():
            await asyncio.sleep(CANARY_S)
            is_idle = len(self._handlers) == 1  # the canary's own
            if self._wire is None or (is_idle and turn % IDLE_CANARY_EVERY):
                continue
            if self._canaries_missing > 1:
                logger.warning("pub/sub connection is deaf; opening another")
                self._wire.close(RedisConnectionError("deaf"))
                continue
            missing = self._canaries_missing
            self._canaries_missing += 1
            try:
                await self._redis.publish(self._canary, b"1")
            except REDIS_AWAY:
                # Perhaps it was never sent, so its silence says nothing of this connection.
                self._canaries_missing = min(missing, self._canaries_missing)
