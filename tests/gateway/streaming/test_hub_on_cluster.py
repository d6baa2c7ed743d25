"""The hub over sharded pub/sub: logs of runs in several partitions, and a connection to one node that is lost."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.partitions import TAGS
from stagebus.shared.log import live_batch
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.storage.cluster_redis import ClusterRedis
from stagebus.shared.storage.run_scripts import LogEntry
from tests.gateway.conftest import Watcher
from tests.support.cluster import Cluster

STAGE = "synthesis"
DATA = b'{"stage_id":"synthesis"}'


class RunOnCluster:
    """A run whose record and end the test writes by commands, since those scripts' other keys are in other slots."""

    def __init__(self, redis: ClusterRedis, tag: str) -> None:
        self.run_id = ids.new_run_id_in(tag)
        self._redis = redis
        self._last = EventId(1, 0)

    async def begin(self) -> None:
        """Writes the record and appends the first event."""
        fields = {"tenant": "t", "attempt": 1, "last_id": str(self._last)}
        await self._redis.hset(keys.run(self.run_id), mapping=fields)
        await self.append()

    async def append(self) -> None:
        """Appends one event as the worker does."""
        before, message = self._next("tool_completion_chunk")
        entries = [LogEntry(STAGE, "tool_completion_chunk", DATA)]
        result = await run_scripts.append(
            self._redis.cluster_connection, self.run_id, attempt=1, before=before, entries=entries, message=message
        )
        assert result.last_id == self._last

    async def append_unheard(self) -> None:
        """Writes one event that is not published, as if the message was lost."""
        self._next("tool_completion_chunk")
        await self._write("tool_completion_chunk", {"last_id": str(self._last)})

    async def end(self) -> None:
        """Writes the terminal event and publishes it."""
        _, message = self._next("done", is_end=True)
        await self._write("done", {"last_id": str(self._last), "finished_at": 1})
        await self._redis.execute_command("SPUBLISH", keys.live(self.run_id), message)

    async def _write(self, event: str, fields: dict[str, Any]) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.run(self.run_id), mapping=fields)
            pipe.xadd(keys.stage_stream(self.run_id, STAGE), {"event": event, "data": DATA}, id=str(self._last))
            await pipe.execute()

    def _next(self, event: str, *, is_end: bool = False) -> tuple[EventId, bytes]:
        """Counts one event; returns the id before it and its live message."""
        before, self._last = self._last, EventId(1, self._last.sequence + 1)
        frame = b"id: %b\nevent: %b\ndata: %b\n\n" % (str(self._last).encode(), event.encode(), DATA)
        return before, live_batch.encode(before, self._last, [STAGE], [frame], is_end=is_end)


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
        await run.begin()
    watchers = [Watcher(hub, run.run_id) for run in runs]
    for watcher in watchers:
        await watcher.until(lambda w: w.sequences == [1])
    for run in runs:
        await run.append()
        await run.end()

    for watcher in watchers:
        await watcher.until_end()
        assert watcher.sequences == [1, 2, 3]
    assert hub.events_relayed == 3 * len(runs)


async def test_events_that_a_lost_connection_missed_are_read_from_the_log(
    cluster: ClusterRedis, hub: Hub, cluster_nodes: Cluster
) -> None:
    run, other = RunOnCluster(cluster, TAGS[0]), RunOnCluster(cluster, TAGS[-1])
    await run.begin()
    await other.begin()
    watcher, undisturbed = Watcher(hub, run.run_id), Watcher(hub, other.run_id)
    for each in (watcher, undisturbed):
        await each.until(lambda w: w.sequences == [1])
    await run.append_unheard()
    await other.append_unheard()
    cluster_nodes.at(0, "CLIENT KILL", "TYPE", "pubsub")
    await watcher.until(lambda w: w.sequences == [1, 2])

    assert undisturbed.sequences == [1], "its node's connection was not lost"
    for each, its_watcher in ((run, watcher), (other, undisturbed)):
        await each.end()
        await its_watcher.until_end()
        assert its_watcher.sequences == [1, 2, 3]
