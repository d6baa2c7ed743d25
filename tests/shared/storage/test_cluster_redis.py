"""redis-py's commands on a real cluster of three nodes."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from redis.exceptions import DataError, ResponseError

from stagebus.shared.config.redis_url import RedisUrl
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.partitions import TAGS, key_slot
from stagebus.shared.errors import StorageUnfit
from stagebus.shared.storage import cluster_redis, keys
from stagebus.shared.storage.cluster_redis import ClusterRedis, check_cluster, connect_cluster
from stagebus.shared.storage.redis_client import REDIS_AWAY, read_time_ms
from tests.support.cluster import Cluster
from tests.support.outages import retried
from tests.support.waiting import until

KEYS = [f"{{{tag}}}k" for tag in TAGS]
CLOSED_PORT = 1  # a port that nobody listens on


async def test_commands_go_to_the_nodes_of_their_keys(cluster: ClusterRedis, cluster_nodes: Cluster) -> None:
    await asyncio.gather(*(cluster.set(key, key) for key in KEYS))

    assert [await cluster.get(key) for key in KEYS] == [key.encode() for key in KEYS]
    found = Counter(int(cluster_nodes.at(number, "DBSIZE")) for number in range(3))
    assert found == Counter({11: 2, 10: 1}), "each node has its share of the partitions"


async def test_replies_are_those_of_redis_py(cluster: ClusterRedis) -> None:
    assert await cluster.hset("h", mapping={"a": 1, "b": 2.5}) == 2
    assert await cluster.hgetall("h") == {b"a": b"1", b"b": b"2.5"}
    assert await cluster.zadd("z", {"m": 3, "n": 4}) == 2
    assert await cluster.zrange("z", 0, -1, withscores=True) == [(b"m", 3.0), (b"n", 4.0)]
    assert await cluster.set("s", "x", nx=True, px=60_000) is True
    assert await cluster.set("s", "x", nx=True) is None
    assert await cluster.memory_usage("s") > 0
    assert (await cluster.info("cluster"))["cluster_enabled"] == 1
    assert await read_time_ms(cluster) > 1_700_000_000_000
    await cluster.xadd("x", {"f": "v"}, id="1-1")
    assert await cluster.xrange("x") == [[b"1-1", [b"f", b"v"]]], "raw, as from one server"
    with pytest.raises(DataError, match="invalid arguments of SET"):
        await cluster.execute_command("SET", "s", None)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await cluster.get("h")


async def test_pipeline_spans_nodes_and_keeps_the_order_of_replies(cluster: ClusterRedis) -> None:
    async with cluster.pipeline(transaction=False) as pipe:
        for key in KEYS:
            pipe.set(key, key)
        pipe.time()
        for key in KEYS:
            pipe.get(key)
        replies = await pipe.execute()

    assert replies[:32] == [True] * 32
    assert replies[32][0] > 1_700_000_000, "parsed"
    assert replies[33:] == [key.encode() for key in KEYS]
    async with cluster.pipeline(transaction=False) as pipe:
        pipe.get(KEYS[0]).lpush(KEYS[1], 1).get(KEYS[2])
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await pipe.execute()
        pipe.get(KEYS[0]).lpush(KEYS[1], 1).get(KEYS[2])
        first, failed, last = await pipe.execute(raise_on_error=False)
        assert (first, last) == (KEYS[0].encode(), KEYS[2].encode())
        assert isinstance(failed, ResponseError)
        assert await pipe.execute() == []


async def test_transaction_has_one_slot(cluster: ClusterRedis) -> None:
    async with cluster.pipeline(transaction=True) as pipe:
        pipe.hset("{t}h", "a", 1).time().hgetall("{t}h")
        count, (seconds, _), found = await pipe.execute()
        assert (count, found) == (1, {b"a": b"1"})
        assert seconds > 1_700_000_000
        pipe.set("{t}a", 1).set("{u}a", 1)
        with pytest.raises(ValueError, match="more than one slot"):
            await pipe.execute()
        with pytest.raises(NotImplementedError):
            await pipe.watch("{t}a")
    assert await cluster.get("{t}a") is None


async def test_all_keys_of_a_run_are_in_the_slot_of_its_partition(cluster: ClusterRedis) -> None:
    """The run's names are those that it has on one server."""
    for tag in TAGS:
        run_id = ids.new_run_id_in(tag)
        names = [keys.run(run_id), keys.stages(run_id), keys.stage_stream(run_id, "run"), f"sb:queue:{{{tag}}}"]
        assert {await cluster.cluster_connection.execute_command("CLUSTER", "KEYSLOT", name) for name in names} == {
            key_slot(tag)
        }
        async with cluster.pipeline(transaction=True) as pipe:
            for name in names:
                pipe.set(name, "x")
            assert await pipe.execute() == [True] * 4


