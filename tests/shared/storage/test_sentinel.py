"""Sentinel: which server a connection leads to, with real sentinels and with scripted ones."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import StorageUnfit
from stagebus.shared.storage import keys, redis_client
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.pubsub import Channels
from stagebus.shared.storage.redis_client import REDIS_AWAY, check_server
from stagebus.shared.storage.sentinel import PrimaryNotFound
from stagebus.worker.execution.doorbell import Doorbell
from tests.support.outages import retried
from tests.support.scripted_redis import ScriptedRedis, scripted_redis
from tests.support.sentinels import SERVICE, SentinelGroup
from tests.support.system import free_port
from tests.support.tls import self_signed
from tests.support.waiting import until

# --- scripted sentinels --------------------------------------------------------


def names(port: int) -> bytes:
    """The reply of a sentinel that names 127.0.0.1:port as primary."""
    text = str(port).encode()
    return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%b\r\n" % (len(text), text)


IS_PRIMARY = b"*1\r\n$6\r\nmaster\r\n"
IS_REPLICA = b"*1\r\n$5\r\nslave\r\n"
UNKNOWN_SERVICE = b"*-1\r\n"
Start = Callable[..., Awaitable[ScriptedRedis]]
Connect = Callable[..., Redis]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(tls: ssl.SSLContext | None = None, **replies: bytes) -> ScriptedRedis:
            return await stack.enter_async_context(scripted_redis(tls, **replies))

        yield start


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        def connect(*ports: int, scheme: str = "redis+sentinel", user: str = "", end: str = f"/{SERVICE}/0") -> Redis:
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
            client = redis_client.connect(Settings(redis_url=f"{scheme}://{user}{hosts}{end}"))
            stack.push_async_callback(redis_client.close, client)
            return client

        yield connect


async def test_sentinels_are_asked_in_turn_until_one_names_the_primary(start: Start, connect: Connect) -> None:
    primary = await start(ROLE=IS_PRIMARY)
    knows, ignorant = await start(SENTINEL=names(primary.port)), await start(SENTINEL=UNKNOWN_SERVICE)
    redis = connect(free_port(), ignorant.port, knows.port)
    await redis.set("a", "b")

    assert ignorant.commands == knows.commands == [f"SENTINEL GET-MASTER-ADDR-BY-NAME {SERVICE}"]
    assert primary.commands == ["ROLE", "SET a b"]
    await redis.connection_pool.disconnect()
    await redis.set("a", "c")
    assert len(ignorant.commands) == 1, "the one that answered last is asked first"
    assert len(knows.commands) == 2, "at each connect"


async def test_sentinel_that_names_a_replica_is_asked_after_the_others(start: Start, connect: Connect) -> None:
    """It was away during the failover."""
    old, new = await start(ROLE=IS_REPLICA), await start(ROLE=IS_PRIMARY)
    outdated, current = await start(SENTINEL=names(old.port)), await start(SENTINEL=names(new.port))
    redis = connect(outdated.port, current.port)
    with pytest.raises(RedisConnectionError, match=f"127.0.0.1:{old.port} is not a primary"):
        await redis.set("a", "b")
    await redis.set("a", "b")

    assert old.commands == ["ROLE"]
    assert new.commands == ["ROLE", "SET a b"]


async def test_server_and_sentinels_have_users_and_databases_of_their_own(start: Start, connect: Connect) -> None:
    primary = await start(ROLE=IS_PRIMARY)
    sentinel = await start(SENTINEL=names(primary.port))
    end = f"/{SERVICE}/3?sentinel_username=watch&sentinel_password=s%2Fs"
    await connect(sentinel.port, user="me:p%2Fp@", end=end).set("a", "b")

    assert sentinel.commands == ["AUTH watch s/s", f"SENTINEL GET-MASTER-ADDR-BY-NAME {SERVICE}"]
    assert primary.commands == ["AUTH me p/p", "SELECT 3", "ROLE", "SET a b"]


async def test_tls_url_encrypts_connections_to_the_server_and_to_the_sentinels(
    start: Start, connect: Connect, tmp_path: Path
) -> None:
    authority, tls = self_signed(tmp_path, "127.0.0.1")
    primary = await start(tls, ROLE=IS_PRIMARY)
    sentinel, plain = await start(tls, SENTINEL=names(primary.port)), await start(SENTINEL=names(1))
    end = f"/{SERVICE}?ssl_ca_certs={authority}"
    await connect(plain.port, sentinel.port, scheme="rediss+sentinel", end=end).set("a", "b")

    assert primary.commands == ["ROLE", "SET a b"]
    assert plain.commands == []
    with pytest.raises(RedisConnectionError, match="certificate verify failed"):
        await connect(sentinel.port, scheme="rediss+sentinel").set("a", "b")


async def test_message_says_what_each_sentinel_did(start: Start, connect: Connect) -> None:
    ignorant, away = await start(SENTINEL=UNKNOWN_SERVICE), free_port()
    redis = connect(ignorant.port, away)
    with pytest.raises(RedisConnectionError, match="no sentinel names a primary") as raised:
        await redis.ping()

    assert f"127.0.0.1:{ignorant.port} does not know the service {SERVICE}" in str(raised.value)
    assert f"127.0.0.1:{away}: " in str(raised.value)
    with pytest.raises(StorageUnfit, match="does not know the service"):
        await check_server(redis)
    assert issubclass(PrimaryNotFound, REDIS_AWAY), "callers wait for it as for any outage"


# --- real ones ----------------------------------------------------------------


async def test_all_connections_follow_the_sentinels_through_both_kinds_of_failover(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A coordinated failover loses no write that was confirmed; a killed primary is replaced."""
    async with SentinelGroup(tmp_path_factory.mktemp("sentinels")) as group:
        redis = redis_client.connect(Settings(redis_url=group.url))
        await check_server(redis)
        connection, bell = PipelinedConnection(redis, 5), Doorbell(redis)
        reconnects: list[None] = []
        channels = Channels(redis, lambda: reconnects.append(None))
        await channels.start()
        await channels.subscribe("here", lambda _: None)
        waiting = asyncio.create_task(bell.wait(20))
        first = await group.primary()
        written: list[int] = []
        writing = asyncio.create_task(_write(connection, written))
        await until(lambda: len(written) > 50)

        second = await group.fail_over()
        count = len(written)
        await until(lambda: len(written) > count + 50)
        writing.cancel()
        stored = [int(number) for number in await redis.lrange("written", 0, -1)]
        assert list(dict.fromkeys(stored))[: len(written)] == written, "unconfirmed ones may be there, too, and twice"
        await until(lambda: len(reconnects) > 1)
        with pytest.raises(RedisConnectionError):
            await waiting  # the worker's loop waits again

        await retried(lambda: redis.set("replicated", 1))
        await until(partial(_has, group, first, "replicated"))
        await until(group.is_ready_for_failover)
        group.kill(second)
        await retried(lambda: redis.set("k", "pool"))
        await retried(lambda: connection.execute_command("SET", "l", "pipelined"))
        await retried(lambda: redis.rpush(keys.WAKEUP, "run"))
        assert await retried(lambda: bell.wait(20)) == "run"
        await until(lambda: redis.pubsub_numsub("here"))
        await until(lambda: len(reconnects) > 2)
        assert await group.primary() == first
        assert await redis.mget("k", "l", "replicated") == [b"pool", b"pipelined", b"1"]

        await channels.stop()
        await connection.aclose()
        await bell.close()
        await redis_client.close(redis)


async def _write(connection: PipelinedConnection, written: list[int]) -> None:
    """Appends numbers to a list; notes each once Redis has confirmed it."""
    for number in range(1_000_000):
        await retried(lambda number=number: connection.execute_command("RPUSH", "written", number))
        written.append(number)


async def _has(group: SentinelGroup, port: int, key: str) -> bool:
    return bool(await group.at(port, "EXISTS", key))
