"""Whose run is next: turns among tenants, and what each may have waiting, running and used."""

import pytest
from redis.asyncio import Redis

from stagebus.shared.access_errors import TokensUsedUp, TooManyRuns
from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import keys, queue_scripts
from stagebus.shared.store import run_store
from stagebus.worker.execution.sweep import sweep
from tests.support import runs_by_hand

LEASE_S = 60


async def make(redis: Redis, settings: Settings, tenant: str, count: int = 1) -> list[str]:
    return [
        await run_store.create_run(redis, settings, tenant=tenant, model="m", request={"timeout_s": 60})
        for _ in range(count)
    ]


async def take_next(redis: Redis, running_max: int = 0) -> str | None:
    """As a worker with one free slot does: the first of what is due that it gets."""
    while run_ids := (await queue_scripts.list_due(redis, 1)).run_ids:
        if await queue_scripts.acquire(redis, run_ids[0], f"token of {run_ids[0]}", LEASE_S, running_max):
            return run_ids[0]
    return None


async def give_back(redis: Redis, run_id: str) -> None:
    assert await queue_scripts.release(redis, run_id, token=f"token of {run_id}", attempt=None)


async def end(redis: Redis, settings: Settings, run_id: str) -> None:
    """As a worker does it: the terminal event, what that settles, and the job's end."""
    await run_store.cancel_run(redis, settings, run_id)
    await queue_scripts.finish(redis, run_id, f"token of {run_id}")


# --- turns -------------------------------------------------------------------


async def test_one_run_waits_for_one_of_each_other_tenant(redis: Redis, settings: Settings) -> None:
    many = await make(redis, settings, "many", 20)
    assert [await take_next(redis) for _ in range(5)] == many[:5]
    (single,) = await make(redis, settings, "single")

    assert single in [await take_next(redis), await take_next(redis)]


async def test_tenants_with_many_alternate_and_each_one_s_come_in_their_order(redis: Redis, settings: Settings) -> None:
    first = await make(redis, settings, "first", 6)
    await take_next(redis)
    second = await make(redis, settings, "second", 6)
    taken = [await take_next(redis) for _ in range(11)]

    assert [run_id for run_id in taken if run_id in first] == first[1:]
    assert [run_id for run_id in taken if run_id in second] == second
    assert 2 <= len([run_id for run_id in taken[:6] if run_id in second]) <= 4


async def test_who_had_much_yesterday_is_not_behind_today(redis: Redis, settings: Settings) -> None:
    """Turns that were taken are over."""
    await make(redis, settings, "greedy", 10)
    while await take_next(redis):
        pass
    newcomer = await make(redis, settings, "newcomer", 10)
    (greedy,) = await make(redis, settings, "greedy")

    assert greedy in [await take_next(redis), await take_next(redis), await take_next(redis)]
    assert await take_next(redis) in newcomer


async def test_what_has_begun_comes_before_what_is_new(redis: Redis, settings: Settings) -> None:
    """Given back, or its worker died: somebody watches it already."""
    begun = await take_next(redis) if await make(redis, settings, "t") else None
    assert begun
    await make(redis, settings, "other", 5)
    await give_back(redis, begun)

    assert await take_next(redis) == begun


async def test_order_survives_the_loss_of_the_turns(redis: Redis, settings: Settings) -> None:
    """They expire when nothing was made for longer than a run lives; all is taken all the same."""
    run_ids = await make(redis, settings, "t", 3)
    await redis.delete(keys.VIRTUAL_TIME, keys.tenant_virtual_time("t"))
    run_ids += await make(redis, settings, "t", 3)

    assert {await take_next(redis) for _ in range(6)} == set(run_ids)


# --- running -----------------------------------------------------------------


async def test_no_more_run_than_may_and_others_pass(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"tenant_runs_running": 2})
    held = await make(redis, limited, "many", 5)
    (other,) = await make(redis, limited, "other")
    taken = [await take_next(redis, 2) for _ in range(4)]

    assert set(taken) == {*held[:2], other, None}
    assert (await queue_scripts.list_due(redis, 10)).run_ids == [], "what is held back is not polled"


