"""Fair queueing among tenants, and the limits on a tenant's queued runs, running runs and tokens per day."""

import asyncio
from unittest.mock import ANY

import pytest
from redis.asyncio import Redis

from stagebus.shared.access_errors import TokensUsedUp, TooManyRuns
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.limits import TenantLimits, find_bad_limits
from stagebus.shared.storage import keys, queue_scripts
from stagebus.shared.store import quotas, run_store
from stagebus.shared.store.sweep import sweep
from tests.support import runs_by_hand
from tests.support.waiting import until

LEASE_S = 60
DAY_MS = 86_400_000
MARGIN_MS = 10_000


async def make(redis: Redis, settings: Settings, tenant: str, count: int = 1) -> list[str]:
    return [
        await run_store.create_run(redis, settings, tenant=tenant, model="m", request={"timeout_s": 60})
        for _ in range(count)
    ]


async def take_next(redis: Redis, running_max: int = 0) -> str | None:
    """Acquires the first due run that it can, as a worker with one free slot does."""
    while run_ids := (await queue_scripts.list_due(redis, 1)).run_ids:
        if await queue_scripts.acquire(redis, run_ids[0], f"token of {run_ids[0]}", LEASE_S, running_max):
            return run_ids[0]
    return None


async def give_back(redis: Redis, run_id: str) -> None:
    assert await queue_scripts.release(redis, run_id, token=f"token of {run_id}", attempt=None)


async def end(redis: Redis, settings: Settings, run_id: str) -> None:
    """Ends a run as a worker does: terminal event, accounting, end of the job."""
    await run_store.cancel_run(redis, settings, run_id)
    await queue_scripts.finish(redis, run_id, f"token of {run_id}")


# --- fair queueing -------------------------------------------------------------------


async def test_single_run_waits_for_at_most_one_run_of_another_tenant(redis: Redis, settings: Settings) -> None:
    many = await make(redis, settings, "many", 20)
    assert [await take_next(redis) for _ in range(5)] == many[:5]
    (single,) = await make(redis, settings, "single")

    assert single in [await take_next(redis), await take_next(redis)]


async def test_tenants_alternate_and_each_tenant_s_runs_keep_their_order(redis: Redis, settings: Settings) -> None:
    first = await make(redis, settings, "first", 6)
    await take_next(redis)
    second = await make(redis, settings, "second", 6)
    taken = [await take_next(redis) for _ in range(11)]

    assert [run_id for run_id in taken if run_id in first] == first[1:]
    assert [run_id for run_id in taken if run_id in second] == second
    assert 2 <= len([run_id for run_id in taken[:6] if run_id in second]) <= 4


async def test_past_usage_does_not_put_a_tenant_behind_a_newcomer(redis: Redis, settings: Settings) -> None:
    await make(redis, settings, "greedy", 10)
    while await take_next(redis):
        pass
    newcomer = await make(redis, settings, "newcomer", 10)
    (greedy,) = await make(redis, settings, "greedy")

    assert greedy in [await take_next(redis), await take_next(redis), await take_next(redis)]
    assert await take_next(redis) in newcomer


async def test_started_run_is_acquired_before_new_runs(redis: Redis, settings: Settings) -> None:
    """A run that was given back, or whose worker died, already has viewers."""
    begun = await take_next(redis) if await make(redis, settings, "t") else None
    assert begun
    await make(redis, settings, "other", 5)
    await give_back(redis, begun)

    assert await take_next(redis) == begun


async def test_runs_are_acquired_after_the_virtual_times_expired(redis: Redis, settings: Settings) -> None:
    """The keys of virtual time expire when no run was created for longer than a run lives."""
    run_ids = await make(redis, settings, "t", 3)
    await redis.delete(keys.VIRTUAL_TIME, keys.tenant_virtual_time("t"))
    run_ids += await make(redis, settings, "t", 3)

    assert {await take_next(redis) for _ in range(6)} == set(run_ids)


# --- running -----------------------------------------------------------------


async def test_running_limit_throttles_a_tenant_and_lets_others_pass(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"tenant_runs_running": 2})
    held = await make(redis, limited, "many", 5)
    (other,) = await make(redis, limited, "other")
    taken = [await take_next(redis, 2) for _ in range(4)]

    assert set(taken) == {*held[:2], other, None}
    assert (await queue_scripts.list_due(redis, 10)).run_ids == [], "throttled runs are not polled"


async def test_end_of_a_run_admits_the_next_throttled_run(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"tenant_runs_running": 1})
    run_ids = await make(redis, limited, "t", 4)
    taken = []
    while run_id := await take_next(redis, 1):
        taken.append(run_id)
        assert await take_next(redis, 1) is None
        await redis.delete(keys.WAKEUP)
        await end(redis, limited, run_id)
        assert await redis.llen(keys.WAKEUP) == (len(taken) < len(run_ids)), "a worker is woken"

    assert sorted(taken) == sorted(run_ids)
    assert await redis.exists(keys.RUNNING, keys.THROTTLED, keys.QUEUE) == 0


