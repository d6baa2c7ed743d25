"""One pub/sub connection to one node of a cluster, which reconnects by itself.

    SSUBSCRIBE     ──▶ ssubscribe: confirmed; MOVED: the slot is elsewhere
    SUNSUBSCRIBE   ──▶ sunsubscribe
                       sunsubscribe that was not asked for: the slot has left this node

As on one server, a canary shows that the connection is not deaf: a message to a channel at this node, sent over the
ordinary connections.
"""

import asyncio
import logging
import random
from collections import Counter
from itertools import count
from typing import Any, Final, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.config.redis_url import Address
from stagebus.shared.domain.partitions import key_slot
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage.cluster_redis import ClusterRedis
from stagebus.shared.storage.cluster_route import Redirection
from stagebus.shared.storage.pubsub import (
    CANARY_S,
    IDLE_CANARY_EVERY,
    RECONNECT_BACKOFF_MAX_S,
    RECONNECT_BACKOFF_S,
)
from stagebus.shared.storage.raw_connection import RedisProtocol
from stagebus.shared.storage.redis_client import REDIS_AWAY

logger = logging.getLogger(__name__)

CANARY_PREFIX: Final = b"sb:canary:"


class ShardOwner(Protocol):
    """Hears what happens to the channels of a listener."""

    def on_message(self, name: bytes, payload: bytes) -> None:
        """Called with each message."""

    def on_confirmed(self, name: bytes, listener: "ShardListener") -> None:
        """Called when the node has confirmed a channel."""

    def on_disconnected(self, name: bytes, listener: "ShardListener") -> None:
        """Called with each channel when the connection was lost; the listener subscribes it again."""

    def on_moved_away(self, name: bytes, listener: "ShardListener") -> None:
        """Called with each channel whose slot has left the node; the listener has forgotten it."""


class ShardListener:
    """The channels of one node."""

    def __init__(self, redis: ClusterRedis, node: Address, owner: ShardOwner) -> None:
        """Connects in the background."""
        self.node = node
        self._redis = redis
        self._owner = owner
        self._names: set[bytes] = set()
        self._canaries: set[bytes] = set()  # those among the names
        self._unsubscribing: Counter[bytes] = Counter()  # by channel, how many SUNSUBSCRIBE the node has not answered
        self._protocol: RedisProtocol | None = None
        self._canaries_missing = 0
        self._backoff_s = RECONNECT_BACKOFF_S
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._send_canaries())]

    def join(self, name: bytes) -> None:
        """Subscribes a channel, now or when the node is connected."""
        self._names.add(name)
        if name.startswith(CANARY_PREFIX):
            self._canaries.add(name)
        if self._protocol is not None:
            self._protocol.send("SSUBSCRIBE", name)

    def leave(self, name: bytes) -> None:
        """Unsubscribes a channel."""
        self._discard(name)
        if self._protocol is not None:
            self._unsubscribing[name] += 1
            self._protocol.send("SUNSUBSCRIBE", name)

    def on_canary(self) -> None:
        """Notes that a canary of this node has arrived."""
        self._canaries_missing = 0

    async def close(self) -> None:
        """Closes the connection."""
        await cancel_and_wait(*self._tasks)

    def _discard(self, name: bytes) -> None:
        self._names.discard(name)
        self._canaries.discard(name)

    async def _listen(self) -> None:
        while True:
            try:
                protocol = await RedisProtocol.open(self._redis.client_of(self.node), self._on_reply)
            except REDIS_AWAY as exc:
                logger.info("pub/sub: node %s is away (%s)", self.node, exc)
            except Exception:
                logger.exception("pub/sub: cannot connect to node %s; trying again", self.node)
            else:
                await self._use(protocol)
            self._redis.slots.refresh_soon()  # perhaps another node has its slots by now
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(2 * self._backoff_s, RECONNECT_BACKOFF_MAX_S)

    async def _use(self, protocol: RedisProtocol) -> None:
        """Listens until the connection is lost."""
        self._protocol = protocol
        self._canaries_missing = 0
        self._unsubscribing.clear()
        try:
            for name in self._names:  # SSUBSCRIBE takes channels of one slot
                protocol.send("SSUBSCRIBE", name)
            logger.info("pub/sub: the connection to node %s ended (%s)", self.node, await protocol.wait_closed())
        finally:
            self._protocol = None
            for name in list(self._names):
                self._owner.on_disconnected(name, self)
            protocol.close(RedisConnectionError("the listener was stopped"))
            await protocol.wait_closed()

    def _on_reply(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._on_error(reply)
            return
        kind, name, payload = reply
        if kind == b"smessage":
            if name in self._names:
                self._owner.on_message(name, payload)
        elif kind == b"ssubscribe":
            self._backoff_s = RECONNECT_BACKOFF_S
            # The confirmation of a subscription that was removed since does not confirm a later one.
            if name in self._names and name not in self._unsubscribing:
                self._owner.on_confirmed(name, self)
        elif kind == b"sunsubscribe":
            if name not in self._unsubscribing:
                self._forget([name])
            elif self._unsubscribing[name] > 1:
                self._unsubscribing[name] -= 1
            else:
                del self._unsubscribing[name]

    def _on_error(self, error: Exception) -> None:
        redirection = Redirection.parse(error, self.node)
        if redirection is None:
            # It does not say which channel it concerns. The next connection subscribes all of them.
            raise error
        if redirection.node != self.node:
            self._redis.slots.on_moved(redirection.slot, redirection.node)
        for name in [name for name in self._unsubscribing if key_slot(name) == redirection.slot]:
            del self._unsubscribing[name]
        self._forget([name for name in self._names if key_slot(name) == redirection.slot])

    def _forget(self, names: list[bytes]) -> None:
        for name in names:
            if name in self._names:
                self._discard(name)
                self._owner.on_moved_away(name, self)

    async def _send_canaries(self) -> None:
        for number in count():
            await asyncio.sleep(CANARY_S)
            is_idle = len(self._canaries) == len(self._names)
            if self._protocol is None or not self._canaries or (is_idle and number % IDLE_CANARY_EVERY):
                continue
            if self._canaries_missing > 1:
                logger.warning("pub/sub: no canary arrives from node %s; opening another connection", self.node)
                self._protocol.close(RedisConnectionError("deaf"))
                continue
            missing = self._canaries_missing
            self._canaries_missing += 1
            try:
                await self._redis.execute_command("SPUBLISH", random.choice(list(self._canaries)), b"1")  # noqa: S311 - any will do
            except REDIS_AWAY:
                # Perhaps it was never sent, so its absence says nothing about this connection.
                self._canaries_missing = min(missing, self._canaries_missing)
