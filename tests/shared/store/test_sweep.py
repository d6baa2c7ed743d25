"""The sweep against a real server: no run stays stranded, and a bad record affects no other run."""

import asyncio

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.partitions import TAGS
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import RunNotFound
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.store import parking, run_list, run_store
from stagebus.shared.store import sweep as sweep_module
from stagebus.shared.store.parking import Seen
from stagebus.shared.store.sweep import sweep, sweep_forever
from tests.support.redis_calls import calls
from tests.support.waiting import until_equal


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


async def hold(redis: Redis, run_id: str, *, due_ms_ago: float = 0, has_lease: bool = False) -> int:
    """Lets a worker claim the run; without a lease, it died that long ago."""
    claim = await run_scripts.claim(redis, run_id, "w")
    assert claim is not None
    await redis.zadd(keys.QUEUE, {run_id: claim.now - due_ms_ago})
    if has_lease:
        await redis.set(keys.lease(run_id), "token", px=60_000)
    return claim.attempt


def overdue_ms(settings: Settings) -> float:
    return settings.queue_wait_max_s * 1000 + 1000


async def code_of(redis: Redis, run_id: str) -> str | None:
    run = await run_store.get_run(redis, run_id)
    return run.error and run.error["code"]


async def test_sweep_leaves_a_held_run_to_its_worker(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)
    await hold(redis, run_id, due_ms_ago=overdue_ms(settings), has_lease=True)
    await run_scripts.cancel(redis, run_id)
    await sweep(redis, settings)

    assert (await run_store.get_run(redis, run_id)).status is RunStatus.RUNNING


async def test_sweep_ends_a_cancelled_run_whose_worker_died(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)
    await hold(redis, run_id)
    await run_scripts.cancel(redis, run_id)
    await sweep(redis, settings)

    assert (await run_store.get_run(redis, run_id)).status is RunStatus.CANCELLED
    assert not await is_active(redis, run_id)


async def test_sweep_ends_an_overdue_run_whose_worker_died(redis: Redis, settings: Settings) -> None:
    hasty = settings.model_copy(update={"lease_s": 0.3})
    dead, young = await create(redis, settings), await create(redis, settings)
    await hold(redis, dead, due_ms_ago=overdue_ms(settings))
    await hold(redis, young, due_ms_ago=overdue_ms(settings) - 60_000)
    await sweep(redis, hasty)

    assert await code_of(redis, dead) == "queue_timeout"
    assert (await run_store.get_run(redis, young)).status is RunStatus.RUNNING