async def test_run_that_changes_its_worker_still_counts_as_running(redis: Redis, settings: Settings) -> None:
    """The first worker gives the run back and then admits the next one; another worker may acquire it in between."""
    first, second = await make(redis, settings, "t", 2)
    assert [await take_next(redis, 1), await take_next(redis, 1)] == [first, None]
    await give_back(redis, first)
    assert await take_next(redis, 1) == first

    assert await queue_scripts.admit(redis, first, 1) == 0
    assert await take_next(redis, 1) is None
    assert await redis.zrange(keys.RUNNING, 0, -1) == [f"t {first}".encode()]
    assert await redis.zrange(keys.THROTTLED, 0, -1) == [f"t {second}".encode()]


async def test_tenant_s_own_running_limit_overrides_the_default(redis: Redis, settings: Settings) -> None:
    await redis.hset(keys.LIMITS, "t:runs_running", 1)
    run_ids = await make(redis, settings, "t", 3)
    assert [await take_next(redis), await take_next(redis)] == [run_ids[0], None]
    await redis.hset(keys.LIMITS, "t:runs_running", 0)
    await sweep(redis, settings)

    assert {await take_next(redis), await take_next(redis)} == set(run_ids[1:])


async def test_cancelled_throttled_run_leaves_no_entry(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"tenant_runs_running": 1})
    first, second = await make(redis, limited, "t", 2)
    assert [await take_next(redis, 1), await take_next(redis, 1)] == [first, None]
    await run_store.cancel_run(redis, limited, second)

    assert await redis.zcard(keys.THROTTLED) == 0
    assert await take_next(redis, 1) == second, "a worker removes its job from the queue"


async def test_sweep_admits_runs_that_a_dead_process_did_not_admit(redis: Redis, settings: Settings) -> None:
    """Runs that ended, were given back or lost their record do not count as running for ever."""
    limited = settings.model_copy(update={"tenant_runs_running": 3})
    run_ids = await make(redis, limited, "t", 6)
    ended, given_back, gone = [await take_next(redis, 3) for _ in range(3)]
    assert ended
    assert given_back
    assert gone
    assert await take_next(redis, 3) is None
    await run_store.end_unheld(redis, limited, ended, runs_by_hand.Done())
    await redis.zadd(keys.RUNNING, {f"t {ended}": 0})
    await queue_scripts.release(redis, given_back, token=f"token of {given_back}", attempt=None, delay_s=LEASE_S)
    await redis.delete(*keys.all_of_run(gone), keys.lease(gone))
    await redis.zrem(keys.ACTIVE, gone)
    await sweep(redis, limited)

    assert {await take_next(redis, 3) for _ in range(3)} == set(run_ids[3:])


# --- queued runs and tokens --------------------------------------------------------


async def test_queued_runs_of_a_tenant_are_limited(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"tenant_runs_queued": 2})
    run_ids = await make(redis, limited, "t", 2)
    before = await redis.dbsize()
    with pytest.raises(TooManyRuns):
        await make(redis, limited, "t")

    assert await redis.dbsize() == before, "a refused run leaves no key"
    await make(redis, limited, "other")
    assert await take_next(redis) in run_ids
    await make(redis, limited, "t"), "a started run no longer counts as queued"


async def test_idempotency_key_of_a_refused_run_is_free_for_another_body(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"tenant_runs_queued": 1})
    (waiting,) = await make(redis, limited, "t")
    with pytest.raises(TooManyRuns):
        await run_store.create_run(
            redis, limited, tenant="t", model="m", request={"timeout_s": 60}, idempotency_key="k"
        )
    assert not await redis.exists(keys.idempotency("t", "k"))
    await run_store.cancel_run(redis, limited, waiting)

    assert await run_store.create_run(
        redis, limited, tenant="t", model="m", request={"timeout_s": 61}, idempotency_key="k"
    )
    assert await redis.exists(keys.idempotency("t", "k"))


async def ms_left_today(redis: Redis) -> float:
    """Returns the time until midnight UTC by Redis's clock, in ms."""
    seconds, microseconds = await redis.time()
    return DAY_MS - (seconds * 1000 + microseconds // 1000) % DAY_MS


async def test_token_limit_counts_each_run_once_and_resets_at_midnight(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"tenant_tokens_per_day": 100})

    async def is_midnight_far() -> bool:
        return await ms_left_today(redis) > MARGIN_MS

    await until(is_midnight_far, timeout_s=MARGIN_MS / 1000 + 5)  # the test must not span two days
    (run_id,) = await make(redis, limited, "t")
    await redis.hset(keys.run(run_id), "usage", b'{"total_tokens":100}')
    await redis.hset(keys.run(run_id), "finished_at", (await redis.time())[0] * 1000)
    for _ in range(2):
        await run_store.finalize(redis, limited, run_id)
    assert await redis.hget(keys.tokens("t"), "used") == await redis.hget(keys.TOTALS, "tokens") == b"100"

    before_ms = await ms_left_today(redis)
    with pytest.raises(TokensUsedUp) as refused:
        await make(redis, limited, "t")
    after_ms = await ms_left_today(redis)

    assert after_ms <= round(refused.value.retry_after_s * 1000) <= before_ms
    assert str(refused.value).startswith("this tenant has used its 100 tokens of the day")
    await make(redis, limited, "other")
    await redis.hincrby(keys.tokens("t"), "day", -1)
    assert await make(redis, limited, "t"), "yesterday's tokens no longer count"


