"""Which servers are fit, and how a connection says that it is gone."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import StorageFull, StorageUnavailable, StorageUnfit
from stagebus.shared.storage import redis_client
from stagebus.shared.storage.redis_client import check_server, open_connection, storage_errors
from tests.support.cluster import Cluster
from tests.support.system import free_port


async def test_fit_server_passes(redis: Redis) -> None:
    await check_server(redis)


async def test_server_that_evicts_is_refused(redis: Redis) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StorageUnfit, match="CONFIG SET maxmemory-policy noeviction"):
            await check_server(redis)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_old_server_is_refused(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    async def info(_section: str) -> dict[str, str]:
        return {"redis_version": "6.0.16"}

    monkeypatch.setattr(redis, "info", info)
    with pytest.raises(StorageUnfit, match=r"6\.0\.16 is too old"):
        await check_server(redis)


async def test_node_of_a_cluster_is_refused(cluster_nodes: Cluster) -> None:
    """Some scripts would work there, and others not: the keys of the queue and of a run have different slots."""
    client = redis_client.connect(Settings(redis_url=f"redis://{cluster_nodes.nodes[0]}/0"))
    with pytest.raises(StorageUnfit, match="a node of a Redis Cluster"):
        await check_server(client)
    await redis_client.close(client)


async def test_unreachable_server_says_what_to_set() -> None:
    client = redis_client.connect(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    with pytest.raises(StorageUnfit, match="STAGEBUS_REDIS_URL"):
        await check_server(client)
    await redis_client.close(client)


async def test_send_on_a_closed_connection_is_a_connection_error(redis: Redis) -> None:
    """Not an AttributeError or RuntimeError of the library, which no caller handles."""
    connection = open_connection(redis)
    await connection.connect()
    await connection.disconnect()

    with pytest.raises(RedisConnectionError):
        await connection._send_packed_command([b"PING"])


async def test_cancelled_task_ends_wherever_its_command_is(redis: Redis) -> None:
    """asyncio.wait_for swallows a cancellation that arrives as it ends (Python 3.11)."""

    async def ping_for_ever() -> None:
        while True:
            await redis.ping()

    for steps in range(60):  # a command needs fewer
        task = asyncio.create_task(ping_for_ever())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled(), f"cancelled after {steps} steps of the loop"


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
def test_every_url_scheme_has_its_connection_class(scheme: str) -> None:
    url = {"redis": "redis://h:1/0", "rediss": "rediss://h:1/0", "unix": "unix:///tmp/s?db=0"}[scheme]

    client = redis_client.connect(Settings(redis_url=url))

    assert issubclass(client.connection_pool.connection_class, redis_client._UniformErrors)


async def test_full_and_absent_servers_are_told_apart(redis: Redis) -> None:
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(StorageFull), storage_errors():
            await redis.set("a", "b")
    finally:
        await redis.config_set("maxmemory", "0")
    with pytest.raises(StorageUnavailable), storage_errors():
        raise RedisConnectionError
