"""The hub over sharded pub/sub: logs of runs in several partitions, and a connection to one node that is lost."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.partitions import TAGS
from stagebus.shared.log import live_batch
from stagebus.shared.storage import keys
from stagebus.shared.storage.cluster_redis import ClusterRedis
from tests.gateway.conftest import Watcher
from tests.support.cluster import Cluster

RUN_STAGE = "run"


class RunOnCluster:
    """A run whose log the test writes by commands, since the scripts' other keys are in other slots."""

    def __init__(self, redis: ClusterRedis, tag: str) -> None:
        self.run_id = ids.new_run_id_in(tag)
        self._redis = redis
        self._last = EventId(0, 0)

    async def append(self, *, is_published: bool = True, is_end: bool = False) -> None:
        """Appends one event."""
        before, self._last = self._last, EventId(1, self._last.sequence + 1)
        event, data = ("done", b"{}") if is_end else ("stage_started", b'{"stage_id":"run"}')
        fields = {"tenant": "t", "last_id": str(self._last), **({"finished_at": 1} if is_end else {})}
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.run(self.run_id), mapping=fields)
            if before.sequence == 0:
                pipe.rpush(keys.stages(self.run_id), RUN_STAGE)
            pipe.xadd(keys.stage_stream(self.run_id, RUN_STAGE), {"event": event, "data": data}, id=str(self._last))
            await pipe.execute()
        if is_published:
            frame = b"id: %b\nevent: %b\ndata: %b\n\n" % (str(self._last).encode(), event.encode(), data)
            message = live_batch.encode(before, self._last, [RUN_STAGE], [frame], is_end=is_end)
            await self._redis.execute_command("SPUBLISH", keys.live(self.run_id), message)


@pytest.fixture
async def hub(cluster: ClusterRedis, settings: Settings) -> AsyncIterator[Hub]:
    hub = Hub(cluster, settings.model_copy(update={"ping_s": 600}))  # only pub/sub tells of new events
    await hub.start()
    yield hub
    await asyncio.wait_for(hub.stop(), 5)


async def test_streams_get_the_log_and_live_events_from_the_nodes_of_their_runs(
    cluster: ClusterRedis, hub: Hub
) -> None:
    runs = [RunOnCluster(cluster, tag) for tag in TAGS[::4]]
    for run in runs:
        await run.append()
    watchers = [Watcher(hub, run.run_id) for run in runs]
    for watcher in watchers:
        await watcher.until(lambda w: w.sequences == [1])
    for run in runs:
        await run.append()
        await run.append(is_end=True)

    for watcher in watchers:
        await watcher.until_end()
        assert watcher.sequences == [1, 2, 3]
    assert hub.events_relayed == 3 * len(runs)


async def test_events_that_a_lost_connection_missed_are_read_from_the_log(
    cluster: ClusterRedis, hub: Hub, cluster_nodes: Cluster
) -> None:
    run, other = RunOnCluster(cluster, TAGS[0]), RunOnCluster(cluster, TAGS[-1])
    await run.append()
    await other.append()
    watcher, undisturbed = Watcher(hub, run.run_id), Watcher(hub, other.run_id)
    for each in (watcher, undisturbed):
        await each.until(lambda w: w.sequences == [1])
    await run.append(is_published=False)
    await other.append(is_published=False)
    cluster_nodes.at(0, "CLIENT KILL", "TYPE", "pubsub")
    await watcher.until(lambda w: w.sequences == [1, 2])

    assert undisturbed.sequences == [1], "its node's connection was not lost"
    for each, its_watcher in ((run, watcher), (other, undisturbed)):
        await each.append(is_end=True)
        await its_watcher.until_end()
        assert its_watcher.sequences == [1, 2, 3]
