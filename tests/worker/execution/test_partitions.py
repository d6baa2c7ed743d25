"""The queue loop over several partitions on one server: it finds all runs, is fair, and no bad partition stalls the others."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.partitions import TAGS, key_slot, partition_of
from stagebus.shared.domain.threads import ThreadIdentity, ThreadRequest
from stagebus.shared.errors import StorageUnfit
from stagebus.shared.storage import keys, redis_client
from stagebus.shared.storage.cluster_redis import ClusterRedis, connect_cluster
from stagebus.shared.storage.connections import check_storage, open_pipelined
from stagebus.shared.storage.partition_keys import CLUSTER, PARTITIONED, partition_of_run
from stagebus.shared.storage.redis_client import REDIS_AWAY
from stagebus.shared.store import run_store
from stagebus.worker.execution.leased_worker import LeasedWorker
from stagebus.worker.execution.outcome import Disposition, Outcome
from tests.support.cluster import Cluster
from tests.support.redis_calls import blocked_client_count
from tests.support.waiting import until


@pytest.fixture
def partitioned(settings: Settings) -> Settings:
    return settings.model_copy(update={"partitioned": True, "worker_concurrency": 4})


@pytest.fixture
async def parts(redis: Redis, partitioned: Settings) -> AsyncIterator[Redis]:
    """A client of the same empty database that knows of the partitions."""
    client = redis_client.connect(partitioned)
    yield client
    await client.flushdb()
    await redis_client.close(client)


class Worker:
    """A worker whose runs end at once; `ended` lists them in the order in which they were begun."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.ended: list[str] = []
        self.may_end = asyncio.Event()
        self.may_end.set()
        self._redis, self._settings = redis, settings

    async def __aenter__(self) -> Self:
        async def nothing(*_: object) -> None:
            pass

        async def drain() -> None:
            self.may_end.set()

        self._connection = open_pipelined(self._redis, 5)
        self._worker = LeasedWorker(
            self._redis, self._settings, connection=self._connection, run=self._run, renew_now=nothing, on_drain=drain
        )
        self._task = asyncio.create_task(self._worker.main())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._worker.begin_drain()
        await self._task
        await self._connection.aclose()

    async def _run(self, run_id: str, _token: str, _thread_key: str) -> Outcome:
        self.ended.append(run_id)
        await self.may_end.wait()
        return Outcome(Disposition.FINISH)

    async def has_ended(self, run_ids: set[str]) -> None:
        await until(lambda: run_ids <= set(self.ended))


async def create(redis: Redis, settings: Settings, tenant: str = "t", key: str | None = None) -> str:
    return await run_store.create_run(redis, settings, tenant=tenant, model="m", request={}, idempotency_key=key)


async def test_worker_finds_the_runs_of_all_partitions(parts: Redis, partitioned: Settings) -> None:
    run_ids = {await create(parts, partitioned, key=str(number)) for number in range(40)}
    thread = ThreadRequest(ThreadIdentity("t", "", "talk"), ({"role": "user", "content": "Hi"},))
    in_thread = await run_store.create_run(parts, partitioned, tenant="t", model="m", request={}, thread=thread)
    assert len({partition_of(run_id) for run_id in run_ids}) > 10
    assert partition_of(in_thread) == thread.identity.tag

    async with Worker(parts, partitioned) as worker:
        await worker.has_ended({*run_ids, in_thread})

    assert not [key async for key in parts.scan_iter("sb:queue:{*")], "every job is gone from its own queue"
    assert not await parts.exists(keys.QUEUE, keys.ACTIVE)


async def test_bell_of_any_partition_wakes_an_idle_worker(parts: Redis, partitioned: Settings) -> None:
    slow = partitioned.model_copy(update={"poll_s": 60, "lease_s": 60})
    async with Worker(parts, slow) as worker:
        for tag in (TAGS[0], TAGS[17]):
            await until(lambda: blocked_client_count(parts))
            key = next(str(n) for n in range(1000) if PARTITIONED.of_name(f"t/:{n}").tag == tag)
            await worker.has_ended({await create(parts, slow, key=key)})


async def test_run_of_before_the_partitions_is_worked_on(redis: Redis, parts: Redis, partitioned: Settings) -> None:
    old = await create(redis, partitioned)
    assert await redis.zscore(keys.QUEUE, old) is not None

    async with Worker(parts, partitioned) as worker:
        await worker.has_ended({old})


async def test_partitions_are_refused_while_older_runs_of_threads_are_active(
    redis: Redis, parts: Redis, partitioned: Settings
) -> None:
    """Their ids have tags, so they would be looked for in a partition."""
    thread = ThreadRequest(ThreadIdentity("t", "", "talk"), ({"role": "user", "content": "Hi"},))
    old = await run_store.create_run(redis, partitioned, tenant="t", model="m", request={}, thread=thread)
    with pytest.raises(StorageUnfit, match="STAGEBUS_PARTITIONED"):
        await check_storage(parts)

    await run_store.cancel_run(redis, partitioned, old)
    await check_storage(parts)


async def test_partition_that_cannot_be_used_stalls_no_other(parts: Redis, partitioned: Settings) -> None:
    stuck = await create(parts, partitioned, key="stuck")
    queue = partition_of_run(parts, stuck).queue
    await parts.rename(queue, "aside")
    await parts.set(queue, "not a queue")
    others = {
        await create(parts, partitioned, key=str(number))
        for number in range(20)
        if PARTITIONED.of_name(f"t/:{number}").queue != queue
    }

    async with Worker(parts, partitioned) as worker:
        await worker.has_ended(others)
        later = next(n for n in range(100, 1000) if PARTITIONED.of_name(f"t/:{n}").queue != queue)
        await worker.has_ended({await create(parts, partitioned, key=str(later))})
        assert stuck not in worker.ended
        await parts.rename("aside", queue)
        await worker.has_ended({stuck})


async def test_backlog_of_one_tenant_delays_no_other_tenant(parts: Redis, partitioned: Settings) -> None:
    """In one queue the other tenant's run would be among the first; here each partition may have a turn or two before it."""
    async with Worker(parts, partitioned.model_copy(update={"lease_s": 30})) as worker:
        worker.may_end.clear()
        backlog = {await create(parts, partitioned, "a", str(number)) for number in range(200)}
        late = await create(parts, partitioned, "b", "late")
        worker.may_end.set()
        await worker.has_ended({*backlog, late})

    assert worker.ended.index(late) < 120


async def test_lost_node_stalls_no_partition_of_the_others(tmp_path: Path, partitioned: Settings) -> None:
    with Cluster(tmp_path) as nodes:
        cluster = connect_cluster(nodes.url, partitioned)
        lost = nodes.nodes[2]

        async def create_at(*, is_lost: bool) -> set[str]:
            keys_of_runs = [
                str(number)
                for number in range(30)
                if (cluster.slots.node_of(key_slot(CLUSTER.of_name(f"t/:{number}").tag)) == lost) == is_lost
            ]
            return {await create(cluster, partitioned, key=f"{key}") for key in keys_of_runs[:6]}

        async with Worker(cluster, partitioned) as worker:
            await worker.has_ended({await create(cluster, partitioned)})  # the map of the slots is known
            nodes.servers[2].terminate()
            await worker.has_ended(await create_at(is_lost=False))
            nodes.servers[2].start()
            await until(lambda: is_there(cluster))
            await worker.has_ended(await create_at(is_lost=True))
        await cluster.aclose()


async def is_there(cluster: ClusterRedis) -> bool:
    try:
        return all([await cluster.exists(partition.queue) is not None for partition in CLUSTER.partitions])
    except REDIS_AWAY:
        return False
