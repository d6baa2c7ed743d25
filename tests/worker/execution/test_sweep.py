"""The sweep against a real server: no run stays stranded, and a bad record affects no other run."""

import asyncio

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.errors import RunNotFound
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.store import run_store
from stagebus.worker.execution import sweep as sweep_module
from stagebus.worker.execution.sweep import sweep, sweep_forever
from tests.support.redis_calls import calls


async def create(redis: Redis, settings: Settings) -> str:
    return await run_store.create_run(redis, settings, tenant="t", model="m", request={"a": 1})


async def strand(redis: Redis, run_id: str) -> None:
    """Removes the run's job from the queue."""
    await redis.zrem(keys.QUEUE, run_id)
    await redis.delete(keys.job(run_id))


async def is_queued(redis: Redis, run_id: str) -> bool:
    return await redis.zscore(keys.QUEUE, run_id) is not None and await redis.exists(keys.job(run_id)) == 1


async def is_active(redis: Redis, run_id: str) -> bool:
    return await redis.zscore(keys.ACTIVE, run_id) is not None


async def test_sweep_requeues_a_run_without_a_job(redis: Redis, settings: Settings) -> None:
    stranded, sound = await create(redis, settings), await create(redis, settings)
    score = await redis.zscore(keys.QUEUE, sound)
    await strand(redis, stranded)
    await sweep(redis, settings)

    assert await is_queued(redis, stranded)
    assert await redis.zscore(keys.QUEUE, sound) == score, "the other runs keep their place"
    assert (await queue_scripts.list_due(redis, 10)).run_ids


