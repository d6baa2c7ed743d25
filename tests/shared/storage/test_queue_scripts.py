"""The scripts of the queue and its leases against a real server."""

import pytest
from redis.asyncio import Redis

from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.run_scripts import Claim, LogEntry
from tests.support.waiting import until

LIFE_S = 600


@pytest.fixture
async def queued(redis: Redis) -> str:
    run_id = ids.new_run_id()
    await run_scripts.create(
        redis, run_id, tenant="t", model="m", request=b"{}", event="run_queued", data=b"{}", life_s=LIFE_S
    )
    assert await queue_scripts.requeue(redis, run_id, b"{}")
    return run_id


async def claim(redis: Redis, run_id: str, worker: str = "w1") -> Claim:
    claimed = await run_scripts.claim(redis, run_id, worker)
    assert claimed is not None
    return claimed


async def test_acquired_run_is_not_due_until_its_lease_expires(redis: Redis, queued: str) -> None:
    assert (await queue_scripts.list_due(redis, 10)).run_ids == [queued]
    assert await queue_scripts.acquire(redis, queued, "t1", lease_s=0.2)
    due = await queue_scripts.list_due(redis, 10)
    assert due.run_ids == []
    assert 0 < due.next_ms <= 200
    assert not await queue_scripts.acquire(redis, queued, "t2", lease_s=1)

    await until(lambda: queue_scripts.acquire(redis, queued, "t2", lease_s=1))
    assert not await queue_scripts.acquire(redis, queued, "t1", lease_s=1), "the first holder has lost it"


async def test_repeated_acquire_of_the_holder_succeeds(redis: Redis, queued: str) -> None:
    assert await queue_scripts.acquire(redis, queued, "t1", lease_s=5)
    assert await queue_scripts.acquire(redis, queued, "t1", lease_s=5), "its first reply was lost"


async def test_renewal_answers_with_cancel_and_last_id(redis: Redis, queued: str) -> None:
    await queue_scripts.acquire(redis, queued, "t1", lease_s=5)
    mine = await claim(redis, queued)
    await run_scripts.cancel(redis, queued)

    renewed = await queue_scripts.renew(redis, queued, token="t1", attempt=mine.attempt, lease_s=5)

    assert renewed == queue_scripts.Renewal(cancel=True, last_id=EventId(0, 1))


async def test_expired_lease_is_renewed_by_its_holder(redis: Redis, queued: str) -> None:
    """Redis was away for longer than the lease, and no worker has acquired the run since."""
    await queue_scripts.acquire(redis, queued, "t1", lease_s=5)
    mine = await claim(redis, queued)
    await redis.delete(keys.lease(queued))

    assert await queue_scripts.renew(redis, queued, token="t1", attempt=mine.attempt, lease_s=5)
    assert not await queue_scripts.acquire(redis, queued, "t2", lease_s=5)


async def test_renewal_of_a_fenced_attempt_is_refused(redis: Redis, queued: str) -> None:
    await queue_scripts.acquire(redis, queued, "t1", lease_s=5)
    old = await claim(redis, queued)
    await claim(redis, queued, "w2")

    assert await queue_scripts.renew(redis, queued, token="t1", attempt=old.attempt, lease_s=5) is None


