"""The store on a cluster: idempotency keys, limits, lists, statistics, deletions and the sweep over all partitions."""

import asyncio
from typing import Any

import pytest

from stagebus.shared.access_errors import TooManyRuns
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.partitions import partition_of
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.domain.threads import ThreadIdentity, ThreadRequest
from stagebus.shared.errors import IdempotencyConflict, RunDeleted
from stagebus.shared.storage import keys
from stagebus.shared.storage.cluster_redis import ClusterRedis
from stagebus.shared.storage.partition_keys import CLUSTER
from stagebus.shared.store import run_deletion, run_list, run_store, system_load, system_stats
from stagebus.shared.store.run_store import create_run
from stagebus.shared.store.sweep import sweep

HOME = CLUSTER.of_name("t")


async def create(redis: ClusterRedis, settings: Settings, **named: Any) -> str:
    return await create_run(redis, settings, **{"tenant": "t", "model": "m", "request": {}, **named})


def thread(prompt: str = "Hi", name: str = "talk") -> ThreadRequest:
    return ThreadRequest(ThreadIdentity("t", "", name), ({"role": "user", "content": prompt},))


async def test_key_of_a_run_in_a_thread_creates_one_run(cluster: ClusterRedis, settings: Settings) -> None:
    """The key and the thread have different slots."""
    key = next(str(n) for n in range(99) if CLUSTER.of_name(f"t/:{n}").tag != thread().identity.tag)
    calls = [create(cluster, settings, idempotency_key=key, thread=thread()) for _ in range(5)]
    run_ids = set(await asyncio.gather(*calls))

    assert len(run_ids) == 1
    (run_id,) = run_ids
    assert partition_of(run_id) == thread().identity.tag
    assert await run_store.find_by_idempotency_key(cluster, "t", key, "") == run_id
    with pytest.raises(IdempotencyConflict):
        await create(cluster, settings, idempotency_key=key, thread=thread("Other"))

    await run_store.cancel_run(cluster, settings, run_id)
    bound = CLUSTER.of_name(f"t/:{key}").idempotency("t", key)
    assert 0 < await cluster.ttl(bound) <= settings.retention_s, "it expires with the run"
    await run_deletion.delete_run(cluster, settings, run_id, RunOwner("t"))
    assert 0 < await cluster.ttl(bound) <= run_deletion.TOMBSTONE_TTL_S
    with pytest.raises(RunDeleted):
        await create(cluster, settings, idempotency_key=key, thread=thread())


async def test_refused_run_leaves_its_key_free(cluster: ClusterRedis, settings: Settings) -> None:
    few = settings.model_copy(update={"tenant_runs_queued": 1})
    key = next(str(n) for n in range(99) if CLUSTER.of_name(f"t/:{n}") != HOME)
    first = await create(cluster, few)
    with pytest.raises(TooManyRuns):
        await create(cluster, few, idempotency_key=key)
    await run_store.cancel_run(cluster, few, first)

    assert await create(cluster, few, idempotency_key=key, request={"prompt": "another body"})


async def test_runs_of_a_tenant_with_limits_are_at_home(cluster: ClusterRedis, settings: Settings) -> None:
    await cluster.hset(keys.LIMITS, "t:runs_queued", 3)  # type: ignore[misc]
    await sweep(cluster, settings, HOME)
    run_ids = [await create(cluster, settings, idempotency_key=str(number)) for number in range(3)]

    assert {partition_of(run_id) for run_id in run_ids} == {HOME.tag}
    with pytest.raises(TooManyRuns):
        await create(cluster, settings)

    await cluster.delete(keys.LIMITS)
    await sweep(cluster, settings, HOME)
    assert not await cluster.exists(HOME.limits)
    assert {partition_of(await create(cluster, settings)) for _ in range(8)} != {HOME.tag}


async def test_list_and_numbers_cover_all_partitions(cluster: ClusterRedis, settings: Settings) -> None:
    run_ids = [await create(cluster, settings, idempotency_key=str(number)) for number in range(11)]
    run_ids.append(await create(cluster, settings, thread=thread()))
    listed: list[str] = []
    before = None
    while True:
        page = await run_list.list_runs(cluster, RunOwner("t"), 5, before)
        listed += [run.run_id for run in page.runs]
        if (before := page.next_id) is None:
            break

    assert listed == sorted(run_ids, reverse=True)
    assert (await run_store.count_runs(cluster, settings.lease_s)).active == 12
    for run_id in run_ids[:3]:
        await run_store.cancel_run(cluster, settings, run_id)
    stats = await system_stats.read_stats(cluster, settings.lease_s)
    assert stats.totals["runs_cancelled"] == sum(minute.totals["runs_cancelled"] for minute in stats.last_hour) == 3
    load = await system_load.read_system_load(cluster, settings.lease_s)
    assert (load.counts.active, load.stranded) == (9, 0)


async def test_sweep_of_a_partition_requeues_its_runs(cluster: ClusterRedis, settings: Settings) -> None:
    stranded, other = await create(cluster, settings), await create(cluster, settings, thread=thread())
    for run_id in (stranded, other):
        await cluster.delete(CLUSTER.of_run(run_id).queue)
    partition = CLUSTER.of_run(stranded)
    report = await sweep(cluster, settings, partition)

    assert report.repairs["requeued"] == 1 + (partition_of(other) == partition.tag)
    assert await cluster.zscore(partition.queue, stranded) is not None
    for each in CLUSTER.partitions:
        await sweep(cluster, settings, each)
    assert await cluster.zscore(CLUSTER.of_run(other).queue, other) is not None


async def test_log_of_a_run_ends_at_its_node(cluster: ClusterRedis, settings: Settings) -> None:
    run_id = await create(cluster, settings, idempotency_key="k")
    await run_store.cancel_run(cluster, settings, run_id, reason="enough")
    run = await run_store.get_run(cluster, run_id)

    assert run.is_terminal
    assert run.last_id == EventId(run.last_id.attempt, 2)
    assert await cluster.ttl(keys.run(run_id)) > 0