async def test_end_lets_the_next_one_in(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"tenant_runs_running": 1})
    run_ids = await make(redis, limited, "t", 4)
    taken = []
    while run_id := await take_next(redis, 1):
        taken.append(run_id)
        assert await take_next(redis, 1) is None
        await redis.delete(keys.WAKEUP)
        await end(redis, limited, run_id)
        assert await redis.llen(keys.WAKEUP) == (len(taken) < len(run_ids)), "and wakes a worker"

    assert sorted(taken) == sorted(run_ids)
    assert await redis.exists(keys.RUNNING, keys.THROTTLED, keys.QUEUE) == 0


async def test_run_that_another_worker_took_at_once_still_counts(redis: Redis, settings: Settings) -> None:
    """Its first worker gives it back and then leaves; the bell may have been heard in between."""
    first, second = await make(redis, settings, "t", 2)
    assert [await take_next(redis, 1), await take_next(redis, 1)] == [first, None]
    await give_back(redis, first)
    assert await take_next(redis, 1) == first

    assert await queue_scripts.admit(redis, first, 1) == 0
    assert await take_next(redis, 1) is None
    assert await redis.zrange(keys.RUNNING, 0, -1) == [f"t {first}".encode()]
    assert await redis.zrange(keys.THROTTLED, 0, -1) == [f"t {second}".encode()]


async def test_tenant_s_own_limit_wins_and_may_be_lifted(redis: Redis, settings: Settings) -> None:
    await redis.hset(keys.LIMITS, "t:runs_running", 1)
    run_ids = await make(redis, settings, "t", 3)
    assert [await take_next(redis), await take_next(redis)] == [run_ids[0], None]
    await redis.hset(keys.LIMITS, "t:runs_running", 0)
    await sweep(redis, settings)

    assert {await take_next(redis), await take_next(redis)} == set(run_ids[1:])


async def test_run_that_ends_while_it_is_held_back_leaves_nothing(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"tenant_runs_running": 1})
    first, second = await make(redis, limited, "t", 2)
    assert [await take_next(redis, 1), await take_next(redis, 1)] == [first, None]
    await run_store.cancel_run(redis, limited, second)

    assert await redis.zcard(keys.THROTTLED) == 0
    assert await take_next(redis, 1) == second, "a worker takes its job out of the queue"


async def test_sweep_lets_in_what_a_dead_process_did_not(redis: Redis, settings: Settings) -> None:
    """Its run ended, or was given back, or its record is gone: none of them counts for ever."""
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
    await redis.delete(keys.run(gone), keys.lease(gone))
    await redis.zrem(keys.ACTIVE, gone)
    await sweep(redis, limited)

    assert {await take_next(redis, 3) for _ in range(3)} == set(run_ids[3:])


# --- waiting and used --------------------------------------------------------


async def test_queue_of_one_tenant_is_bounded(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"tenant_runs_queued": 2})
    run_ids = await make(redis, limited, "t", 2)
    before = await redis.dbsize()
    with pytest.raises(TooManyRuns):
        await make(redis, limited, "t")

    assert await redis.dbsize() == before, "a refused run leaves nothing"
    await make(redis, limited, "other")
    assert await take_next(redis) in run_ids
    await make(redis, limited, "t"), "one that began waits no longer"


async def test_refused_key_makes_its_run_later_whatever_the_body_then_is(redis: Redis, settings: Settings) -> None:
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
    assert await redis.ttl(keys.idempotency("t", "k")) > settings.live_ttl_s - 60


async def test_tokens_of_ended_runs_count_once_and_for_one_day(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"tenant_tokens_per_day": 100})
    (run_id,) = await make(redis, limited, "t")
    await redis.hset(keys.run(run_id), "usage", b'{"total_tokens":100}')
    await redis.hset(keys.run(run_id), "finished_at", (await redis.time())[0] * 1000)
    for _ in range(2):
        await run_store.settle(redis, limited, run_id)
    with pytest.raises(TokensUsedUp) as refused:
        await make(redis, limited, "t")

    assert await redis.hget(keys.tokens("t"), "used") == await redis.hget(keys.TOTALS, "tokens") == b"100"
    seconds, _ = await redis.time()
    assert refused.value.retry_after_s == pytest.approx(86400 - seconds % 86400, abs=2)
    assert str(refused.value).startswith("this tenant has used its 100 tokens of the day")
    await make(redis, limited, "other")
    await redis.hincrby(keys.tokens("t"), "day", -1)
    assert await make(redis, limited, "t"), "yesterday's are over"
