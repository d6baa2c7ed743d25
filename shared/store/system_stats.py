"""Statistics of the whole system: the queue, the workers and their runs, totals over all runs."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import partition_of_run, partitioning_of
from stagebus.shared.storage.redis_client import Redis, time_reply_ms
from stagebus.shared.store import run_store, webhook_deliveries
from stagebus.shared.store.heartbeats import read_live_processes
from stagebus.shared.store.run_store import RunCounts
from stagebus.shared.store.webhook_deliveries import WebhookCounts

# The fields of `sb:totals`: counted when a run leaves `sb:active`, over all tenants.
TOTALS: Final = ("events", "runs_succeeded", "runs_failed", "runs_cancelled", "tokens")


HOUR_MINUTES: Final = 60


class MinuteTotals(NamedTuple):
    """The totals, by the names in `TOTALS`, of the runs that ended in one minute, and when it began."""

    began_s_ago: int
    totals: dict[str, int]


class HeldRun(NamedTuple):
    """A run that a worker holds, and the ms until its lease ends unless it is renewed."""

    run_id: str
    attempt: int
    lease_ends_in_ms: int


class WorkerStatus(NamedTuple):
    """A worker, the runs that it holds, and the age of its last heartbeat."""

    name: str
    concurrency: int
    runs: list[HeldRun]
    seen_ms_ago: int


class WebhookState(NamedTuple):
    """The deliveries of webhooks, and whether the live processes have different webhooks files."""

    counts: WebhookCounts
    files_differ: bool


class SystemStats(NamedTuple):
    """The system's state; `streams_open` is the sum over all gateways, `totals` has the names in `TOTALS`."""

    counts: RunCounts
    workers: list[WorkerStatus]
    streams_open: int
    totals: dict[str, int]
    webhooks: WebhookState
    last_hour: list[MinuteTotals]  # only the minutes in which runs ended, oldest first


async def read_stats(redis: Redis, lease_s: float) -> SystemStats:
    """Reads everything once. The state of a process is as old as its last heartbeat."""
    workers = await read_live_processes(redis, keys.WORKERS)
    gateways = await read_live_processes(redis, keys.GATEWAYS)
    ends = await _read_lease_ends(redis, [run["id"] for worker in workers for run in worker.state["runs"]])
    async with redis.pipeline(transaction=False) as pipe:
        for partition in partitioning_of(redis).partitions:
            pipe.hgetall(partition.totals)
        counted = await pipe.execute()
    return SystemStats(
        await run_store.count_runs(redis, lease_s),
        [
            WorkerStatus(
                name,
                state["concurrency"],
                [HeldRun(run["id"], run["attempt"], ends[run["id"]]) for run in state["runs"] if run["id"] in ends],
                seen_ms_ago,
            )
            for name, state, seen_ms_ago in workers
        ],
        sum(gateway.state["streams_open"] for gateway in gateways),
        _as_totals(counted),
        WebhookState(
            await webhook_deliveries.count(redis),
            len({process.state.get("webhooks", "") for process in (*workers, *gateways)}) > 1,
        ),
        await _read_last_hour(redis),
    )


async def _read_last_hour(redis: Redis) -> list[MinuteTotals]:
    now_s = time_reply_ms(await redis.time()) // 1000
    minutes = range(now_s // 60 - HOUR_MINUTES + 1, now_s // 60 + 1)
    partitions = partitioning_of(redis).partitions
    async with redis.pipeline(transaction=False) as pipe:
        for minute in minutes:
            for partition in partitions:
                pipe.hgetall(partition.totals_of_minute(minute))
        replies = await pipe.execute()
    counted = [replies[place : place + len(partitions)] for place in range(0, len(replies), len(partitions))]
    return [
        MinuteTotals(now_s - 60 * minute, _as_totals(counts))
        for minute, counts in zip(minutes, counted, strict=True)
        if any(counts)
    ]


def _as_totals(counted: Sequence[Mapping[bytes, bytes]]) -> dict[str, int]:
    """Returns the sums over all partitions."""
    return {name: sum(int(counts.get(name.encode(), 0)) for counts in counted) for name in TOTALS}


async def _read_lease_ends(redis: Redis, run_ids: list[str]) -> dict[str, int]:
    """Returns the ms until each run's lease ends, without the runs that have ended since."""
    if not run_ids:
        return {}
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        for run_id in run_ids:
            pipe.zscore(partition_of_run(redis, run_id).queue, run_id)
        time, *scores = await pipe.execute()
    now_ms = time_reply_ms(time)
    return {run_id: int(score) - now_ms for run_id, score in zip(run_ids, scores, strict=True) if score is not None}