async def test_slot_that_moves_under_traffic_loses_no_command(cluster: ClusterRedis, cluster_nodes: Cluster) -> None:
    """Key by key, as `redis-cli --cluster reshard` moves it: commands are redirected before, during and after."""
    key, slot = KEYS[0], key_slot(KEYS[0])
    ids_by_number = [bytes(cluster_nodes.at(number, "CLUSTER", "MYID")).decode() for number in range(3)]
    pushed: list[int] = []

    async def push() -> None:
        for number in range(1_000_000):
            await cluster.rpush(key, number)
            await cluster.set(f"{key}{number % 7}", number)  # new keys meet the ASK of the old node
            pushed.append(number)

    pushing = asyncio.create_task(push())
    try:
        for source, target in ((0, 1), (1, 0)):
            await until(lambda count=len(pushed) + 20: len(pushed) > count)  # noqa: B008 - the number at this moment
            cluster_nodes.at(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids_by_number[source])
            cluster_nodes.at(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids_by_number[target])
            await until(lambda count=len(pushed) + 20: len(pushed) > count)  # noqa: B008
            while names := cluster_nodes.at(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
                port = cluster_nodes.nodes[target].port
                cluster_nodes.at(source, "MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *names)
                await asyncio.sleep(0)
            for number in (target, source):
                cluster_nodes.at(number, "CLUSTER", "SETSLOT", slot, "NODE", ids_by_number[target])
        await until(lambda count=len(pushed) + 20: len(pushed) > count)  # noqa: B008
    finally:
        pushing.cancel()
    stored = [int(number) for number in await cluster.lrange(key, 0, -1)]

    assert stored[: len(pushed)] == pushed
    assert cluster.slots.node_of(slot) == cluster_nodes.nodes[0]


async def test_fit_cluster_passes(cluster: ClusterRedis) -> None:
    await check_cluster(cluster)


async def test_every_primary_of_a_cluster_must_be_fit(
    cluster: ClusterRedis, cluster_nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = cluster_nodes.nodes[2]
    cluster_nodes.at(2, "CONFIG SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StorageUnfit, match=f"node {third}: .*noeviction"):
            await check_cluster(cluster)
    finally:
        cluster_nodes.at(2, "CONFIG SET", "maxmemory-policy", "noeviction")
    monkeypatch.setattr(cluster_redis, "CLUSTER_VERSION_MIN", (99, 0))
    with pytest.raises(StorageUnfit, match=r"is too old: Redis 99\.0"):
        await check_cluster(cluster)


async def test_url_that_leads_to_no_cluster_is_reported(settings: Settings, redis_url: str) -> None:
    lone = redis_url.removeprefix("redis://").removesuffix("/0")
    for hosts, reason in ((lone, "cluster support disabled"), (f"127.0.0.1:{CLOSED_PORT}", "no node")):
        redis = connect_cluster(RedisUrl.parse(f"redis+cluster://{hosts}"), settings)
        with pytest.raises(StorageUnfit, match=f"(?s){reason}.*STAGEBUS_REDIS_URL"):
            await check_cluster(redis)
        await redis.aclose()


@pytest.mark.faults
async def test_commands_follow_the_replica_that_takes_over(tmp_path: Path, settings: Settings) -> None:
    """A failover that was ordered loses no confirmed write. The death of the URL's only node stops its slots for a while."""
    with Cluster(tmp_path, has_replica=True, node_timeout_ms=700) as nodes:
        redis = connect_cluster(RedisUrl.parse(f"redis+cluster://{nodes.nodes[3]}"), settings)
        await asyncio.gather(*(redis.set(key, "x") for key in KEYS))
        lost, others = KEYS[:10], KEYS[11:]  # the first node's, and those of the other two
        written: list[int] = []
        writing = asyncio.create_task(_write(redis, written))
        await until(lambda: len(written) > 50)
        nodes.at(3, "CLUSTER", "FAILOVER")
        await until(lambda: redis.slots.node_of(key_slot(lost[0])) == nodes.nodes[3])
        count = len(written)
        await until(lambda: len(written) > count + 50)
        writing.cancel()
        stored = [int(number) for number in await redis.lrange(f"{lost[0]}list", 0, -1)]
        assert list(dict.fromkeys(stored))[: len(written)] == written, "unconfirmed ones may be there, too, and twice"
        await until(lambda: b"master_link_status:up" in nodes.at(0, "INFO", "replication"))

        nodes.servers[3].terminate()
        with pytest.raises(REDIS_AWAY):
            await redis.get(lost[0])
        assert await asyncio.gather(*(redis.get(key) for key in others)) == [b"x"] * len(others)
        pipe = redis.pipeline(transaction=False).get(lost[0]).get(others[0])
        with pytest.raises(REDIS_AWAY):
            await pipe.execute(raise_on_error=False)
        assert await retried(lambda: redis.get(lost[0])) == b"x"
        assert redis.slots.node_of(key_slot(lost[0])) == nodes.nodes[0]
        await redis.aclose()


async def _write(redis: ClusterRedis, written: list[int]) -> None:
    """Appends numbers to a list; notes each once its node has confirmed it."""
    for number in range(1_000_000):
        await retried(lambda number=number: redis.rpush(f"{KEYS[0]}list", number))
        written.append(number)
