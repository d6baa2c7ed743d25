"""Streams of silent runs are told what the run waits for, and what they get of the log stays the same."""

import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import orjson
import pytest
from redis.asyncio import Redis

from stagebus.gateway.streaming import client_stream, stall_monitor
from stagebus.gateway.streaming.client_stream import ClientStream
from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.views import RUN_EVENTS
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.storage import keys, redis_client
from stagebus.shared.store import run_health
from stagebus.shared.store.run_health import RunHealth
from tests.gateway.conftest import Watcher
from tests.support.proxy import Proxy
from tests.support.runs_by_hand import RunByHand

LEASE_S = 8.0


@pytest.fixture
async def far_redis(redis: Redis, redis_url: str) -> AsyncIterator[tuple[Redis, Proxy]]:
    """A connection whose network the test controls."""
    async with Proxy(urlsplit(redis_url).port or 0) as proxy:
        client = redis_client.connect(Settings(redis_url=f"redis://127.0.0.1:{proxy.port}/0", redis_timeout_s=1))
        yield client, proxy
        await redis_client.close(client)


def told(watcher: Watcher) -> list[str | None]:
    """Returns what the client was told that the run waits for, in order."""
    return [orjson.loads(frame.data)["waiting_for"] for frame in watcher.frames if frame.event == "status"]


async def test_stream_of_a_silent_run_is_told_what_it_waits_for(
    redis: Redis, far_redis: tuple[Redis, Proxy], settings: Settings, run: RunByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is over, a worker is back, Redis goes away and returns, an event comes: told each, with every event once."""
    monkeypatch.setattr(client_stream, "SILENCE_S", 0.3)
    monkeypatch.setattr(stall_monitor, "CHECK_S", 0.05)
    monkeypatch.setattr(stall_monitor, "ANSWER_MAX_S", 0.2)
    monkeypatch.setattr(stall_monitor, "_NEXT_CHECK_S", dict.fromkeys(RunHealth, 0.05))
    client, proxy = far_redis
    hub = Hub(client, settings)
    await hub.start()
    watcher = Watcher(hub, run.run_id)
    began_at = time.monotonic()
    await watcher.until(lambda w: told(w) == ["worker"])
    assert time.monotonic() - began_at >= 0.3
    await redis.set(keys.lease(run.run_id), "token", px=round(LEASE_S * 1000))
    await watcher.until(lambda w: told(w) == ["worker", None])
    proxy.hang()
    await watcher.until(lambda w: told(w) == ["worker", None, "storage"])
    proxy.flow()
    await watcher.until(lambda w: told(w) == ["worker", None, "storage", None])
    await redis.delete(keys.lease(run.run_id))
    await watcher.until(lambda w: told(w)[4:] == ["worker"])
    await run.say("a")
    await watcher.until(lambda w: told(w)[5:] == ["worker"])
    await run.end()

    await watcher.until_end()
    assert watcher.sequences == [1, 2, 3]
    assert all(not frame.id for frame in watcher.frames if frame.event == "status")
    await hub.stop()


async def test_health_of_a_run_depends_on_its_lease_and_its_state(redis: Redis, run: RunByHand) -> None:
    """A renewal that is overdue counts before the lease is over. Broken records disturb no other run."""

    async def read() -> RunHealth:
        (found,) = await run_health.read_run_health(redis, [run.run_id], LEASE_S)
        return found

    lease, record = keys.lease(run.run_id), keys.run(run.run_id)
    assert await read() is RunHealth.UNHELD
    await redis.set(lease, "token", px=7000)
    assert await read() is RunHealth.HELD
    await redis.set(lease, "token", px=3000)
    assert await read() is RunHealth.UNHELD
    await redis.hset(record, "worker", "")
    assert await read() is RunHealth.QUEUED
    await redis.hset(record, "status", RunStatus.PARKED)
    assert await read() is RunHealth.AT_REST
    await run.end()
    await redis.set("sb:run:{junk}", "junk", ex=60)
    found = await run_health.read_run_health(redis, ["junk", "unknown", run.run_id], LEASE_S)
    assert found == [RunHealth.AT_REST] * 3


async def test_runs_at_rest_are_checked_seldom(
    redis: Redis, settings: Settings, run: RunByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may wait for a person for a day, and each check costs Redis two commands."""
    checks: list[list[str]] = []
    now = 100.0

    async def read(_redis: Redis, run_ids: list[str], _lease_s: float) -> list[RunHealth]:
        checks.append(run_ids)
        return [RunHealth.AT_REST if run_id == "parked" else RunHealth.HELD for run_id in run_ids]

    monkeypatch.setattr(stall_monitor, "read_run_health", read)
    hub = Hub(redis, settings)
    streams = {name: {_stream_since(hub, name, now)} for name in ("parked", "held")}
    monitor = stall_monitor.StallMonitor(redis, LEASE_S, streams)
    for _ in range(40):
        now += 1.0
        await monitor._check(now)

    assert all(run_ids in (["held"], ["parked", "held"]) for run_ids in checks)
    assert len(checks) == 38, "from the third second of silence on"
    assert sum("parked" in run_ids for run_ids in checks) == 2


def _stream_since(hub: Hub, run_id: str, at: float) -> ClientStream:
    stream = hub.new_stream(run_id, START, RUN_EVENTS)
    stream.check_at = at + client_stream.SILENCE_S
    return stream
