"""Sharded pub/sub: channels of a Redis Cluster, each at the node that has its slot.

    channel ──▶ slot ──▶ node ──▶ one connection to each node (`shard_listener`)

A channel moves with its slot. The old node says so, or is gone, or the map of the slots changes; the channel is then
subscribed at the new node. Messages between the two may be missed, so the owner is told when the channel is back.
Spec: https://redis.io/docs/latest/develop/pubsub/#sharded-pubsub
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import uuid4

from stagebus.shared.config.redis_url import Address
from stagebus.shared.domain.partitions import TAGS, key_slot
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage.cluster_redis import ClusterRedis
from stagebus.shared.storage.pubsub import Handler, OnMissed, Unsubscribed
from stagebus.shared.storage.redis_client import REDIS_AWAY
from stagebus.shared.storage.shard_listener import CANARY_PREFIX, ShardListener

logger = logging.getLogger(__name__)

# Between two attempts to place channels whose slots have no known node.
PLACE_AGAIN_S: Final = 0.1


@dataclass(eq=False, slots=True)
class _Channel:
    name: bytes
    slot: int
    handler: Handler
    on_missed: OnMissed | None = None
    listener: ShardListener | None = None  # None: the slot's node is unknown
    is_confirmed: bool = False
    may_have_missed: bool = False  # it was confirmed before
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


class ShardedChannels:
    """As `Channels`, on a cluster. Handlers run in the event loop, one message after the other."""

    def __init__(self, redis: ClusterRedis) -> None:
        self._redis = redis
        self._channels: dict[bytes, _Channel] = {}
        self._listeners: dict[Address, ShardListener] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._homeless: set[_Channel] = set()
        self._has_homeless = asyncio.Event()
        self._placing: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """True while every channel is subscribed."""
        return all(channel.is_confirmed for channel in self._channels.values())

    async def start(self) -> None:
        """Connects in the background; subscriptions wait for the connections."""
        self._redis.slots.add_listener(self._place_all)
        self._placing = asyncio.create_task(self._place_homeless())
        for tag in TAGS:
            name = b"%b{%b}:%b" % (CANARY_PREFIX, tag.encode(), uuid4().hex.encode())
            self._add(_Channel(name, key_slot(name), partial(self._on_canary, name)))

    async def stop(self) -> None:
        """Closes the connections."""
        if self._placing is not None:
            self._redis.slots.remove_listener(self._place_all)
            await cancel_and_wait(self._placing)
        for address in list(self._listeners):
            self._close(address)
        await asyncio.gather(*self._closing)

    async def subscribe(self, channel: str, handler: Handler, on_missed: OnMissed | None = None) -> None:
        """Subscribes the channel's only handler and returns when its node has confirmed it; waits for the node if it is away.

        Args:
            on_missed: called when the channel is subscribed again and messages of it may have been missed.

        Raises:
            Unsubscribed: `unsubscribe` was called for the channel before that.
        """
        name = channel.encode()
        found = self._channels.get(name)
        if found is None:
            found = _Channel(name, key_slot(name), handler)
            self._add(found)
        found.handler, found.on_missed = handler, on_missed
        if found.is_confirmed:
            return
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        found.waiting.append(confirmed)
        try:
            await confirmed
        finally:
            found.waiting.remove(confirmed)

    async def unsubscribe(self, channel: str) -> None:
        """Removes the channel's handler; it gets no more messages."""
        found = self._channels.pop(channel.encode(), None)
        if found is None:
            return
        self._homeless.discard(found)
        if found.listener is not None:
            found.listener.leave(found.name)
        for confirmed in found.waiting:
            if not confirmed.done():
                confirmed.set_exception(Unsubscribed(channel))

    # --- the node of a channel -----------------------------------------------

    def _add(self, channel: _Channel) -> None:
        self._channels[channel.name] = channel
        self._place(channel)

    def _place(self, channel: _Channel) -> None:
        """Subscribes a channel at its slot's node, unless it is there."""
        node = self._redis.slots.node_of(channel.slot)
        if channel.listener is not None:
            if channel.listener.node == node:
                return
            channel.listener.leave(channel.name)
            channel.listener = None
        self._lose(channel)
        if node is None:
            self._homeless.add(channel)
            self._has_homeless.set()
            return
        self._homeless.discard(channel)
        channel.listener = self._listener_at(node)
        channel.listener.join(channel.name)

    def _lose(self, channel: _Channel) -> None:
        channel.may_have_missed |= channel.is_confirmed
        channel.is_confirmed = False

    def _place_all(self) -> None:
        """Follows a change of the map; closes the connections to nodes that have no slots."""
        for channel in list(self._channels.values()):
            self._place(channel)
        for address in set(self._listeners).difference(self._redis.slots.primaries()):
            self._close(address)

    async def _place_homeless(self) -> None:
        while True:
            await self._has_homeless.wait()
            self._has_homeless.clear()
            try:
                await self._redis.slots.refresh()
            except REDIS_AWAY as exc:
                logger.info("pub/sub: the cluster is away (%s)", exc)
            for channel in list(self._homeless):
                self._place(channel)
            await asyncio.sleep(PLACE_AGAIN_S if self._homeless else 0)

    def _listener_at(self, node: Address) -> ShardListener:
        listener = self._listeners.get(node)
        if listener is None:
            listener = self._listeners[node] = ShardListener(self._redis, node, self)
        return listener

    def _close(self, address: Address) -> None:
        closing = asyncio.create_task(self._listeners.pop(address).close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _on_canary(self, name: bytes, _payload: bytes) -> None:
        listener = self._channels[name].listener
        if listener is not None:
            listener.on_canary()

    # --- called by the listeners ---------------------------------------------

    def on_message(self, name: bytes, payload: bytes) -> None:
        """Hands a message to the channel's handler."""
        channel = self._channels.get(name)
        if channel is not None:
            _call(channel.handler, payload)

    def on_confirmed(self, name: bytes, listener: ShardListener) -> None:
        """Notes that a node has confirmed a channel."""
        channel = self._channels.get(name)
        if channel is None or channel.listener is not listener:
            return
        channel.is_confirmed = True
        for confirmed in channel.waiting:
            if not confirmed.done():
                confirmed.set_result(None)
        if channel.may_have_missed:
            channel.may_have_missed = False
            if channel.on_missed is not None:
                _call(channel.on_missed)

    def on_disconnected(self, name: bytes, listener: ShardListener) -> None:
        """Notes that the connection with a channel is gone. The listener opens another one."""
        channel = self._channels.get(name)
        if channel is not None and channel.listener is listener:
            self._lose(channel)

    def on_moved_away(self, name: bytes, listener: ShardListener) -> None:
        """Looks for another node for a channel whose slot has left this one."""
        channel = self._channels.get(name)
        if channel is None or channel.listener is not listener:
            return
        channel.listener = None
        self._lose(channel)
        if self._redis.slots.node_of(channel.slot) == listener.node:  # the map is not newer than the news
            self._homeless.add(channel)
            self._has_homeless.set()
        else:
            self._place(channel)


def _call(handler: Callable[..., None], *args: bytes) -> None:
    try:
        handler(*args)
    except Exception:
        # It concerns this channel alone. A reconnect would make the owners of all other channels read what they missed.
        logger.exception("pub/sub: a handler failed")
