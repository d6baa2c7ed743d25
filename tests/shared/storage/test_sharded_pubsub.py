"""Sharded pub/sub on a real cluster: confirmed subscriptions, and every way in which a channel changes its node."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from stagebus.shared.config.redis_url import Address
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.partitions import TAGS, key_slot
from stagebus.shared.storage import shard_listener
from stagebus.shared.storage.cluster_redis import ClusterRedis, connect_cluster
from stagebus.shared.storage.pubsub import Unsubscribed
from stagebus.shared.storage.sharded_pubsub import ShardedChannels
from tests.support.cluster import Cluster
from tests.support.outages import retried
from tests.support.proxy import Proxy
from tests.support.waiting import until, until_equal

NAMES = [f"{{{tag}}}live" for tag in TAGS]
FIRST = NAMES[0]  # of the first node


class ShardedListener:
    """Channels, what they heard and of which they may have missed something."""

    def __init__(self, redis: ClusterRedis) -> None:
        self.redis = redis
        self.heard: list[tuple[str, bytes]] = []
        self.missed: list[str] = []
        self.channels = ShardedChannels(redis)

    async def subscribe(self, *names: str) -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(*(self._subscribe(name) for name in names))

    async def _subscribe(self, name: str) -> None:
        await self.channels.subscribe(
            name, lambda data: self.heard.append((name, data)), lambda: self.missed.append(name)
        )

    async def hears(self, name: str, payload: str) -> bool:
        """Publishes a message and returns whether a subscriber got it."""
        return bool(await retried(lambda: self.redis.execute_command("SPUBLISH", name, payload)))


@pytest.fixture
async def listener(cluster: ClusterRedis) -> AsyncIterator[ShardedListener]:
    listener = ShardedListener(cluster)
    await listener.channels.start()
    yield listener
    await asyncio.wait_for(listener.channels.stop(), 5)


async def test_channel_is_subscribed_at_its_node_when_subscribe_returns(
    listener: ShardedListener, cluster_nodes: Cluster
) -> None:
    await listener.subscribe(*NAMES)
    for name in NAMES:
        assert await listener.redis.execute_command("SPUBLISH", name, name) == 1, "its node knows of it"
    assert listener.channels.is_connected

    await until_equal(lambda: sorted(listener.heard), sorted((name, name.encode()) for name in NAMES))
    shares = [len(cluster_nodes.at(number, "PUBSUB", "SHARDCHANNELS", "{*}live")) for number in range(3)]
    assert sorted(shares) == [10, 11, 11]
    assert listener.missed == []


async def test_unsubscribed_channel_gets_no_messages_and_can_be_subscribed_again(listener: ShardedListener) -> None:
    await listener.subscribe(*NAMES[:3])
    await listener.channels.unsubscribe(NAMES[0])
    await listener.channels.unsubscribe("never subscribed")
    assert await until(lambda: listener.hears(NAMES[1], "b"))
    await until_equal(lambda: listener.hears(NAMES[0], "a"), expected=False)
    assert (NAMES[0], b"a") not in listener.heard


async def test_channel_that_is_unsubscribed_while_it_is_subscribed_can_be_subscribed_again(
    listener: ShardedListener,
) -> None:
    """The confirmation of the first subscription does not confirm the second one."""
    await listener.subscribe(NAMES[1])
    heard: list[bytes] = []
    first, _, second = await asyncio.gather(
        listener.channels.subscribe(NAMES[0], heard.append),
        listener.channels.unsubscribe(NAMES[0]),
        listener.channels.subscribe(NAMES[0], heard.append),
        return_exceptions=True,
    )

    assert isinstance(first, Unsubscribed)
    assert second is None
    assert await listener.redis.execute_command("SPUBLISH", NAMES[0], "c") == 1
    await until_equal(lambda: heard, [b"c"])
    assert listener.missed == []


async def test_handler_that_fails_disturbs_no_other(listener: ShardedListener) -> None:
    def fail(_: bytes) -> None:
        raise ValueError

    await listener.channels.subscribe(FIRST, fail)
    await listener.subscribe(NAMES[1])
    for name in (FIRST, NAMES[1]):
        await listener.redis.execute_command("SPUBLISH", name, "x")

    await until_equal(lambda: listener.heard, [(NAMES[1], b"x")])
    assert listener.missed == []


async def test_channel_follows_its_slot_and_its_owner_alone_is_told(
    listener: ShardedListener, cluster_nodes: Cluster
) -> None:
    await listener.subscribe(*NAMES)
    for source, target in ((0, 2), (2, 0)):
        listener.missed.clear()
        name = cluster_nodes.at(target, "CLUSTER", "MYID")
        for number in (target, source):
            cluster_nodes.at(number, "CLUSTER", "SETSLOT", key_slot(FIRST), "NODE", name)
        await until(lambda: FIRST in listener.missed)
        assert await listener.redis.execute_command("SPUBLISH", FIRST, str(target)) == 1
        await until(lambda target=target: (FIRST, str(target).encode()) in listener.heard)

        assert listener.missed == [FIRST]
        assert cluster_nodes.at(target, "PUBSUB", "SHARDCHANNELS", FIRST) == [FIRST.encode()]
        assert cluster_nodes.at(source, "PUBSUB", "SHARDCHANNELS", FIRST) == []


async def test_map_that_is_outdated_is_put_right_by_the_node_that_is_asked(
    listener: ShardedListener, cluster_nodes: Cluster
) -> None:
    await listener.redis.slots.refresh()
    listener.redis.slots.on_moved(key_slot(FIRST), cluster_nodes.nodes[1])
    await listener.subscribe(FIRST)

    assert await listener.redis.execute_command("SPUBLISH", FIRST, "x") == 1


async def test_connection_that_is_cut_is_opened_again_and_its_channels_missed(
    listener: ShardedListener, cluster_nodes: Cluster
) -> None:
    await listener.subscribe(*NAMES)
    cluster_nodes.at(0, "CLIENT KILL", "TYPE", "pubsub")
    await until(lambda: FIRST in listener.missed and listener.channels.is_connected)

    mine = set(cluster_nodes.at(0, "PUBSUB", "SHARDCHANNELS", "{*}live"))
    assert {name.encode() for name in listener.missed} == mine
    assert await listener.redis.execute_command("SPUBLISH", FIRST, "x") == 1


@pytest.fixture
async def far(cluster_nodes: Cluster, settings: Settings) -> AsyncIterator[tuple[ShardedListener, Proxy]]:
    """A listener whose pub/sub connection to the first node goes through a proxy."""
    node = cluster_nodes.nodes[0]
    async with Proxy(node.port) as proxy:
        listener = ShardedListener(connect_cluster(cluster_nodes.url, settings))
        direct: Callable[[Address], Any] = listener.redis.client_of
        through = connect_cluster(cluster_nodes.url, settings).client_of(Address("127.0.0.1", proxy.port))
        await listener.redis.slots.refresh()
        await listener.redis.execute_command("PING")
        await asyncio.gather(*(listener.redis.get(name) for name in NAMES))  # all other connections are direct
        listener.redis.client_of = lambda address: through if address == node else direct(address)  # type: ignore[method-assign]
        yield listener, proxy
        await asyncio.wait_for(listener.channels.stop(), 5)
        await listener.redis.aclose()


async def test_connection_that_is_deaf_is_replaced(
    far: tuple[ShardedListener, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No message arrives, but TCP does not notice. The other nodes' connections stay."""
    monkeypatch.setattr(shard_listener, "CANARY_S", 0.05)
    listener, proxy = far
    await listener.channels.start()
    await listener.subscribe(*NAMES)
    passed = proxy.passed
    proxy.hang()
    await until(lambda: proxy.passed > passed)
    proxy.flow()
    await until(lambda: FIRST in listener.missed)
    await until(lambda: listener.channels.is_connected)

    assert NAMES[-1] not in listener.missed
    assert await listener.redis.execute_command("SPUBLISH", FIRST, "x") == 1


@pytest.mark.faults
async def test_channels_follow_the_replica_that_takes_over(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Cluster(tmp_path_factory.mktemp("pubsub"), has_replica=True, node_timeout_ms=700) as nodes:
        listener = ShardedListener(connect_cluster(nodes.url, Settings()))
        await listener.channels.start()
        await listener.subscribe(*NAMES)
        nodes.servers[0].terminate()
        await until(lambda: FIRST in listener.missed)

        assert await listener.redis.execute_command("SPUBLISH", FIRST, "x") == 1
        assert cluster_address(listener) == nodes.nodes[3]
        assert NAMES[-1] not in listener.missed
        await listener.channels.stop()
        await listener.redis.aclose()


def cluster_address(listener: ShardedListener) -> Address | None:
    return listener.redis.slots.node_of(key_slot(FIRST))
