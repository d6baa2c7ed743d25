"""The sweep's part for threads: no thread keeps its runs waiting for a run that is gone, and none expires while in use.

Only threads with an active or a waiting run, or whose deletion has begun, are looked at. Scripts keep a thread in order
as long as its keys are; what is repaired here was lost, or deleted by hand.
"""

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.partitions import TAGS
from stagebus.shared.storage import keys, thread_scripts
from stagebus.shared.storage.partition_keys import UNTAGGED, Partition
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing
from stagebus.shared.storage.thread_scripts import Mended
from stagebus.shared.store.run_transcript import read_turn
from stagebus.shared.store.thread_deletion import drop_thread
from stagebus.shared.store.thread_store import times_of

logger = logging.getLogger(__name__)

BATCH: Final = 500
# Each sweep looks at so many busy threads of each partition, at random: of 100,000 it finds each within an hour or so.
LOOKED_AT_MAX: Final = 32


class BusyThread(NamedTuple):
    """The small fields of a thread that show whether it needs a repair."""

    thread_key: str
    tenant: str
    active: str
    is_active_alive: bool
    is_deleting: bool
    waiting: int
    ttl_ms: int

    def needs_mending(self, settings: Settings) -> bool:
        """Returns whether its active run is gone, no run is active, or its TTL has to be extended."""
        return not self.is_active_alive or self.ttl_ms < settings.thread_ttl_s * 1000 / 2


async def sweep_threads(redis: Redis, settings: Settings, partition: Partition = UNTAGGED) -> None:
    """Checks a partition's busy threads, or some of them in turn if there are many: those of parked runs may stay for weeks.

    The keys of threads have tags also where the runs' partition has none. Then all of them are checked.
    """
    async with redis.pipeline(transaction=False) as pipe:
        for tag in (partition.tag,) if partition.tag else TAGS:
            pipe.srandmember(keys.threads_busy(tag), LOOKED_AT_MAX)
        members = await pipe.execute()
    thread_keys = [thread_key.decode() for found in members for thread_key in found]
    for start in range(0, len(thread_keys), BATCH):
        for thread in await _read_threads(redis, thread_keys[start : start + BATCH]):
            try:
                await _repair(redis, settings, thread)
            except Exception as exc:
                if isinstance(exc, REDIS_AWAY) and is_passing(exc):
                    raise
                # One bad thread must not keep the others from being swept.
                logger.exception("the thread %s cannot be swept", thread.thread_key)


async def _read_threads(redis: Redis, thread_keys: Sequence[str]) -> list[BusyThread]:
    async with redis.pipeline(transaction=False) as pipe:
        for thread_key in thread_keys:
            pipe.hmget(thread_key, ["tenant", "active", "deleting"])
            pipe.llen(keys.thread_line(thread_key))
            pipe.pttl(thread_key)
        replies = await pipe.execute()
    read = list(zip(thread_keys, replies[::3], replies[1::3], replies[2::3], strict=True))
    actives = [(record[1] or b"").decode() for _, record, _, _ in read]
    alive = await _alive(redis, [active for active in actives if active])
    return [
        BusyThread(thread_key, (record[0] or b"").decode(), active, active in alive, bool(record[2]), waiting, ttl_ms)
        for (thread_key, record, waiting, ttl_ms), active in zip(read, actives, strict=True)
    ]


async def _alive(redis: Redis, run_ids: Sequence[str]) -> set[str]:
    """Returns the runs that have a record and have not ended."""
    async with redis.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hmget(keys.run(run_id), ["created_at", "finished_at"])
        states = await pipe.execute()
    return {run_id for run_id, (created, ended) in zip(run_ids, states, strict=True) if created and not ended}


async def _repair(redis: Redis, settings: Settings, thread: BusyThread) -> None:
    if thread.is_deleting:
        await drop_thread(redis, settings, thread.thread_key, thread.tenant)
        return
    active, is_needed = thread.active, thread.needs_mending(settings)
    # The next run may be gone, too.
    while is_needed:
        out = b"" if thread.is_active_alive or not active else await _read_out(redis, active)
        done, active = await thread_scripts.mend(
            redis, thread.thread_key, thread.tenant, times_of(settings), active=active, out=out,
            has_webhooks=settings.has_webhooks,
        )  # fmt: skip
        if done in (Mended.CLOSED, Mended.STARTED):
            logger.warning("the thread %s was stuck; its active run is now %s", thread.thread_key, active or "none")
        is_needed = done in (Mended.CLOSED, Mended.STARTED) and bool(active)


async def _read_out(redis: Redis, run_id: str) -> bytes:
    """Returns the messages of a run's result, JSON, as far as its log is there; empty if it is not."""
    stage_ids = [stage_id.decode() for stage_id in await redis.lrange(keys.stages(run_id), 0, -1)]  # type: ignore[misc]
    return (await read_turn(redis, run_id, stage_ids)).encode() if stage_ids else b""
