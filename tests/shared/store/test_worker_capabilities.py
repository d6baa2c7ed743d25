"""Features that all workers must have: one older worker is enough to keep them off."""

from redis.asyncio import Redis

from stagebus.shared.storage import keys
from stagebus.shared.store.heartbeats import Heartbeat
from stagebus.shared.store.worker_capabilities import CALLS, CAPABILITIES, THREADS, WorkerCapabilities
from tests.support.fake_time import FakeTime


async def test_feature_is_off_while_a_live_worker_lacks_it(redis: Redis, cache_time: FakeTime) -> None:
    capabilities = WorkerCapabilities(redis)
    old, new = (Heartbeat(redis, keys.WORKERS, name, dict) for name in ("old", "new"))
    assert await capabilities.all_have(THREADS), "runs wait for the first worker"

    await new.send(b'{"capabilities": ["threads"]}')
    await old.send(b'{"concurrency": 1}')
    assert await capabilities.all_have(THREADS), "asked once within a heartbeat"
    cache_time.now += 10
    assert not await capabilities.all_have(THREADS)
    await old.send(b"")
    cache_time.now += 10
    assert await capabilities.all_have(THREADS)


def test_workers_of_this_version_know_all_features() -> None:
    assert {THREADS, CALLS} <= set(CAPABILITIES)
