"""The doorbell against a real server: one ring wakes one waiter, and a broken wait leaves nothing behind."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import keys, redis_client
from stagebus.shared.storage.redis_client import REDIS_AWAY
from stagebus.shared.store import run_queue
from stagebus.worker.execution import doorbell as doorbell_module
from stagebus.worker.execution.doorbell import Doorbell
from tests.support.proxy import Proxy
from tests.support.redis_calls import blocked_client_count
from tests.support.waiting import until_equal


@pytest.fixture
async def bell(redis: Redis) -> AsyncIterator[Doorbell]:
    bell = Doorbell(redis)
    yield bell
    await bell.close()


async def until_waiting(redis: Redis, count: int) -> None:
    await until_equal(lambda: blocked_client_count(redis), count)


async def test_doorbell_ring_wakes_one_of_two_waiters(redis: Redis, bell: Doorbell) -> None:
    other = Doorbell(redis)
    waits = {asyncio.create_task(one.wait(20)) for one in (bell, other)}
    await until_waiting(redis, 2)
    await run_queue.ring(redis, "run")
    woken, asleep = await asyncio.wait(waits, timeout=5, return_when=asyncio.FIRST_COMPLETED)

    assert [task.result() for task in woken] == ["run"]
    await until_waiting(redis, 1)
    await run_queue.ring(redis, "run")
    assert [await asyncio.wait_for(task, 5) for task in asleep] == ["run"]
    await other.close()


async def test_doorbell_ring_before_the_wait_counts_once(redis: Redis, bell: Doorbell) -> None:
    await run_queue.ring(redis, "run")

    assert await asyncio.wait_for(bell.wait(20), 5)
    assert await bell.wait(0.02) is None


@pytest.mark.parametrize("timeout_s", [0.05, 0.0, -1.0, 0.0001])
async def test_doorbell_wait_ends_at_its_timeout(bell: Doorbell, timeout_s: float) -> None:
    """Also if no time is left: for Redis, 0 means to wait forever."""
    assert await asyncio.wait_for(bell.wait(timeout_s), 5) is None


async def test_doorbell_waits_share_one_connection(redis: Redis, bell: Doorbell) -> None:
    await bell.wait(0.01)
    before = (await redis.info("stats"))["total_connections_received"]
    for _ in range(2):
        await bell.wait(0.01)

    assert (await redis.info("stats"))["total_connections_received"] == before


async def test_cancelled_doorbell_wait_consumes_no_later_ring(redis: Redis, bell: Doorbell) -> None:
    waiting = asyncio.create_task(bell.wait(20))
    await until_waiting(redis, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until_waiting(redis, 0)
    await run_queue.ring(redis, "run")

    assert await redis.llen(keys.WAKEUP) == 1
    assert await asyncio.wait_for(bell.wait(20), 5)


async def test_closed_doorbell_leaves_no_connection(redis: Redis) -> None:
    bell = Doorbell(redis)
    before = len(await redis.client_list())
    await bell.wait(0.01)
    await bell.close()

    async def connections() -> int:
        return len(await redis.client_list())

    await until_equal(connections, before)


# --- Redis is down -----------------------------------------------------------


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(urlsplit(redis_url).port or 0) as proxy:
        yield proxy


@pytest.fixture
async def far(proxy: Proxy, redis: Redis) -> AsyncIterator[Doorbell]:
    client = redis_client.connect(Settings(redis_url=f"redis://127.0.0.1:{proxy.port}/0", redis_timeout_s=1))
    bell = Doorbell(client)
    yield bell
    await bell.close()
    await redis_client.close(client)


async def test_doorbell_reconnects_after_a_redis_outage(redis: Redis, far: Doorbell, proxy: Proxy) -> None:
    waiting = asyncio.create_task(far.wait(20))
    await until_waiting(redis, 1)
    await proxy.close()
    with pytest.raises(REDIS_AWAY):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(REDIS_AWAY):
        await asyncio.wait_for(far.wait(20), 5)

    await proxy.__aenter__()
    await run_queue.ring(redis, "run")
    assert await asyncio.wait_for(far.wait(20), 5)


async def test_doorbell_connection_without_a_reply_counts_as_dead(
    redis: Redis, far: Doorbell, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next wait would read its late reply, and its pop would consume a ring."""
    monkeypatch.setattr(doorbell_module, "REPLY_MARGIN_S", 0.1)
    await far.wait(0.01)
    proxy.hang()
    with pytest.raises(REDIS_AWAY):
        await asyncio.wait_for(far.wait(0.1), 5)
    proxy.flow()
    await until_waiting(redis, 0)
    await run_queue.ring(redis, "run")

    assert await asyncio.wait_for(far.wait(20), 5)
    assert await far.wait(0.02) is None