async def test_sweep_after_an_outage_leaves_time_to_renew_expired_leases(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis was away for longer than a run may wait; the run's worker lives and renews its lease a moment later."""
    run_id = await create(redis, settings)
    attempt = await hold(redis, run_id, due_ms_ago=overdue_ms(settings))
    pausing, paused = asyncio.Event(), asyncio.Event()

    async def pause(seconds: float) -> None:
        assert seconds == settings.lease_s
        pausing.set()
        await paused.wait()

    monkeypatch.setattr(sweep_module, "pause", pause)
    sweeping = asyncio.create_task(sweep(redis, settings))
    await asyncio.wait_for(pausing.wait(), 5)
    assert await queue_scripts.renew(redis, run_id, token="token", attempt=attempt, lease_s=60)
    paused.set()
    await sweeping

    assert (await run_store.get_run(redis, run_id)).status is RunStatus.RUNNING


async def test_sweep_ends_a_parked_run_whose_approval_expired_long_ago(redis: Redis, settings: Settings) -> None:
    expired, waiting = await create(redis, settings), await create(redis, settings)
    for run_id, due_ms_ago in ((expired, overdue_ms(settings)), (waiting, 0)):
        attempt = await hold(redis, run_id)
        now_ms = (await redis.time())[0] * 1000
        assert await parking.park(
            redis, run_id, token="", attempt=attempt, due_ms=round(now_ms - due_ms_ago), seen=Seen()
        )
    await sweep(redis, settings)

    assert await code_of(redis, expired) == "queue_timeout"
    assert (await run_store.get_run(redis, waiting)).status is RunStatus.PARKED


async def test_sweep_ends_a_started_run_that_was_throttled_for_too_long(redis: Redis, settings: Settings) -> None:
    """Its score does not say since when it waits; the time of its last claim is known."""
    old, young = await create(redis, settings), await create(redis, settings)
    for run_id in (old, young):
        await hold(redis, run_id)
        await redis.zadd(keys.QUEUE, {run_id: keys.THROTTLED_SCORE})
        await redis.hset(keys.run(run_id), "worker", "")
    wait_s = settings.queue_wait_max_s + settings.run_timeout_max_s + settings.call_wait_max_s
    await redis.hincrby(keys.run(old), "created_at", -round(wait_s * 1000) - 1000)
    await redis.hincrby(keys.run(young), "created_at", -round(wait_s * 1000) + 60_000)
    await sweep(redis, settings)

    assert await code_of(redis, old) == "queue_timeout"
    assert await is_active(redis, young)


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
    assert sum((after - before).values()) < 20 * 3 + 10 + len(TAGS), "one look at the busy threads of each partition"


@pytest.mark.parametrize("user", ["", "ada"])
async def test_run_outlives_every_ttl_while_no_process_is_alive(redis: Redis, settings: Settings, user: str) -> None:
    """The lists of its tenant and its user expire; the next sweep puts the run there again."""
    short = settings.model_copy(update={"live_ttl_s": 0.1, "retention_s": 0.1})
    run_id = await run_store.create_run(
        redis, short, tenant="t", user=user, model="m", request={"a": 1}, idempotency_key="mine"
    )
    lists = [keys.runs("t"), keys.runs("t", user), keys.active_of_tenant("t"), keys.VIRTUAL_TIME]
    await until_equal(lambda: redis.exists(*lists), 0)
    await sweep(redis, short)

    for owner in (RunOwner("t"), RunOwner("t", user or None)):
        assert [run.run_id for run in (await run_list.list_runs(redis, owner, 10)).runs] == [run_id]
    assert await redis.zrange(keys.active_of_tenant("t"), 0, -1) == [run_id.encode()]
    assert await redis.exists(*keys.all_of_run(run_id, keys.idempotency("t", "mine", user))) == 5
    assert (await queue_scripts.list_due(redis, 10)).run_ids == [run_id]


async def test_sweep_removes_the_ttls_of_an_older_versions_run(redis: Redis, settings: Settings) -> None:
    run_id = await run_store.create_run(
        redis, settings, tenant="t", model="m", request={"a": 1}, idempotency_key="mine"
    )
    run_keys = keys.all_of_run(run_id, keys.idempotency("t", "mine"))
    for key in run_keys:
        await redis.expire(key, 60)
    await sweep(redis, settings)

    assert {await redis.ttl(key) for key in run_keys} == {-1, -2}


async def test_keys_of_a_run_that_ended_keep_their_ttl(redis: Redis, settings: Settings) -> None:
    """It ended between the sweep's look at it and the repair."""
    run_id = await create(redis, settings)
    await run_store.cancel_run(redis, settings, run_id)
    for score in (None, 1):
        if score:
            await redis.zadd(keys.ACTIVE, {run_id: score})
        assert not await queue_scripts.keep_active(
            redis, run_id, tenant="t", life_s=60, other_keys=keys.all_of_run(run_id)
        )
        assert 0 < await redis.ttl(keys.run(run_id)) <= settings.retention_s
        assert not await redis.exists(keys.active_of_tenant("t"))


async def test_ended_run_is_accounted_and_expires_after_a_crash_before(redis: Redis, settings: Settings) -> None:
    run_id = await run_store.create_run(
        redis, settings, tenant="t", model="m", request={"a": 1}, idempotency_key="mine"
    )
    claim = await run_scripts.claim(redis, run_id, "")
    assert claim is not None
    done = run_scripts.TerminalState(RunStatus.SUCCEEDED, settings.retention_s)
    await run_scripts.append(
        redis, run_id, attempt=claim.attempt, before=claim.last_id, message=b"",
        entries=[run_scripts.LogEntry("run", "done", b"{}")], end=done, stage_ids=["run"],
    )  # fmt: skip
    await sweep(redis, settings)

    run_keys = keys.all_of_run(run_id, keys.idempotency("t", "mine"))
    assert all([0 < await redis.ttl(key) <= settings.retention_s for key in run_keys if await redis.exists(key)])
    assert not await is_active(redis, run_id)


async def test_creation_trims_old_entries_but_no_active_run(redis: Redis, settings: Settings) -> None:
    """More of them are active than one creation looks at."""
    old = [f"01J9ZK3V7Q8E5W2R4T6Y8A{n:04d}" for n in range(300)]
    active, gone = old[:200], old[200:]
    for key, run_ids in ((keys.ACTIVE, active), (keys.runs("t"), old), (keys.active_of_tenant("t"), old)):
        await redis.zadd(key, {run_id: n for n, run_id in enumerate(run_ids)})

    async def create_and_count() -> int:
        await create(redis, settings)
        return len(set(gone) & {m.decode() for m in await redis.zrange(keys.runs("t"), 0, -1)})

    await until_equal(create_and_count, 0)
    for key in (keys.runs("t"), keys.active_of_tenant("t")):
        assert set(active) <= {member.decode() for member in await redis.zrange(key, 0, -1)}
    await redis.zrem(keys.ACTIVE, *active)


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

    async def fail(*_: object) -> None:
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


async def test_limits_without_effect_are_logged_once(
    redis: Redis, settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.hset(
        keys.LIMITS,
        mapping={"t:runs_queued": "none", "t:tokens": "5", "t:runs_running": "7", "u:requests_per_s": "0.5"},
    )
    often = settings.model_copy(update={"sweep_s": 0.01})
    swept = 0

    async def count(*_: object) -> None:
        nonlocal swept
        swept += 1

    monkeypatch.setattr(sweep_module, "sweep", count)
    sweeping = asyncio.create_task(sweep_forever(redis, often, "p"))
    await until_equal(lambda: swept >= 3, True)
    await cancel_and_wait(sweeping)

    unknown, invalid = sorted(caplog.messages)
    assert unknown.startswith("sb:limits has 't:tokens', which is not a limit; write <tenant>:requests_per_s|")
    assert invalid.startswith("sb:limits has b'none' for 't:runs_queued', which is not a number")
