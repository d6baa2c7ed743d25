"""Creating runs, with a stop at any step, and ending runs that no worker holds."""

import asyncio
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import START
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.errors import IdempotencyConflict, RunNotFound
from stagebus.shared.log import log_reader
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.store import run_store
from stagebus.shared.store.sweep import sweep

REQUEST: dict[str, Any] = {"model": "m", "messages": [], "timeout_s": 60}


async def create(redis: Redis, settings: Settings, key: str | None = None, **request: Any) -> str:
    return await run_store.create_run(
        redis, settings, tenant="t", model="m", request={**REQUEST, **request}, idempotency_key=key
    )


async def is_whole(redis: Redis, run_id: str) -> bool:
    """The run has its record, its job and its place among the active ones."""
    assert await redis.zscore(keys.ACTIVE, run_id) is not None
    return bool(await redis.exists(keys.run(run_id), keys.job(run_id)) == 2 and await redis.zscore(keys.QUEUE, run_id))


async def test_created_run_is_queued_and_due(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)

    assert await is_whole(redis, run_id)
    assert (await queue_scripts.list_due(redis, 5)).run_ids == [run_id]
    assert (await run_store.get_run(redis, run_id)).status is RunStatus.QUEUED


async def test_run_has_its_user_and_stands_in_the_users_list(redis: Redis, settings: Settings) -> None:
    run_id = await run_store.create_run(redis, settings, tenant="t", model="m", request=REQUEST, user="alice")
    other = await create(redis, settings)

    assert (await run_store.get_run(redis, run_id)).user == "alice"
    assert (await run_store.get_run(redis, other)).user == ""
    assert await redis.zrange(keys.runs("t", "alice"), 0, -1) == [run_id.encode()]
    assert await redis.zcard(keys.runs("t")) == 2
    assert await redis.pttl(keys.runs("t", "alice")) > 0


async def test_users_do_not_share_idempotency_keys(redis: Redis, settings: Settings) -> None:
    """Nor may a user learn by a conflict that another one has used a key."""

    async def create_for(user: str, **request: Any) -> str:
        return await run_store.create_run(
            redis, settings, tenant="t", model="m", request={**REQUEST, **request}, idempotency_key="k", user=user
        )

    run_ids = [await create_for("alice"), await create_for("bob", other=1), await create_for("")]

    assert len(set(run_ids)) == 3
    assert [await create_for("alice"), await create_for("bob", other=1), await create_for("")] == run_ids


async def test_gateway_events_have_a_time(redis: Redis, settings: Settings) -> None:
    """The first event and an end that no worker wrote."""
    run_id = await create(redis, settings)
    await run_store.cancel_run(redis, settings, run_id)
    page = await log_reader.read_page(redis, run_id, START, 10)

    assert [event.event for event in page.events] == [b"run_queued", b"cancel"]
    run = await run_store.get_run(redis, run_id)
    for event, noted in zip(page.events, (run.created_at, run.finished_at), strict=True):
        assert abs(orjson.loads(event.data)["at"] - noted) < 5_000, "both clocks are this machine's"


