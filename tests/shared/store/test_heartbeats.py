"""Heartbeats: a process is listed while it sends them and removed when it is silent."""

import asyncio

import pytest
from redis.asyncio import Redis

from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys
from stagebus.shared.store import heartbeats
from stagebus.shared.store.heartbeats import Heartbeat, read_live_processes
from tests.support.waiting import until_equal


async def names(redis: Redis) -> list[str]:
    return [present.name for present in await read_live_processes(redis, keys.WORKERS)]


async def test_process_is_listed_until_it_stops(redis: Redis) -> None:
    saying = asyncio.create_task(Heartbeat(redis, keys.WORKERS, "w", lambda: {"n": 1}).run())
    await until_equal(lambda: names(redis), ["w"])
    (present,) = await read_live_processes(redis, keys.WORKERS)
    assert (present.name, present.state) == ("w", {"n": 1})
    assert 0 <= present.seen_ms_ago < 5_000
    assert await read_live_processes(redis, keys.GATEWAYS) == []
    await cancel_and_wait(saying)

    assert await names(redis) == []


async def test_heartbeat_continues_after_a_failure(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "HEARTBEAT_S", 0.01)
    states = iter([{"n": object()}])
    saying = asyncio.create_task(Heartbeat(redis, keys.WORKERS, "w", lambda: next(states, {})).run())
    await until_equal(lambda: names(redis), ["w"])
    await cancel_and_wait(saying)


async def test_silent_process_is_forgotten(redis: Redis) -> None:
    """Readers ignore it immediately; the next heartbeat of another process, or the keys' TTL, removes it."""
    killed, other = (Heartbeat(redis, keys.WORKERS, name, dict) for name in ("killed", "other"))
    await killed.send(b"{}")
    await redis.zincrby(keys.seen(keys.WORKERS), -heartbeats.HEARTBEAT_TTL_S * 1000 - 1, "killed")
    assert await names(redis) == []
    await other.send(b"{}")

    assert await names(redis) == ["other"]
    assert await redis.hkeys(keys.WORKERS) == await redis.zrange(keys.seen(keys.WORKERS), 0, -1) == [b"other"]
    for key in (keys.WORKERS, keys.seen(keys.WORKERS)):
        assert 0 < await redis.pttl(key) <= heartbeats.HEARTBEAT_TTL_S * 1000


async def test_process_returns_with_its_next_heartbeat(redis: Redis) -> None:
    worker = Heartbeat(redis, keys.WORKERS, "w", dict)
    await worker.send(b"{}")
    await redis.zincrby(keys.seen(keys.WORKERS), -heartbeats.HEARTBEAT_TTL_S * 1000 - 1, "w")
    await worker.send(b"{}")

    assert await names(redis) == ["w"]


async def test_heartbeat_survives_while_redis_is_away() -> None:
    redis = Redis(host="127.0.0.1", port=1)
    saying = asyncio.create_task(Heartbeat(redis, keys.WORKERS, "w", dict).run())
    await asyncio.sleep(0)
    await cancel_and_wait(saying)
    await redis.aclose()

    assert saying.cancelled()
