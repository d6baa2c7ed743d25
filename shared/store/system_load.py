"""Reads how busy the whole system is: what a scaler and alerts need, in a few round trips.

The oldest waiting run is found without a look at all of them: the queue is fair among tenants, so each tenant's oldest
run is among those with the lowest virtual times, one for each tenant that waits.
"""

import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from stagebus.shared.domain import ids
from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import partitioning_of
from stagebus.shared.storage.redis_client import Redis, read_time_ms
from stagebus.shared.store import run_store, webhook_deliveries
from stagebus.shared.store.heartbeats import read_live_processes
from stagebus.shared.store.run_store import RunCounts
from stagebus.shared.store.webhook_deliveries import WebhookCounts

# Of the waiting new runs, those with the lowest virtual times. With more waiting tenants the oldest may be missed.
OLDEST_SEARCHED_MAX: Final = 500
_REPLIES_PER_PARTITION: Final = 5


class ProviderSlots(NamedTuple):
    """A provider's held slots and the requests that wait for one, over all workers."""

    name: str
    held: int
    waiting: int


class SystemLoad(NamedTuple):
    """The queue, the workers and the server.

    Attributes:
        oldest_wait_s: for how long the oldest run waits that a worker may take; 0 if none waits.
        stranded: active runs without an entry in the queue, which no worker can find until the sweep repairs them.
        is_sweep_recent: a process has swept within the last `sweep_s`. Between two sweeps it may be up to half of that longer.
        workers: with a recent heartbeat.
        slots: how many runs these workers execute at a time.
        slots_free: of those, the ones that no run holds, without those of workers that shut down.
        reply_s: how long the server took for a PING.
    """

    counts: RunCounts
    oldest_wait_s: float
    stranded: int
    is_sweep_recent: bool
    workers: int
    slots: int
    slots_free: int
    providers: list[ProviderSlots]
    reply_s: float
    server: "ServerState"
    webhooks: WebhookCounts


class ServerState(NamedTuple):
    """The state of the Redis server, from INFO.

    Attributes:
        memory_max_bytes: 0 if there is no limit.
        replica_lag_bytes: how far the replica that is most behind is; 0 without replicas.
        replica_seen_s: since when the replica that is longest silent has not acknowledged; 0 without replicas.
        is_aof_ok: the last write of the append-only file succeeded, or there is none.
    """

    memory_bytes: int
    memory_max_bytes: int
    replicas: int
    replica_lag_bytes: int
    replica_seen_s: int
    is_aof_ok: bool


async def read_system_load(redis: Redis, lease_s: float, providers: Sequence[str] = ()) -> SystemLoad:
    """Reads the load of the system.

    Args:
        providers: the names of those with a limited number of slots.
    """
    began_at = time.monotonic()
    await redis.ping()
    reply_s = time.monotonic() - began_at
    workers = await read_live_processes(redis, keys.WORKERS)
    free = [max(0, w.state["concurrency"] - len(w.state["runs"])) for w in workers if not w.state.get("draining")]
    now_ms = await read_time_ms(redis)
    partitions = partitioning_of(redis).partitions
    async with redis.pipeline(transaction=False) as pipe:
        for partition in partitions:
            pipe.zcard(partition.active)
            pipe.zcard(partition.queue)
            pipe.exists(partition.sweep)
            pipe.zrangebyscore(partition.queue, "-inf", f"({keys.TIME_SCORE_MIN}", 0, OLDEST_SEARCHED_MAX)
            pipe.zrangebyscore(partition.queue, keys.TIME_SCORE_MIN, now_ms, 0, 1, withscores=True)
        for provider in providers:
            held, waiting, *_ = keys.provider_slots(provider)
            pipe.zcount(held, now_ms, "+inf")
            pipe.zcard(waiting)
        replies = await pipe.execute()
    slots = replies[_REPLIES_PER_PARTITION * len(partitions) :]
    queues = [
        replies[place : place + _REPLIES_PER_PARTITION]
        for place in range(0, len(replies) - len(slots), _REPLIES_PER_PARTITION)
    ]
    since = [ids.created_ms(run_id.decode()) for *_, new, _ in queues for run_id in new]
    since += [score for *_, begun in queues for _, score in begun]
    return SystemLoad(
        counts=await run_store.count_runs(redis, lease_s),
        oldest_wait_s=max(0.0, (now_ms - min(since, default=now_ms)) / 1000),
        stranded=sum(max(0, active - queued) for active, queued, *_ in queues),
        is_sweep_recent=all(swept for _, _, swept, *_ in queues),
        workers=len(workers),
        slots=sum(worker.state["concurrency"] for worker in workers),
        slots_free=sum(free),
        providers=[ProviderSlots(*one) for one in zip(providers, slots[::2], slots[1::2], strict=True)],
        reply_s=reply_s,
        server=_server_state(
            await redis.info("memory"), await redis.info("replication"), await redis.info("persistence")
        ),
        webhooks=await webhook_deliveries.count(redis),
    )


def _server_state(memory: dict[str, Any], replication: dict[str, Any], persistence: dict[str, Any]) -> ServerState:
    end = int(replication.get("master_repl_offset", 0))
    replicas = [value for name, value in replication.items() if name.startswith("slave") and isinstance(value, dict)]
    return ServerState(
        memory_bytes=int(memory.get("used_memory", 0)),
        memory_max_bytes=int(memory.get("maxmemory", 0)),
        replicas=len(replicas),
        replica_lag_bytes=max((end - int(replica.get("offset", end)) for replica in replicas), default=0),
        replica_seen_s=max((int(replica.get("lag", 0)) for replica in replicas), default=0),
        is_aof_ok=persistence.get("aof_last_write_status", "ok") == "ok",
    )
