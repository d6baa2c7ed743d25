"""The sweep's part for threads: nothing waits for a run that is gone, and what is in use does not expire."""

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import ToolCompletionChunk
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.runtime.clock import wall_ms
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.storage.run_scripts import LogEntry
from stagebus.shared.store import run_store, thread_sweep
from stagebus.shared.store.sweep import sweep
from tests.support.redis_calls import calls
from tests.support.runs_by_hand import chunk
from tests.support.threads_by_hand import ENQUEUE, IDENTITY, INTERRUPT, KEY, ThreadByHand
from tests.support.waiting import until_equal


@pytest.fixture
def thread(redis: Redis, settings: Settings) -> ThreadByHand:
    return ThreadByHand(redis, settings)


async def lose(redis: Redis, run_id: str) -> None:
    """Deletes a run as somebody who deletes keys by hand."""
    await redis.delete(*keys.all_of_run(run_id))
    await redis.zrem(keys.ACTIVE, run_id)


async def test_sweep_starts_what_waits_for_a_run_that_is_gone(thread: ThreadByHand) -> None:
    """Also if several runs in a row are gone."""
    first, second, third = [await thread.post(on_active=ENQUEUE) for _ in range(3)]
    await lose(thread.redis, first)
    await lose(thread.redis, second)
    await sweep(thread.redis, thread.settings)
    read = await thread.read()

    assert (read.active_run_id, read.waiting) == (third, ())
    assert [turn.status for turn in read.turns] == ["lost", "lost", ""]
    assert await thread.due() == {third}
    await thread.end(third)


async def test_turn_of_a_lost_run_keeps_what_its_log_says(thread: ThreadByHand) -> None:
    """Somebody deleted the record alone."""
    run_id = await thread.post()
    claim = await thread.work(run_id)
    said = LogEntry("extraction", ToolCompletionChunk.event, chunk("so far").data())
    await run_scripts.append(
        thread.redis, run_id, attempt=claim.attempt, before=claim.last_id, entries=[said], message=b""
    )
    await thread.redis.delete(keys.run(run_id))
    await sweep(thread.redis, thread.settings)
    (turn,) = (await thread.read(with_messages=True)).turns
    await lose(thread.redis, run_id)

    assert turn.status == "lost"
    assert turn.messages_out[0] == {"role": "assistant", "content": "so far", "partial": True}


async def test_sweep_starts_the_first_waiting_run_of_an_idle_thread(thread: ThreadByHand) -> None:
    first = await thread.post()
    second = await thread.post(on_active=ENQUEUE)
    await thread.redis.hset(KEY, "active", "")
    await sweep(thread.redis, thread.settings)

    assert (await thread.read()).active_run_id == second
    await thread.end(second)
    await thread.end(first)


async def test_sweep_closes_the_turn_of_a_run_that_ended_past_its_thread(thread: ThreadByHand) -> None:
    first = await thread.post()
    second = await thread.post(on_active=ENQUEUE)
    await thread.redis.hset(keys.run(first), mapping={"finished_at": wall_ms(), "status": "failed", "last_id": "7-3"})
    await sweep(thread.redis, thread.settings)
    read = await thread.read()

    assert (read.active_run_id, read.turns[0].status, read.turns[0].last_id) == (second, "failed", "7-3")
    await thread.end(second)


async def test_sweep_forgets_threads_that_are_gone(thread: ThreadByHand) -> None:
    run_id = await thread.post()
    await thread.redis.delete(KEY)
    await sweep(thread.redis, thread.settings)

    assert not await thread.redis.smembers(keys.threads_busy(IDENTITY.tag))
    await thread.end(run_id)


async def test_sweep_keeps_a_thread_in_use_from_expiring(thread: ThreadByHand) -> None:
    """A run may be parked for longer than the thread's retention."""
    run_id = await thread.post()
    await thread.post(on_active=ENQUEUE)
    thread_keys = [key.decode() for key in await thread.redis.keys("sb:thread:*")]
    for key in thread_keys:
        await thread.redis.expire(key, 60)
    await sweep(thread.redis, thread.settings)

    assert len(thread_keys) == 5, "the thread, its turns, messages, order and waiting runs"
    assert min([await thread.redis.ttl(key) for key in thread_keys]) > 60
    assert run_id
    await thread.end_all()


async def test_waiting_run_has_no_time_limit_and_an_active_one_has_it_from_its_turn_on(
    thread: ThreadByHand, settings: Settings
) -> None:
    first = await thread.post()
    second = await thread.post(on_active=ENQUEUE)
    await thread.work(first)
    hasty = settings.model_copy(update={"queue_wait_max_s": 0.0})
    await sweep(thread.redis, hasty)
    assert (await thread.run(second)).status is RunStatus.QUEUED, "it waits for its turn"

    await thread.end(first)
    await sweep(thread.redis, settings.model_copy(update={"queue_wait_max_s": 60.0}))
    await thread.redis.hset(keys.run(second), "created_at", 1)
    await sweep(thread.redis, settings.model_copy(update={"queue_wait_max_s": 60.0}))
    assert (await thread.run(second)).status is RunStatus.QUEUED, "its turn has just come"
    await sweep(thread.redis, hasty)
    run = await thread.run(second)
    assert (run.status, (run.error or {})["code"]) == (RunStatus.FAILED, "queue_timeout")
    assert (await thread.read()).active_run_id == ""


async def test_sweep_does_not_make_a_waiting_run_due(thread: ThreadByHand) -> None:
    first = await thread.post()
    second = await thread.post(on_active=ENQUEUE)
    await thread.redis.zrem(keys.QUEUE, second)
    await thread.redis.delete(keys.job(second))
    await sweep(thread.redis, thread.settings)

    assert await thread.redis.zscore(keys.QUEUE, second) == keys.THROTTLED_SCORE
    assert await thread.redis.exists(keys.job(second))
    await thread.end(first)
    assert second in await thread.due()
    await thread.end(second)


async def test_sweep_ends_what_an_interrupt_cancelled(thread: ThreadByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway died after the script: the active run waits in the queue, an older interrupt in the thread."""

    async def die(*_: object) -> None:
        return None

    first = await thread.post()
    monkeypatch.setattr(run_store, "_end_interrupted", die)
    older = await thread.post(on_active=INTERRUPT)
    newer = await thread.post(on_active=INTERRUPT)
    await sweep(thread.redis, thread.settings)

    assert [(await thread.run(run_id)).status for run_id in (first, older)] == [RunStatus.CANCELLED] * 2
    assert (await thread.read()).active_run_id == newer
    await thread.end(newer)


async def test_idle_threads_cost_the_sweep_nothing(thread: ThreadByHand) -> None:
    await thread.end(await thread.post())
    before = await calls(thread.redis)
    await sweep(thread.redis, thread.settings)
    used = await calls(thread.redis) - before

    assert used["evalsha"] == used["hmget"] == 0


async def test_sweep_looks_at_a_bounded_number_of_busy_threads_and_at_each_in_time(
    thread: ThreadByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parked runs keep their threads busy for weeks."""
    monkeypatch.setattr(thread_sweep, "LOOKED_AT_MAX", 2)
    busy = keys.threads_busy(IDENTITY.tag)
    gone = [f"sb:thread:{{{IDENTITY.tag}}}:{n}" for n in range(10)]
    await thread.redis.sadd(busy, *gone)
    await sweep(thread.redis, thread.settings)

    assert await thread.redis.scard(busy) == 8

    async def sweep_and_count() -> int:
        await sweep(thread.redis, thread.settings)
        return int(await thread.redis.scard(busy))

    await until_equal(sweep_and_count, 0)
