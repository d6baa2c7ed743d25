"""One connection for many commands: order, failures, and what a caller hears of them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import redis_client
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.raw_connection import RedisProtocol
from tests.support.scripted_redis import scripted_redis
from tests.support.waiting import until_equal

ECHO = "return ARGV[1]"
WAIT_MS = 600


async def evaluate(connection: PipelinedConnection, *args: str | int) -> Any:
    return await connection.execute_command("EVAL", *args)


@pytest.fixture
async def connection(redis: Redis) -> AsyncIterator[PipelinedConnection]:
    connection = PipelinedConnection(redis, timeout_s=5)
    yield connection
    await connection.aclose()


async def connections(redis: Redis) -> int:
    return int((await redis.info("clients"))["connected_clients"])


async def test_replies_go_to_their_callers(connection: PipelinedConnection) -> None:
    """Many commands are under way at once, and each caller gets its own answer."""
    answers = await asyncio.gather(*(evaluate(connection, ECHO, 0, str(i)) for i in range(500)))

    assert answers == [str(i).encode() for i in range(500)]


async def test_all_commands_share_one_connection(redis: Redis, connection: PipelinedConnection) -> None:
    before = await connections(redis)
    await asyncio.gather(*(evaluate(connection, ECHO, 0, "x") for _ in range(50)))

    assert await connections(redis) == before + 1


async def test_error_reply_fails_only_its_caller(connection: PipelinedConnection) -> None:
    """A script that fails, or that the server does not know, does not affect other commands."""
    outcomes = await asyncio.gather(
        evaluate(connection, ECHO, 0, "a"), connection.execute_command("EVALSHA", "0" * 40, 0), evaluate(connection, "return error", 0), evaluate(connection, "return {err='ERR no'}", 0),
        evaluate(connection, ECHO, 0, "b"), return_exceptions=True,
    )  # fmt: skip

    assert outcomes[0] == b"a"
    assert isinstance(outcomes[1], NoScriptError)
    assert isinstance(outcomes[3], ResponseError)
    assert outcomes[4] == b"b"


async def test_cancelled_command_does_not_shift_replies(connection: PipelinedConnection) -> None:
    await evaluate(connection, ECHO, 0, "open")
    first = asyncio.create_task(evaluate(connection, ECHO, 0, "first"))
    second = asyncio.create_task(evaluate(connection, ECHO, 0, "second"))
    await asyncio.sleep(0)
    first.cancel()

    assert await second == b"second"
    assert first.cancelled()


async def test_transaction_is_not_interleaved_with_other_commands(
    redis: Redis, connection: PipelinedConnection
) -> None:
    """All set and read the same key concurrently, and each reads back its own value."""
    key = b"between"
    alone = evaluate(connection, ECHO, 0, "alone")
    answers = await asyncio.gather(
        *(connection.transaction([("SET", key, str(i), "EX", 60), ("GET", key)]) for i in range(50)), alone
    )

    assert answers == [*([b"OK", str(i).encode()] for i in range(50)), b"alone"]


async def test_failed_transaction_fails_only_its_caller(redis: Redis, connection: PipelinedConnection) -> None:
    """A command that fails as it is carried out, or that the server will not take at all; or the caller went away."""
    await redis.set("text", "x", ex=60)
    gone = asyncio.create_task(connection.transaction([("GET", "text")]))
    await asyncio.sleep(0)
    gone.cancel()
    outcomes = await asyncio.gather(
        connection.transaction([("GET", "text"), ("LPUSH", "text", "y")]),
        connection.transaction([("NO-SUCH-COMMAND",)]),
        connection.transaction([("GET", "text")]),
        evaluate(connection, ECHO, 0, "b"),
        return_exceptions=True,
    )

    assert isinstance(outcomes[0], ResponseError)
    assert isinstance(outcomes[1], ResponseError)
    assert outcomes[2:] == [[b"x"], b"b"]


async def test_cut_connection_fails_commands_and_is_reopened(redis: Redis, connection: PipelinedConnection) -> None:
    await evaluate(connection, ECHO, 0, "open")
    await redis.client_pause(WAIT_MS, all=True)
    waiting = [asyncio.create_task(evaluate(connection, ECHO, 0, str(i))) for i in range(3)]
    waiting.append(asyncio.create_task(connection.transaction([("PING",)])))
    await asyncio.sleep(0)
    assert connection._protocol is not None
    connection._protocol._transport.abort()

    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, RedisConnectionError) for outcome in outcomes)
    assert await evaluate(connection, ECHO, 0, "again") == b"again"


async def test_connection_closed_by_the_server_is_reopened(redis: Redis, connection: PipelinedConnection) -> None:
    await evaluate(connection, ECHO, 0, "open")
    await redis.client_kill_filter(_type="normal", skipme=True)
    await until_equal(lambda: connection._protocol, None)

    assert await evaluate(connection, ECHO, 0, "again") == b"again"


async def test_server_that_does_not_answer_counts_as_away(redis: Redis) -> None:
    """A command that waits longer than the timeout fails, even if TCP reports no error."""
    connection = PipelinedConnection(redis, timeout_s=0.1)
    await evaluate(connection, ECHO, 0, "open")
    await redis.client_pause(WAIT_MS, all=True)

    with pytest.raises(RedisTimeoutError):
        await evaluate(connection, ECHO, 0, "x")
    await connection.aclose()


async def test_closed_connection_fails_commands_in_flight(redis: Redis) -> None:
    connection = PipelinedConnection(redis, timeout_s=5)
    await evaluate(connection, ECHO, 0, "open")
    waiting = asyncio.create_task(evaluate(connection, ECHO, 0, "x"))
    await asyncio.sleep(0)
    await connection.aclose()

    with pytest.raises(RedisConnectionError):
        await waiting


async def test_connect_to_a_closed_port_fails(settings) -> None:
    """If there is no server, the command fails, and the connection object stays usable."""
    connection = PipelinedConnection(Redis(port=1), timeout_s=1)

    with pytest.raises(RedisConnectionError):
        await evaluate(connection, ECHO, 0, "x")
    await connection.aclose()


async def test_failed_connect_fails_all_waiting_commands(
    redis: Redis, connection: PipelinedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose machine is gone answers no connection before the time-out: one after the other, the last would wait for all."""
    open_wire, opened = RedisProtocol.open, 0
    is_over = asyncio.Event()

    async def hang(*args: object) -> RedisProtocol:
        nonlocal opened
        opened += 1
        if opened > 1:
            return await open_wire(*args)
        await is_over.wait()
        raise RedisConnectionError("no way to it")

    monkeypatch.setattr(RedisProtocol, "open", hang)
    waiting = [asyncio.create_task(evaluate(connection, ECHO, 0, "x")) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    is_over.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert isinstance(outcomes[0], asyncio.CancelledError), "a cancelled caller does not affect the others"
    assert all(isinstance(outcome, RedisConnectionError) for outcome in outcomes[1:])
    assert opened == 1
    assert await evaluate(connection, ECHO, 0, "again") == b"again"


async def test_close_while_connecting_fails_waiting_commands(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = PipelinedConnection(redis, timeout_s=5)
    monkeypatch.setattr(RedisProtocol, "open", lambda *_: asyncio.Event().wait())
    waiting = asyncio.create_task(evaluate(connection, ECHO, 0, "x"))
    await asyncio.sleep(0)
    await connection.aclose()

    with pytest.raises(RedisConnectionError):
        await waiting


async def test_error_of_a_lost_transaction_is_not_that_of_a_later_command() -> None:
    async with scripted_redis(GET=b"-ERR first\r\n", EXEC=b"", SET=b"-ERR second\r\n") as server:
        client = redis_client.connect(Settings(redis_url=f"redis://127.0.0.1:{server.port}/0"))
        connection = PipelinedConnection(client, timeout_s=5)
        lost = asyncio.create_task(connection.transaction([("GET", "k")]))
        await until_equal(lambda: server.sent("EXEC"), ["EXEC"])
        server.stop()
        with pytest.raises(RedisConnectionError):
            await lost
        await server.start()
        with pytest.raises(ResponseError, match="second"):
            await connection.execute_command("SET", "k", "v")
        await connection.aclose()
        await redis_client.close(client)
