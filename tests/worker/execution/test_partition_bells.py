"""The bells of a cluster: each partition's rings, none is lost, and a node that is away silences no other."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from stagebus.shared.domain.partitions import TAGS
from stagebus.shared.storage.cluster_redis import ClusterRedis
from stagebus.shared.storage.partition_keys import CLUSTER
from stagebus.shared.store import run_queue
from stagebus.worker.execution.partition_bells import PartitionBells
from tests.support.waiting import until

WAKEUPS = [partition.wakeup for partition in CLUSTER.partitions]


@pytest.fixture
async def bells(cluster: ClusterRedis) -> AsyncIterator[PartitionBells]:
    bells = PartitionBells(cluster, WAKEUPS)
    yield bells
    await bells.close()


async def test_bell_of_each_partition_rings(cluster: ClusterRedis, bells: PartitionBells) -> None:
    for partition in CLUSTER.partitions[::5]:
        waiting = asyncio.create_task(bells.wait(20))
        await run_queue.ring(cluster, f"run of {partition.tag}", partition)
        assert await waiting == f"run of {partition.tag}"

    assert await bells.wait(0.01) is None


async def test_bells_that_ring_together_are_heard_one_after_the_other(
    cluster: ClusterRedis, bells: PartitionBells
) -> None:
    for tag in TAGS[:3]:
        await run_queue.ring(cluster, tag, CLUSTER.of_tag(tag))

    assert {await bells.wait(20) for _ in range(3)} == set(TAGS[:3])


async def test_bell_that_rings_while_the_worker_is_busy_wakes_another(
    cluster: ClusterRedis, bells: PartitionBells
) -> None:
    assert await bells.wait(0.5) is None  # from now on it pops, also while nobody waits for it
    other = PartitionBells(cluster, WAKEUPS)
    waiting = asyncio.create_task(other.wait(20))
    await run_queue.ring(cluster, "run", CLUSTER.partitions[0])

    assert await waiting == "run"
    await other.close()


async def test_lost_connections_are_opened_again(cluster: ClusterRedis, bells: PartitionBells) -> None:
    assert await bells.wait(0.5) is None
    for node in await cluster.slots.read_primaries():
        await cluster.client_of(node).execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def hears() -> bool:
        await run_queue.ring(cluster, "run", CLUSTER.partitions[7])
        return await bells.wait(1) == "run"

    await until(hears)
