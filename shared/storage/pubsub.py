"""One pub/sub connection for many channels, which reconnects by itself.

Pub/sub gives no sign of a lost message, so a canary does: a message to a channel of our own, published over the
ordinary connections. If it does not arrive here, this connection is deaf: the network was cut without TCP noticing, or
the server was replaced. The connection is then opened again, and the owner reads what it may have missed.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Final
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage.raw_connection import RedisProtocol
from stagebus.shared.storage.redis_client import REDIS_AWAY
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down

logger = logging.getLogger(__name__)

Handler = Callable[[bytes], None]
OnMissed = Callable[[], None]

CANARY_S: Final = 0.6  # after two missing canaries the connection counts as deaf: within 2 s
# While no channel is subscribed no message can be missed, and only every fifth canary is sent: canaries are half of the
# commands of an idle worker.
IDLE_CANARY_EVERY: Final = 5
RECONNECT_BACKOFF_S: Final = 0.1
RECONNECT_BACKOFF_MAX_S: Final = 1.0
SUBSCRIBE_BATCH_CHANNELS: Final = 1000


class Unsubscribed(Exception):
    """The channel was unsubscribed before the server had confirmed the subscription."""


class Channels:
    """Subscribes handlers to channels. Handlers run in the event loop, one message after the other."""

    def __init__(self, redis: Redis, on_reconnected: Callable[[], None] | None = None) -> None:
        """`on_reconnected` is called when all channels are subscribed again and messages may have been missed."""
        self._redis = redis
        self._on_reconnected = on_reconnected
        self._handlers: dict[bytes, Handler] = {}
        self._on_missed: dict[bytes, OnMissed] = {}
        self._confirmations: dict[bytes, list[asyncio.Future[None]]] = {}
        self._protocol: RedisProtocol | None = None
        self._unsubscribing: Counter[bytes] = Counter()  # by channel, how many UNSUBSCRIBE the server has not answered
        self._unconfirmed: set[bytes] = set()  # channels that the server has not confirmed on this connection
        self._canary = f"sb:canary:{uuid4().hex}".encode()
        self._canaries_missing = 0
        self._handlers[self._canary] = self._on_canary
        self._tasks: list[asyncio.Task[None]] = []
        self.is_connected = False

    async def start(self) -> None:
        """Connects in the background; subscriptions wait for the connection."""
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._send_canaries())]

    async def stop(self) -> None:
        """Closes the connection."""
        await cancel_and_wait(*self._tasks)

    async def subscribe(self, channel: str, handler: Handler, on_missed: OnMissed | None = None) -> None:
        """Subscribes the channel's only handler and returns when the server has confirmed it; waits for Redis if it is away.

        Args:
            on_missed: called when the channel is subscribed again and messages of it may have been missed.

        Raises:
            Unsubscribed: `unsubscribe` was called for the channel before that.
        """
        name = channel.encode()
        self._handlers[name] = handler
        if on_missed is not None:
            self._on_missed[name] = on_missed
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._confirmations.setdefault(name, [])
        waiting.append(confirmed)
        if self._protocol is not None:  # otherwise the next connection subscribes every channel
            self._protocol.send("SUBSCRIBE", name)
        try:
            await confirmed
        finally:
            waiting.remove(confirmed)
            if not waiting and self._confirmations.get(name) is waiting:
                del self._confirmations[name]

    async def unsubscribe(self, channel: str) -> None:
        """Removes the channel's handler; it gets no more messages."""
        name = channel.encode()
        self._on_missed.pop(name, None)
        if self._handlers.pop(name, None) is None:
            return
        if self._protocol is not None:
            self._unsubscribing[name] += 1
            self._protocol.send("UNSUBSCRIBE", name)
        for confirmed in self._confirmations.pop(name, []):
            if not confirmed.done():
                confirmed.set_exception(Unsubscribed(channel))

    async def _listen(self) -> None:
        while True:
            protocol = await self._connect()
            try:
                self._subscribe_all(protocol)
                logger.info("pub/sub: the connection ended (%s)", await protocol.wait_closed())
            finally:
                self._protocol = None
                self.is_connected = False
                protocol.close(RedisConnectionError("the listener was stopped"))
                await protocol.wait_closed()
            await asyncio.sleep(RECONNECT_BACKOFF_S)

    async def _connect(self) -> RedisProtocol:
        while True:
            try:
                return await retry_while_redis_is_down(
                    partial(RedisProtocol.open, self._redis, self._on_reply),
                    "pub/sub",
                    backoff_s=RECONNECT_BACKOFF_S,
                    backoff_max_s=RECONNECT_BACKOFF_MAX_S,
                    is_retryable=lambda _: True,
                )
            except Exception:
                logger.exception("pub/sub: cannot connect; trying again")
                await asyncio.sleep(RECONNECT_BACKOFF_MAX_S)

    def _subscribe_all(self, protocol: RedisProtocol) -> None:
        self._protocol = protocol
        self._canaries_missing = 0
        self._unsubscribing.clear()
        names = list(self._handlers)
        self._unconfirmed = set(names)
        for at in range(0, len(names), SUBSCRIBE_BATCH_CHANNELS):
            protocol.send("SUBSCRIBE", *names[at : at + SUBSCRIBE_BATCH_CHANNELS])

    def _on_reply(self, reply: Any) -> None:
        kind, name, payload = reply
        if kind == b"message":
            handler = self._handlers.get(name)
            if handler is not None:
                self._call(handler, payload)
        elif kind == b"unsubscribe":
            self._unsubscribing[name] -= 1
            if self._unsubscribing[name] <= 0:
                del self._unsubscribing[name]
        elif kind == b"subscribe":
            # The confirmation of a subscription that was removed since does not confirm a later one.
            if not self._unsubscribing[name]:
                self._confirm(name)
            self._unconfirmed.discard(name)
            if not self._unconfirmed and not self.is_connected:
                self.is_connected = True
                self._report_reconnected()

    def _report_reconnected(self) -> None:
        if self._on_reconnected is not None:
            self._on_reconnected()
        for on_missed in list(self._on_missed.values()):
            self._call(on_missed)

    def _call(self, handler: Callable[..., None], *args: bytes) -> None:
        try:
            handler(*args)
        except Exception:
            # It concerns this channel alone. A reconnect would make the owners of all other channels read what they missed.
            logger.exception("pub/sub: a handler failed")

    def _confirm(self, name: bytes) -> None:
        for confirmed in self._confirmations.pop(name, []):
            if not confirmed.done():
                confirmed.set_result(None)

    def _on_canary(self, _payload: bytes) -> None:
        self._canaries_missing = 0

    async def _send_canaries(self) -> None:
        for number in count():
            await asyncio.sleep(CANARY_S)
            is_idle = len(self._handlers) == 1  # the canary's own
            if self._protocol is None or (is_idle and number % IDLE_CANARY_EVERY):
                continue
            if self._canaries_missing > 1:
                logger.warning("pub/sub: no canary arrives; opening another connection")
                self._protocol.close(RedisConnectionError("deaf"))
                continue
            missing = self._canaries_missing
            self._canaries_missing += 1
            try:
                await self._redis.publish(self._canary, b"1")
            except REDIS_AWAY:
                # Perhaps it was never sent, so its absence says nothing about this connection.
                self._canaries_missing = min(missing, self._canaries_missing)