async def test_keys_of_an_active_run_have_no_ttl_and_those_of_an_accounted_one_do(redis: Redis) -> None:
    """Also the stream of a stage that a damaged list does not name."""
    run_id, reserved = ids.new_run_id(), keys.idempotency("t", "k")
    await run_scripts.create(
        redis, run_id, tenant="t", model="m", request=b"{}", event="run_queued", data=b"{}", life_s=LIFE_S,
        job=b"{}", idempotency=reserved, reservation=f"{run_id} digest",
    )  # fmt: skip
    await queue_scripts.requeue(redis, run_id, b"{}")
    await queue_scripts.acquire(redis, run_id, "t1", lease_s=5)
    mine = await claim(redis, run_id)
    await run_scripts.append(
        redis, run_id, attempt=mine.attempt, before=mine.last_id, entries=[LogEntry("extraction", "a", b"{}")],
        message=b"",
    )  # fmt: skip
    await queue_scripts.renew(redis, run_id, token="t1", attempt=mine.attempt, lease_s=5)
    run_keys = [key async for key in redis.scan_iter(f"{keys.run(run_id)}*")] + [keys.job(run_id), reserved]
    assert len(run_keys) == 6
    assert {await redis.ttl(key) for key in run_keys} == {-1}

    await redis.lrem(keys.stages(run_id), 0, "extraction")
    ended = queue_scripts.EndedRun("succeeded", at=mine.now)
    for removed in (True, False):
        assert removed == await queue_scripts.account(
            redis, run_id, tenant="t", ended=ended, retention_s=50, life_s=60,
            run_keys=keys.all_of_run(run_id, reserved),
        )  # fmt: skip
        assert all([40 < await redis.ttl(key) <= 50 for key in run_keys])


async def test_ended_run_gets_no_job(redis: Redis, queued: str) -> None:
    mine = await claim(redis, queued)
    await run_scripts.append(
        redis, queued, attempt=mine.attempt, before=mine.last_id, entries=[LogEntry("run", "done", b"{}")], message=b"",
        end=run_scripts.TerminalState(RunStatus.SUCCEEDED, 60), stage_ids=["run"],
    )  # fmt: skip
    await redis.delete(keys.QUEUE, keys.job(queued))

    for run_id in (queued, ids.new_run_id()):
        assert not await queue_scripts.requeue(redis, run_id, b"{}")
        assert not await redis.exists(keys.QUEUE, keys.job(run_id))


async def test_released_run_is_due_names_no_worker_and_wakes_one(redis: Redis, queued: str) -> None:
    await queue_scripts.acquire(redis, queued, "t1", lease_s=5)
    mine = await claim(redis, queued)
    await redis.delete(keys.WAKEUP)

    assert await queue_scripts.release(redis, queued, token="t1", attempt=mine.attempt)

    assert (await queue_scripts.list_due(redis, 10)).run_ids == [queued]
    assert await redis.llen(keys.WAKEUP) == 1
    assert await redis.hget(keys.run(queued), "worker") == b""
    assert (await claim(redis, queued, "w2")).tries == 0, "giving back costs no try"


async def test_late_worker_cannot_release_or_finish_a_run_of_another(redis: Redis, queued: str) -> None:
    """A worker that was frozen at its job's end deletes nothing of the new holder's."""
    await queue_scripts.acquire(redis, queued, "t1", lease_s=5)
    old = await claim(redis, queued)
    await redis.delete(keys.lease(queued))
    await redis.zadd(keys.QUEUE, {queued: 0})
    await queue_scripts.acquire(redis, queued, "t2", lease_s=5)
    await claim(redis, queued, "w2")

    assert not await queue_scripts.finish(redis, queued, "t1")
    assert not await queue_scripts.release(redis, queued, token="t1", attempt=old.attempt)
    assert await redis.get(keys.lease(queued)) == b"t2"
    assert await redis.exists(keys.job(queued))
    assert await queue_scripts.finish(redis, queued, "t2")
    assert not await redis.exists(keys.lease(queued), keys.job(queued), keys.QUEUE)


async def test_wakeup_list_is_bounded(redis: Redis) -> None:
    run_id = ids.new_run_id()
    await run_scripts.create(
        redis, run_id, tenant="t", model="m", request=b"{}", event="run_queued", data=b"{}", life_s=LIFE_S
    )
    for _ in range(keys.WAKEUPS_MAX + 20):
        await queue_scripts.requeue(redis, run_id, b"{}")
        await redis.delete(keys.QUEUE)

    assert await redis.llen(keys.WAKEUP) == keys.WAKEUPS_MAX