async def test_sweep_covers_every_batch(redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if runs leave the set during the sweep."""
    monkeypatch.setattr(sweep_module, "BATCH", 2)
    run_ids = [await create(redis, settings) for _ in range(9)]
    for run_id in run_ids[::2]:
        await run_store.cancel_run(redis, settings, run_id)
        await redis.zadd(keys.ACTIVE, {run_id: 0})
    for run_id in run_ids[1::2]:
        await strand(redis, run_id)
    await sweep(redis, settings)

    assert [await is_active(redis, run_id) for run_id in run_ids] == [False, True] * 4 + [False]
    assert all([await is_queued(redis, run_id) for run_id in run_ids[1::2]])


async def test_sweep_ends_a_run_that_waited_too_long(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)
    await redis.hincrby(keys.run(run_id), "created_at", -round(settings.queue_wait_max_s * 1000) - 1000)
    await sweep(redis, settings)

    run = await run_store.get_run(redis, run_id)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error["code"] == "queue_timeout"
    assert not await is_active(redis, run_id)


async def test_sweep_ends_a_cancelled_run_that_no_worker_holds(redis: Redis, settings: Settings) -> None:
    """The run was given back, so it names no worker."""
    run_id = await create(redis, settings)
    await run_scripts.claim(redis, run_id, "w")
    await run_scripts.cancel(redis, run_id)
    await redis.hset(keys.run(run_id), "worker", "")
    await sweep(redis, settings)

    assert (await run_store.get_run(redis, run_id)).status is RunStatus.CANCELLED


async def test_sweep_leaves_a_held_run_to_its_worker(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)
    await run_scripts.claim(redis, run_id, "w")
    await run_scripts.cancel(redis, run_id)
    await redis.hincrby(keys.run(run_id), "created_at", -round(settings.queue_wait_max_s * 1000) - 1000)
    await sweep(redis, settings)

    assert (await run_store.get_run(redis, run_id)).status is RunStatus.RUNNING


async def test_sweep_lets_a_given_back_run_wait_again(redis: Redis, settings: Settings) -> None:
    """From its first claim on, it has its own time limit."""
    run_id = await create(redis, settings)
    await run_scripts.claim(redis, run_id, "w")
    await redis.hset(keys.run(run_id), "worker", "")
    await redis.hincrby(keys.run(run_id), "created_at", -round(settings.queue_wait_max_s * 1000) - 1000)
    await sweep(redis, settings)

    assert (await run_store.get_run(redis, run_id)).status is RunStatus.RUNNING
    assert await is_queued(redis, run_id)


async def test_sweep_leaves_an_incomplete_run_to_its_client_for_a_while(redis: Redis, settings: Settings) -> None:
    fresh, old = ids.new_run_id(), "01J9ZK3V7Q8E5W2R4T6Y8A0P1A"
    await redis.zadd(keys.ACTIVE, {fresh: 1, old: 2})
    await sweep(redis, settings)

    assert (await is_active(redis, fresh), await is_active(redis, old)) == (True, False)
    with pytest.raises(RunNotFound):
        await run_store.get_run(redis, old)


async def test_sweep_continues_after_a_bad_record(redis: Redis, settings: Settings) -> None:
    """A status of a newer version, a key of the wrong type, a member that is not a run id."""
    bad, odd, stranded = [await create(redis, settings) for _ in range(3)]
    await redis.hset(keys.run(bad), "status", "paused")
    await redis.set(keys.run(odd), "?", ex=60)
    await redis.zadd(keys.ACTIVE, {"not-a-run": 0, bad: 1, odd: 1, stranded: 2})
    await strand(redis, stranded)
    await sweep(redis, settings)

    assert await is_queued(redis, stranded)


async def test_sweep_reads_no_requests_and_uses_one_round_trip_per_batch(redis: Redis, settings: Settings) -> None:
    """Ten thousand waiting runs with long conversations stay cheap."""
    for _ in range(20):
        await create(redis, settings)
    before = await calls(redis)
    await sweep(redis, settings)
    after = await calls(redis)

    assert after["hgetall"] == before["hgetall"]
    assert after["hmget"] - before["hmget"] == 20
    assert sum((after - before).values()) < 20 * 3 + 10


async def test_sweep_renews_the_keys_job_and_idempotency_key_of_a_waiting_run(redis: Redis, settings: Settings) -> None:
    """It was given back, and no worker was free for almost the whole TTL of its keys."""
    run_id = await run_store.create_run(
        redis, settings, tenant="t", model="m", request={"a": 1}, idempotency_key="mine"
    )
    await run_scripts.claim(redis, run_id, "w")
    await redis.hset(keys.run(run_id), "worker", "")
    kept = [key async for key in redis.scan_iter(f"{keys.run(run_id)}*")]
    kept += [keys.job(run_id).encode(), keys.idempotency("t", "mine").encode()]
    for key in kept:
        await redis.expire(key, 60)
    await sweep(redis, settings)

    assert len(kept) == 5
    assert all([await redis.ttl(key) > settings.live_ttl_s - 60 for key in kept])


async def test_sweep_runs_on_one_worker_and_survives_redis_outages(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = asyncio.Event()
    outcomes = [ConnectionError("away"), None]

    async def look(*_: object) -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        swept.set()

    monkeypatch.setattr(sweep_module, "sweep", look)
    often = settings.model_copy(update={"sweep_s": 0.05})
    sweeping = [asyncio.create_task(sweep_forever(redis, often, name)) for name in ("w1", "w2")]
    await asyncio.wait_for(swept.wait(), 5)
    await cancel_and_wait(*sweeping)

    assert outcomes == []


async def test_sweep_continues_after_an_unexpected_error(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = asyncio.Queue[int]()

    async def fail(_redis: Redis, _settings: Settings) -> None:
        swept.put_nowait(1)
        await redis.delete(keys.SWEEP)
        raise ValueError("a member that nobody can read")

    monkeypatch.setattr(sweep_module, "sweep", fail)
    sweeping = asyncio.create_task(sweep_forever(redis, settings.model_copy(update={"sweep_s": 0.05}), "w"))
    try:
        await asyncio.wait_for(swept.get(), 5)
        await asyncio.wait_for(swept.get(), 5)
    finally:
        await cancel_and_wait(sweeping)