async def test_clock_of_the_gateway_decides_nothing(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour ahead, the job is due all the same."""
    monkeypatch.setattr("stagebus.shared.store.run_queue.wall_ms", lambda: 4_000_000_000_000)

    run_id = await create(redis, settings)
    assert (await queue_scripts.list_due(redis, 5)).run_ids == [run_id]


async def test_creation_with_a_lost_answer_is_found_by_the_same_post(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is one script, the key as well: there is no half of it."""
    really_create = run_scripts.create

    async def cut(*args: Any, **named: Any) -> None:
        await really_create(*args, **named)
        raise RedisConnectionError("the gateway died here")

    with monkeypatch.context() as patch:
        patch.setattr(run_scripts, "create", cut)
        with pytest.raises(RedisConnectionError):
            await create(redis, settings, key="k")
    run_id = await create(redis, settings, key="k")

    assert await is_whole(redis, run_id)
    assert await redis.zrange(keys.ACTIVE, 0, -1) == [run_id.encode()]


async def test_idempotency_key_of_a_lost_record_creates_the_run_again(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings, key="k")
    await redis.delete(keys.run(run_id))

    assert await create(redis, settings, key="k") == run_id
    assert await is_whole(redis, run_id)


async def test_idempotency_key_is_free_after_a_full_redis_refused(redis: Redis, settings: Settings) -> None:
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            await create(redis, settings, key="k")
    finally:
        await redis.config_set("maxmemory", 0)

    assert await create(redis, settings, key="k", timeout_s=61)


@pytest.mark.parametrize("mend", ["post", "sweep"])
async def test_record_without_a_job_is_queued(redis: Redis, settings: Settings, mend: str) -> None:
    """Every run has a job, whatever removed it."""
    run_id = await create(redis, settings, key="k")
    await redis.zrem(keys.QUEUE, run_id)
    await redis.delete(keys.job(run_id))
    if mend == "post":
        await create(redis, settings, key="k")
    else:
        await sweep(redis, settings)

    assert await is_whole(redis, run_id)


async def test_wakeup_list_names_the_run(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)

    assert await redis.lrange(keys.WAKEUP, 0, -1) == [run_id.encode()]


async def test_concurrent_posts_with_one_key_create_one_run(redis: Redis, settings: Settings) -> None:
    run_ids = await asyncio.gather(*(create(redis, settings, key="k") for _ in range(20)))

    assert len(set(run_ids)) == 1
    assert await redis.zcard(keys.QUEUE) == 1


async def test_key_with_another_request_is_a_conflict(redis: Redis, settings: Settings) -> None:
    await create(redis, settings, key="k")

    with pytest.raises(IdempotencyConflict):
        await create(redis, settings, key="k", timeout_s=61)


async def test_idempotency_key_of_an_ended_run_does_not_requeue_it(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings, key="k")
    await run_store.cancel_run(redis, settings, run_id)
    await redis.zrem(keys.QUEUE, run_id)

    assert await create(redis, settings, key="k") == run_id
    assert await redis.zcard(keys.QUEUE) == 0
    assert await redis.ttl(keys.idempotency("t", "k")) <= settings.retention_s, "it lives as long as its run"


async def test_idempotency_key_does_not_outlive_its_run(redis: Redis, settings: Settings) -> None:
    """Otherwise the key would create another run under the id of the expired one."""
    run_id = await create(redis, settings, key="k")
    await run_store.cancel_run(redis, settings, run_id)
    seconds, _ = await redis.time()
    ended_at = (seconds - round(settings.retention_s) + 100) * 1000
    await redis.hset(keys.run(run_id), "finished_at", ended_at)  # type: ignore[misc]

    assert await create(redis, settings, key="k") == run_id
    assert 90 <= await redis.ttl(keys.idempotency("t", "k")) <= 101


async def test_queued_run_is_cancelled_by_the_gateway(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)
    await run_store.cancel_run(redis, settings, run_id)
    await run_store.cancel_run(redis, settings, run_id)

    run = await run_store.get_run(redis, run_id)
    assert run.status is RunStatus.CANCELLED
    assert run.last_id.sequence == 2, "one terminal event"
    assert await redis.zcard(keys.ACTIVE) == 0


async def test_held_run_is_left_to_its_worker(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)
    await run_scripts.claim(redis, run_id, "w")
    await run_store.cancel_run(redis, settings, run_id)

    run = await run_store.get_run(redis, run_id)
    assert (run.status, run.cancel) == (RunStatus.RUNNING, True)


async def test_unknown_run_cannot_be_cancelled(redis: Redis, settings: Settings) -> None:
    with pytest.raises(RunNotFound):
        await run_store.cancel_run(redis, settings, ids.new_run_id())


# --- the sweep ---------------------------------------------------------------


async def test_sweep_ends_a_run_that_waited_too_long(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)
    born = int(await redis.hget(keys.run(run_id), "created_at"))
    await redis.hset(keys.run(run_id), "created_at", born - int(settings.queue_wait_max_s * 1000) - 1)
    await sweep(redis, settings)

    run = await run_store.get_run(redis, run_id)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error["code"] == "queue_timeout"


async def test_sweep_ends_a_cancelled_run_without_a_worker(redis: Redis, settings: Settings) -> None:
    """The gateway stored the flag and died before it ended the run."""
    run_id = await create(redis, settings)
    await run_scripts.cancel(redis, run_id)
    await sweep(redis, settings)

    assert (await run_store.get_run(redis, run_id)).status is RunStatus.CANCELLED


async def test_sweep_removes_ended_runs_and_leaves_held_ones(redis: Redis, settings: Settings) -> None:
    ended, held = await create(redis, settings), await create(redis, settings)
    await run_store.cancel_run(redis, settings, ended)
    await redis.zadd(keys.ACTIVE, {ended: 1, "01J00000000000000000000000": 1})
    await queue_scripts.acquire(redis, held, "token", lease_s=5)
    await sweep(redis, settings)

    assert await redis.zrange(keys.ACTIVE, 0, -1) == [held.encode()]
    assert await redis.get(keys.lease(held)) == b"token"
