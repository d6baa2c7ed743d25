"""The pub/sub connection to one node: replies and news in every order, from scripted nodes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest

from stagebus.shared.config.redis_url import RedisUrl
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.partitions import SLOTS, key_slot
from stagebus.shared.storage import shard_listener, slot_map
from stagebus.shared.storage.cluster_redis import ClusterRedis, connect_cluster
from stagebus.shared.storage.sharded_pubsub import ShardedChannels
from tests.support.scripted_redis import ScriptedRedis, scripted_redis
from tests.support.waiting import until, until_equal

CHANNEL = "{a}live"
MESSAGE = b"*3\r\n$8\r\nsmessage\r\n$7\r\n{a}live\r\n$1\r\nx\r\n"
NONE = b""


def slots_at(node: ScriptedRedis) -> bytes:
    """The reply to CLUSTER SLOTS of a cluster with one primary."""
    return b"*1\r\n*3\r\n:0\r\n:%d\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$2\r\nid\r\n" % (SLOTS - 1, node.port)


def confirmation(words: list[str]) -> bytes:
    """The reply to SSUBSCRIBE or SUNSUBSCRIBE."""
    kind, name = words[0].lower().encode(), words[1].encode()
    return b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:1\r\n" % (len(kind), kind, len(name), name)


def unless_of_the_test(words: list[str]) -> bytes:
    """Confirms the canaries' channels only."""
    return NONE if words[1] == CHANNEL else confirmation(words)


class Nodes(NamedTuple):
    """Two nodes, of which the first has all slots, and the channels of a client."""

    first: ScriptedRedis
    second: ScriptedRedis
    redis: ClusterRedis
    channels: ShardedChannels
    heard: list[bytes]
    missed: list[None]

    def subscribe(self) -> asyncio.Task[None]:
        return asyncio.create_task(
            self.channels.subscribe(CHANNEL, self.heard.append, lambda: self.missed.append(None))
        )

    def moved_to(self, node: ScriptedRedis) -> bytes:
        return f"-MOVED {key_slot(CHANNEL)} 127.0.0.1:{node.port}\r\n".encode()

    def move_all(self) -> None:
        """Both nodes say from now on that the second one has all slots."""
        self.first.replies["CLUSTER"] = self.second.replies["CLUSTER"] = slots_at(self.second)


@pytest.fixture
async def nodes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nodes]:
    monkeypatch.setattr(slot_map, "REFRESH_PAUSE_S", 0)
    monkeypatch.setattr(shard_listener, "CANARY_S", 600)  # scripted nodes pass no messages on
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(scripted_redis(SSUBSCRIBE=confirmation, SUNSUBSCRIBE=confirmation))
            for _ in range(2)
        ]
        first.replies["CLUSTER"] = second.replies["CLUSTER"] = slots_at(first)
        redis = connect_cluster(RedisUrl.parse(f"redis+cluster://127.0.0.1:{first.port}"), Settings())
        stack.push_async_callback(redis.aclose)
        channels = ShardedChannels(redis)
        await channels.start()
        stack.push_async_callback(channels.stop)
        await until(lambda: channels.is_connected)
        yield Nodes(first, second, redis, channels, [], [])


async def test_confirmation_of_a_removed_subscription_does_not_confirm_a_later_one(nodes: Nodes) -> None:
    nodes.first.replies["SSUBSCRIBE"] = nodes.first.replies["SUNSUBSCRIBE"] = unless_of_the_test
    removed = nodes.subscribe()
    await until_equal(lambda: len(nodes.first.sent("SSUBSCRIBE")), 33)
    await nodes.channels.unsubscribe(CHANNEL)
    again = nodes.subscribe()
    await until_equal(lambda: len(nodes.first.sent("SSUBSCRIBE")), 34)
    nodes.first.push(confirmation(["SSUBSCRIBE", CHANNEL]) + MESSAGE)
    await until_equal(lambda: nodes.heard, [b"x"])

    assert isinstance((await asyncio.gather(removed, return_exceptions=True))[0], Exception)
    assert not again.done()
    nodes.first.push(confirmation(["SUNSUBSCRIBE", CHANNEL]) + confirmation(["SSUBSCRIBE", CHANNEL]))
    await again


async def test_unsubscription_that_the_node_refused_does_not_keep_the_channel_from_being_confirmed(
    nodes: Nodes,
) -> None:
    """The slot left the node and came back."""
    await nodes.subscribe()
    nodes.first.replies["SUNSUBSCRIBE"] = nodes.moved_to(nodes.first)
    await nodes.channels.unsubscribe(CHANNEL)
    await until_equal(lambda: len(nodes.first.sent("SUNSUBSCRIBE")), 1)

    await asyncio.wait_for(nodes.subscribe(), 5)


async def test_channel_whose_node_redirects_it_is_subscribed_at_the_other_one(nodes: Nodes) -> None:
    nodes.first.replies["SSUBSCRIBE"] = nodes.moved_to(nodes.second)
    await asyncio.wait_for(nodes.subscribe(), 5)

    assert f"SSUBSCRIBE {CHANNEL}" in nodes.second.commands
    assert nodes.missed == [], "it was not subscribed before"


async def test_error_that_names_no_slot_makes_another_connection_subscribe_all_channels(nodes: Nodes) -> None:
    nodes.first.replies["SSUBSCRIBE"] = lambda words: (
        b"-CLUSTERDOWN The cluster is down\r\n" if words[1] == CHANNEL else confirmation(words)
    )
    subscribing = nodes.subscribe()
    await until_equal(lambda: nodes.first.sent("SSUBSCRIBE").count(f"SSUBSCRIBE {CHANNEL}"), 2)
    nodes.first.replies["SSUBSCRIBE"] = confirmation

    await asyncio.wait_for(subscribing, 5)
    assert len(set(nodes.first.sent("SSUBSCRIBE"))) == 33


async def test_connection_to_a_node_that_has_no_slots_is_closed(nodes: Nodes) -> None:
    await nodes.subscribe()
    before = nodes.first.connections
    nodes.move_all()
    await nodes.redis.slots.refresh()
    await until_equal(lambda: len(nodes.missed), 1)

    await until_equal(lambda: nodes.first.connections, before - 1)
    assert nodes.channels.is_connected
    nodes.second.push(MESSAGE)
    await until_equal(lambda: nodes.heard, [b"x"])