async def reserved(redis: Redis, tenant: str = "t") -> int:
    return int(await redis.hget(keys.tokens(tenant), "reserved") or 0)


async def test_runs_created_at_once_cannot_use_the_same_tokens(redis: Redis, settings: Settings) -> None:
    """The last one gets what is left; the others are refused and told to try again soon, not at midnight."""
    limited = settings.model_copy(update={"tenant_tokens_per_day": 1000})
    created = await asyncio.gather(
        *(
            run_store.create_run(redis, limited, tenant="t", model="m", request={"timeout_s": 60}, tokens=400)
            for _ in range(10)
        ),
        return_exceptions=True,
    )
    run_ids = [run_id for run_id in created if isinstance(run_id, str)]
    refused = [fault for fault in created if isinstance(fault, TokensUsedUp)]

    assert [len(run_ids), len(refused)] == [3, 7]
    assert {fault.retry_after_s for fault in refused} == {TokensUsedUp.retry_after_s}
    assert "reserved" in str(refused[0])
    assert await reserved(redis) == sum(map(int, await redis.hvals(keys.RESERVED))) == 1000
    assert await redis.pttl(keys.tokens("t")) > 0

    await end(redis, limited, run_ids[0])
    assert await reserved(redis) < 1000
    assert await run_store.create_run(redis, limited, tenant="t", model="m", request={"timeout_s": 60}, tokens=400)


@pytest.mark.parametrize("way", ["cancelled", "timed out in the queue", "record lost"])
async def test_reservation_is_settled_whatever_way_the_run_ends(redis: Redis, settings: Settings, way: str) -> None:
    kept = await run_store.create_run(redis, settings, tenant="t", model="m", request={"timeout_s": 60}, tokens=5)
    run_id = await run_store.create_run(redis, settings, tenant="t", model="m", request={"timeout_s": 60}, tokens=400)
    if way == "cancelled":
        await run_store.cancel_run(redis, settings, run_id)
    elif way == "timed out in the queue":
        await redis.hset(keys.run(run_id), "created_at", 0)
        await sweep(redis, settings)
        assert (await run_store.get_run(redis, run_id)).error == {"code": "queue_timeout", "error": ANY}
    else:  # an older version settles no reservation, too
        await redis.delete(*keys.all_of_run(run_id))
        await redis.zrem(keys.ACTIVE, run_id)
    for _ in range(2):
        await sweep(redis, settings)

    assert await reserved(redis) == 5
    assert await redis.hgetall(keys.RESERVED) == {f"t {kept}".encode(): b"5"}
    assert await redis.hget(keys.tokens("t"), "used") in (None, b"0")


# --- limits in Redis ---------------------------------------------------------------


@pytest.mark.parametrize("value", ["none", "-1", "nan", "inf", "1,000", "", "0x10", "5 "])
async def test_limit_that_is_no_number_leaves_the_default_in_force(
    redis: Redis, settings: Settings, value: str
) -> None:
    limited = settings.model_copy(update={"tenant_runs_queued": 2, "tenant_tokens_per_day": 10})
    own = {f"t:{name}": value for name in TenantLimits._fields}
    await redis.hset(keys.LIMITS, mapping=own)
    await make(redis, limited, "t", 2)

    with pytest.raises(TooManyRuns):
        await make(redis, limited, "t")
    assert await take_next(redis, running_max=1)
    assert await take_next(redis, running_max=1) is None
    quota = await quotas.count_request(redis, "t", 5)
    assert quota is not None
    assert quota.limit == 5
    assert await quotas.report_streams(redis, "t", "g", 2, 1, is_new=True) is quotas.StreamsVerdict.REFUSED
    assert len(list(find_bad_limits(await redis.hgetall(keys.LIMITS)))) == len(own)
    await redis.hset(keys.LIMITS, "t:runs_queued", "0")
    assert await run_store.create_run(redis, limited, tenant="t", model="m", request={"timeout_s": 60}, tokens=50)
    with pytest.raises(TokensUsedUp):
        await make(redis, limited, "t")


@pytest.mark.parametrize("value", ["9" * 20, "9" * 400, "0." + "0" * 30 + "1"])
async def test_limit_of_any_size_is_a_limit(redis: Redis, settings: Settings, value: str) -> None:
    own = {f"t:{name}": value for name in TenantLimits._fields if "." not in value or name == "requests_per_s"}
    await redis.hset(keys.LIMITS, mapping=own)
    quota = await quotas.count_request(redis, "t", 5)

    assert quota is not None
    assert quota.is_allowed
    assert 0 < quota.limit < 2**53
    assert 0 < quota.window_s < 2**53
    assert await quotas.count_request(redis, "t", 5)
    assert await make(redis, settings, "t")
