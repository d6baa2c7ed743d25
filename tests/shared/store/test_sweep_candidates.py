"""Parked runs cost a sweep nothing until their time is near, and each is looked at and repaired all the same."""

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.store import parking, run_store, sweep_candidates
from stagebus.shared.store.sweep import sweep
from stagebus.shared.store.sweep_candidates import find_candidates, part_size
from tests.support.parked_runs import make_parked_runs
from tests.support.redis_calls import calls

HOUR_MS = 3_600_000


@pytest.fixture(autouse=True)
def _many_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ten active runs count as many."""
    monkeypatch.setattr(sweep_candidates, "PART", 9)


async def now_ms(redis: Redis) -> int:
    return int((await redis.time())[0]) * 1000


async def candidates(redis: Redis, settings: Settings) -> list[str]:
    return (await find_candidates(redis, settings, await now_ms(redis))).run_ids


async def test_sweep_looks_at_few_of_many_parked_runs(redis: Redis, settings: Settings) -> None:
    """A whole pass of sweeps looks at each once."""
    run_ids = await make_parked_runs(redis, settings, 90, due_in_ms=HOUR_MS)
    looked_at = [await candidates(redis, settings) for _ in range(10)]

    assert [run_id for found in looked_at for run_id in found] == run_ids
    assert [len(found) for found in looked_at] == [9] * 10
    assert await candidates(redis, settings) == [], "the end of the pass"
    assert await candidates(redis, settings) == run_ids[:9]


async def test_sweep_looks_at_every_run_whose_time_is_near(redis: Redis, settings: Settings) -> None:
    """Also at new, held, overdue and throttled ones."""
    await make_parked_runs(redis, settings, 90, due_in_ms=HOUR_MS)
    made = [await run_store.create_run(redis, settings, tenant="t", model="m", request={}) for _ in range(5)]
    new, near, held, overdue, throttled = made
    at = await now_ms(redis)
    scores = {
        near: at + 100,
        held: at + settings.lease_s * 1000,
        overdue: at - HOUR_MS,
        throttled: keys.THROTTLED_SCORE,
    }
    await redis.zadd(keys.QUEUE, scores)
    for _ in range(12):
        assert {new, near, held, overdue, throttled} <= set(await candidates(redis, settings))


async def test_next_sweep_requeues_a_parked_run_without_an_entry(redis: Redis, settings: Settings) -> None:
    run_ids = await make_parked_runs(redis, settings, 90, due_in_ms=HOUR_MS)
    await redis.zrem(keys.QUEUE, run_ids[45])
    report = await sweep(redis, settings)

    assert report.repairs == {"requeued": 1}
    assert report.looked_at == 9 + 1
    assert await redis.zscore(keys.QUEUE, run_ids[45]) is not None


async def test_next_sweep_ends_a_parked_run_whose_canceller_died(redis: Redis, settings: Settings) -> None:
    run_ids = await make_parked_runs(redis, settings, 90, due_in_ms=HOUR_MS)
    assert not await run_scripts.cancel(redis, run_ids[45], "too late")
    report = await sweep(redis, settings)

    assert report.repairs == {"cancelled": 1}
    assert (await run_store.get_run(redis, run_ids[45])).status is RunStatus.CANCELLED


async def test_decided_run_is_near_at_once(redis: Redis, settings: Settings) -> None:
    run_ids = await make_parked_runs(redis, settings, 90, due_in_ms=HOUR_MS)
    await parking.decide(redis, run_ids[45], "c", "{}")

    assert run_ids[45] in await candidates(redis, settings)


async def test_old_parked_runs_are_kept_in_their_lists(redis: Redis, settings: Settings) -> None:
    """The lists of the tenant have expired; one pass puts every run there again, and costs no TTL of its keys."""
    short = settings.model_copy(update={"live_ttl_s": 60, "retention_s": 60, "sweep_s": 1})
    run_ids = await make_parked_runs(redis, short, 40, due_in_ms=HOUR_MS, made_ms_ago=HOUR_MS)
    await redis.delete(keys.runs("t"), keys.active_of_tenant("t"))
    before = await calls(redis)
    for _ in range(5):
        await sweep(redis, short)
    after = await calls(redis)

    assert {member.decode() for member in await redis.zrange(keys.active_of_tenant("t"), 0, -1)} == set(run_ids)
    assert after["persist"] - before["persist"] <= 2 * len(run_ids), "only the records'"


def test_a_pass_is_short_enough_for_the_lists(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep once an hour, a million runs, and lists that live for three days."""
    monkeypatch.setattr(sweep_candidates, "PART", 1000)
    million, rare = 10**6, settings.model_copy(update={"sweep_s": 3600.0})

    assert part_size(settings, million) == 1000
    assert million / part_size(rare, million) * 1.5 * rare.sweep_s < rare.lists_ttl_s / 2
