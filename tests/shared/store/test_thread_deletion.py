"""Deleting runs of threads and whole threads with a real server."""

import asyncio

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import RunDeleted, RunNotFound
from stagebus.shared.storage import keys, thread_scripts
from stagebus.shared.store import run_deletion, run_store, thread_deletion, thread_steering, thread_store
from stagebus.shared.store.sweep import sweep
from stagebus.shared.thread_errors import ThreadDeleting, ThreadNotFound
from tests.support.threads_by_hand import ENQUEUE, IDENTITY, KEY, STEER, ThreadByHand

OWNER = RunOwner("t")


@pytest.fixture
def thread(redis: Redis, settings: Settings) -> ThreadByHand:
    return ThreadByHand(redis, settings)


async def left_keys(redis: Redis) -> set[str]:
    """Returns the keys of threads and runs, without tombstones."""
    found = [key.decode() for pattern in ("sb:thread*", "sb:run:*") for key in [*(await redis.keys(pattern))]]
    return {key for key in found if not (key.startswith("sb:run:") and await redis.hexists(key, "deleted_of"))}


async def test_deleted_turn_loses_its_messages_and_keeps_its_place(thread: ThreadByHand) -> None:
    first = await thread.post("secret")
    await thread.end(first)
    second = await thread.post("after")
    await run_deletion.delete_run(thread.redis, thread.settings, first, OWNER)
    read = await thread.read(with_messages=True)
    path = await thread_store.path_to(thread.redis, KEY, second, 10**6)
    await thread.end(second)

    assert [(turn.run_id, turn.parent_run_id, turn.is_deleted) for turn in read.turns] == [
        (first, "", True), (second, first, False),
    ]  # fmt: skip
    assert read.turns[0].messages_in == ()
    assert [(turn.run_id, turn.is_deleted, turn.messages_in) for turn in path.turns] == [(first, True, ())]
    assert read.size == len(b'[{"role":"user","content":"after"}]')
    assert not any([b"secret" in (await thread.redis.dump(key) or b"") for key in await thread.redis.keys("*")])
    named = await thread.post(parent_run_id=first)
    await thread.end(named)


async def test_deletion_of_an_ended_run_is_no_activity_of_its_thread(thread: ThreadByHand) -> None:
    """A person who tidies up does not move old threads to the top of the list."""
    run_id = await thread.post()
    await thread.end(run_id)
    await thread.redis.hset(KEY, "updated_at", 1)  # type: ignore[misc]
    await run_deletion.delete_run(thread.redis, thread.settings, run_id, OWNER)

    assert (await thread.read()).updated_at == 1


async def test_deleting_the_active_run_makes_the_next_one_active(thread: ThreadByHand) -> None:
    first = await thread.post()
    await thread.work(first)
    second = await thread.post(on_active=ENQUEUE)
    await run_deletion.delete_run(thread.redis, thread.settings, first, OWNER)

    assert (await thread.read()).active_run_id == second
    assert await thread.due() == {second}
    await thread.end(second)


async def test_deleted_waiting_run_leaves_the_thread_and_is_not_made_again(thread: ThreadByHand) -> None:
    first = await thread.post()
    second = await thread.post(on_active=ENQUEUE, idempotency_key="k")
    await run_deletion.delete_run(thread.redis, thread.settings, second, OWNER)

    assert (await thread.read()).waiting == ()
    with pytest.raises(RunDeleted):
        await thread.post(on_active=ENQUEUE, idempotency_key="k")
    await thread.end(first)


async def test_deleted_thread_is_gone_with_all_its_runs(thread: ThreadByHand) -> None:
    """Ended, active, waiting, cancelled and merged ones."""
    redis, settings = thread.redis, thread.settings
    ended = await thread.post()
    await thread.end(ended)
    active = await thread.post(idempotency_key="k")
    claim = await thread.work(active)
    await thread.post(on_active=STEER)
    run = await thread.run(active)
    (joining,) = await thread_steering.read_steering(redis, run)
    await thread_steering.join_run(
        redis, settings, run, joining, attempt=claim.attempt, last_id=claim.last_id, before_stage="extraction"
    )
    cancelled = await thread.post(on_active=ENQUEUE)
    await run_store.cancel_run(redis, settings, cancelled)
    await thread.post(on_active=ENQUEUE)
    await thread_deletion.delete_thread(redis, settings, IDENTITY)

    assert await left_keys(redis) == set()
    assert await redis.zcard(keys.ACTIVE) == 0
    with pytest.raises(ThreadNotFound):
        await thread.read()
    with pytest.raises(ThreadNotFound):
        await thread_deletion.delete_thread(redis, settings, IDENTITY)
    with pytest.raises(RunNotFound):
        await thread.run(active)


async def test_thread_whose_active_run_is_lost_can_be_deleted(thread: ThreadByHand) -> None:
    run_id = await thread.post()
    await thread.redis.delete(*keys.all_of_run(run_id))
    await thread.redis.zrem(keys.ACTIVE, run_id)
    async with asyncio.timeout(10):
        await thread_deletion.delete_thread(thread.redis, thread.settings, IDENTITY)

    assert await left_keys(thread.redis) == set()


async def test_sweep_completes_a_deletion_that_was_cut(thread: ThreadByHand) -> None:
    """Until then the thread takes no run; then its id stands for another one."""
    await thread.post()
    await thread.post(on_active=ENQUEUE)
    life_id, run_ids = await thread_scripts.drop(thread.redis, KEY, "t", thread_store.times_of(thread.settings))
    assert len(run_ids) == 2
    with pytest.raises(ThreadDeleting):
        await thread.post()

    await sweep(thread.redis, thread.settings)
    assert await left_keys(thread.redis) == set()
    again = await thread.post()
    assert (await thread.read()).life_id != life_id
    await thread.end(again)


async def test_late_deletion_leaves_the_next_thread_alone(thread: ThreadByHand) -> None:
    times = thread_store.times_of(thread.settings)
    await thread.post()
    life_id, _ = await thread_scripts.drop(thread.redis, KEY, "t", times)
    await sweep(thread.redis, thread.settings)
    now = await thread.post()

    assert not await thread_scripts.forget(thread.redis, KEY, "t", times, life_id)
    assert (await thread.read()).active_run_id == now
    await thread.end(now)


async def test_deletion_races_with_posts(thread: ThreadByHand) -> None:
    """Whatever the order, no run of a deleted thread is left, and each run that was accepted afterwards is in a new one."""
    redis, settings = thread.redis, thread.settings
    for _ in range(10):
        await thread.post(on_active=ENQUEUE)
        await asyncio.gather(
            thread_deletion.delete_thread(redis, settings, IDENTITY),
            thread_deletion.delete_thread(redis, settings, IDENTITY),
            *(thread.post(on_active=ENQUEUE) for _ in range(5)),
            return_exceptions=True,
        )
        if await redis.exists(KEY):
            read = await thread.read()
            assert not read.is_deleting
            assert read.active_run_id
            await thread_deletion.delete_thread(redis, settings, IDENTITY)
        assert await left_keys(redis) == set()
