"""The sweep: finds active runs that no worker or request would ever end, and repairs them.

`sweep_candidates` selects the runs that a sweep looks at. Every worker and gateway can sweep; a key in Redis elects one
of them from time to time. The sweep requeues runs that have no entry in the queue, ends cancelled runs and runs that waited
too long, keeps old active runs in the lists, removes runs that have ended or were never created completely, admits
throttled runs that are within their tenant's limit again, releases the tokens of runs that are gone, and repairs threads
(see `thread_sweep`). So runs that wait are kept and ended even if no worker is alive. It also logs limits that have no
effect.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids, limits
from stagebus.shared.domain.events import Cancel, Error
from stagebus.shared.domain.runs import TERMINAL, RunStatus
from stagebus.shared.errors import QueueTimeout, RunEnded
from stagebus.shared.observability.sweep_metrics import SweepMetrics
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.outage_log import OUTAGE
from stagebus.shared.storage.partition_keys import UNTAGGED, Partition, partition_of_run, partitioning_of
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing, read_time_ms
from stagebus.shared.store import limits_copy, run_queue, run_store
from stagebus.shared.store.sweep_candidates import find_candidates
from stagebus.shared.store.thread_sweep import sweep_threads

logger = logging.getLogger(__name__)

pause = asyncio.sleep

BATCH: Final = 500
FIELDS: Final = (
    "status",
    "worker",
    "cancel",
    "created_at",
    "attempt",
    "tenant",
    "idempotency",
    "cancel_reason",
    "user",
    "thread",
)
# A creation that stopped before the record was written may be completed by its client's retry for this long.
INCOMPLETE_MAX_S: Final = 3600.0


@dataclass
class SweepReport:
    """The runs that a sweep looked at, and how many it repaired, by the names in `sweep_metrics.REPAIRS`."""

    looked_at: int = 0
    repairs: Counter[str] = field(default_factory=Counter)


async def sweep_forever(redis: Redis, settings: Settings, process: str, metrics: SweepMetrics | None = None) -> None:
    """Sweeps every `sweep_s` unless another process has done so.

    Args:
        process: the name of this process, for people who look at the key.
        metrics: counts the sweeps.
    """
    logged: set[str] = set()

    async def sweep_in_turn(partition: Partition) -> None:
        if await redis.set(partition.sweep, process, nx=True, px=round(settings.sweep_s * 1000)):
            began_at = time.monotonic()
            report = await sweep(redis, settings, partition)
            if metrics is not None:
                metrics.swept(report.looked_at, report.repairs, time.monotonic() - began_at)
            await _log_bad_limits(redis, logged)

    async with asyncio.TaskGroup() as group:
        for partition in partitioning_of(redis).partitions:  # each by itself: the server of one may be away
            group.create_task(_repeat_forever(partial(sweep_in_turn, partition), settings.sweep_s / 2))


async def _repeat_forever(step: Callable[[], Awaitable[None]], interval_s: float) -> None:
    while True:
        try:
            await step()
        except REDIS_AWAY as exc:
            OUTAGE.report_failure(logger, "the sweep", exc)
        except Exception:
            # Otherwise the task would end silently, and runs without an entry in the queue would stay stranded.
            logger.exception("a sweep failed; trying again at the next interval")
        await asyncio.sleep(interval_s)


class ActiveRun(NamedTuple):
    """The small fields of a run that show whether it needs a repair; without its request of up to a megabyte."""

    run_id: str
    fields: list[bytes | None] | Exception  # FIELDS of its record; all None if there is no record
    ttl_s: int  # of the record; -1: none, as an active run has
    has_lease: bool
    score: float | None  # in the queue

    def field(self, name: str) -> str:
        """Returns one of FIELDS; an empty string if the record does not have it."""
        assert not isinstance(self.fields, Exception), "the record could be read"
        return (self.fields[FIELDS.index(name)] or b"").decode()


async def sweep(redis: Redis, settings: Settings, partition: Partition = UNTAGGED) -> SweepReport:
    """Checks every active run of a partition that may need a repair now, and in turn the others: see `sweep_candidates`."""
    if partition.tag:
        await limits_copy.copy_limits(redis, partition)
    now_ms = await read_time_ms(redis)
    abandoned: list[str] = []
    run_ids, ends_pass = await find_candidates(redis, settings, now_ms, partition)
    report = SweepReport(len(run_ids))
    for start in range(0, len(run_ids), BATCH):
        for summary in await _read_summaries(redis, partition, run_ids[start : start + BATCH]):
            try:
                if repair := await _repair(redis, settings, summary, now_ms, abandoned):
                    report.repairs[repair] += 1
            except RunEnded:
                logger.debug("run %s ended during the sweep", summary.run_id)
            except Exception as exc:
                if isinstance(exc, REDIS_AWAY) and is_passing(exc):
                    raise
                # One bad record must not keep the other runs from being swept.
                logger.exception("run %s cannot be swept", summary.run_id)
    await _admit(redis, settings, partition, now_ms)
    if ends_pass:  # parked runs may have reservations, too
        await _release_tokens(redis, settings, partition)
    await sweep_threads(redis, settings, partition)
    if abandoned:
        report.repairs["timed_out"] += await _end_abandoned(redis, settings, abandoned)
    return report


async def _read_summaries(redis: Redis, partition: Partition, run_ids: list[str]) -> list[ActiveRun]:
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zmscore(partition.queue, run_ids)
        for run_id in run_ids:
            pipe.hmget(keys.run(run_id), list(FIELDS))
            pipe.ttl(keys.run(run_id))
            pipe.exists(partition.lease(run_id))
        scores, *replies = await pipe.execute(raise_on_error=False)
    each = zip(run_ids, replies[::3], replies[1::3], replies[2::3], scores, strict=True)
    return [ActiveRun(run_id, fields, ttl, has_lease == 1, score) for run_id, fields, ttl, has_lease, score in each]


async def _admit(redis: Redis, settings: Settings, partition: Partition, now_ms: int) -> None:
    """Admits throttled runs as far as the limits allow, in case a process died before it could do so."""
    for member in await redis.zrange(partition.running, 0, -1):
        tenant, _, run_id = member.decode().rpartition(" ")
        async with redis.pipeline(transaction=False) as pipe:
            pipe.zscore(partition.active, run_id)
            pipe.exists(partition.lease(run_id))
            pipe.zscore(partition.queue, run_id)
            active, is_held, score = await pipe.execute()
        # A run whose lease expired still counts: it continues as soon as a worker acquires it.
        if active is None or (not is_held and (score is None or score > now_ms)):
            await queue_scripts.admit(redis, run_id, settings.tenant_runs_running, tenant=tenant)
    waiting = (member.decode().rpartition(" ") for member in await redis.zrange(partition.throttled, 0, -1))
    for tenant, run_id in {tenant: run_id for tenant, _, run_id in waiting}.items():
        await queue_scripts.admit(redis, run_id, settings.tenant_runs_running, tenant=tenant)


async def _release_tokens(redis: Redis, settings: Settings, partition: Partition) -> None:
    """Releases the reservations of runs that are not active: their records are lost, or an older version ended them."""
    members = [member.decode() for member in await redis.hkeys(partition.reserved)]  # type: ignore[misc]
    for start in range(0, len(members), BATCH):
        batch = members[start : start + BATCH]
        scores = await redis.zmscore(partition.active, [member.rpartition(" ")[2] for member in batch])
        for member in (member for member, score in zip(batch, scores, strict=True) if score is None):
            tenant, _, run_id = member.rpartition(" ")
            await queue_scripts.account(
                redis, run_id, tenant=tenant, ended=queue_scripts.EndedRun(), retention_s=settings.retention_s,
                life_s=settings.lists_ttl_s,
            )  # fmt: skip


async def _log_bad_limits(redis: Redis, logged: set[str]) -> None:
    """Logs entries of `sb:limits` that have no effect, each once per process."""
    names = await redis.hkeys(keys.LIMITS)  # type: ignore[misc]
    values = await redis.hmget(keys.LIMITS, names) if names else []  # type: ignore[misc]
    stored = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    for fault in limits.find_bad_limits(stored):
        if fault not in logged:
            logger.warning("%s", fault)
            logged.add(fault)


async def _repair(redis: Redis, settings: Settings, summary: ActiveRun, now_ms: int, abandoned: list[str]) -> str:
    """Repairs one run; returns the repair's name, or an empty string if it needed none.

    Args:
        abandoned: gets the run's id if it is overdue and names a worker that lost its lease.
    """
    run_id = summary.run_id
    if isinstance(summary.fields, Exception):
        raise summary.fields
    age_ms = now_ms - ids.created_ms(run_id)
    status = summary.field("status")
    if not status and age_ms < INCOMPLETE_MAX_S * 1000:
        return ""
    if not status or status in TERMINAL:  # a newer version's is not; a worker that claims the run finds out
        await run_store.finalize(redis, settings, run_id)
        return "accounted"
    if ended := await _end_waiting(redis, settings, summary, now_ms, abandoned):
        return ended
    life_s = settings.lists_ttl_s
    if summary.ttl_s >= 0 or age_ms > life_s * 1000 / 2:
        # The record's TTL is removed together with those of the other keys, so without one they have none either.
        other_keys = (
            partition_of_run(redis, run_id).all_of_run(run_id, summary.field("idempotency"))[1:]
            if summary.ttl_s >= 0
            else []
        )
        await queue_scripts.keep_active(
            redis,
            run_id,
            tenant=summary.field("tenant"),
            user=summary.field("user"),
            life_s=life_s,
            other_keys=other_keys,
        )
    if summary.score is None and await run_queue.requeue(redis, run_id, summary.field("thread")):
        logger.warning("run %s had no entry in the queue; it has one again", run_id)
        return "requeued"
    return ""


async def _end_waiting(redis: Redis, settings: Settings, summary: ActiveRun, now_ms: int, abandoned: list[str]) -> str:
    """Ends a run that no worker holds and that was cancelled or has waited too long; returns the repair if it ended."""
    worker = summary.field("worker")
    if worker and summary.has_lease:
        return ""
    guard: run_scripts.ClaimGuard = "lease" if worker else "worker"
    if summary.field("cancel") == "1":
        cancel = Cancel(reason=summary.field("cancel_reason") or None)
        return "cancelled" if await run_store.end_unheld(redis, settings, summary.run_id, cancel, guard) else ""
    if now_ms - _due_since(settings, summary) <= settings.queue_wait_max_s * 1000:
        return ""
    if summary.field("thread") and summary.field("status") == RunStatus.QUEUED:
        waits_since = await _turn_since(redis, summary)
        if waits_since is None or now_ms - waits_since <= settings.queue_wait_max_s * 1000:
            return ""
    if worker:
        abandoned.append(summary.run_id)
        return ""
    timeout = _queue_timeout(settings)
    return "timed_out" if await run_store.end_unheld(redis, settings, summary.run_id, timeout, guard) else ""


def _due_since(settings: Settings, summary: ActiveRun) -> float:
    """Returns since when a worker could have acquired the run, Unix ms; a time in the future if none can."""
    if summary.field("status") == RunStatus.QUEUED:
        return int(summary.field("created_at"))
    if summary.score is not None and keys.TIME_SCORE_MIN <= summary.score < keys.THROTTLED_SCORE:
        return summary.score
    # A started run that is throttled, or was and has a virtual time, or is missing in the queue. After its last claim it
    # worked and waited for somebody outside at most as long as both may take. An attempt is the ms from creation to claim.
    claimed_at = int(summary.field("created_at")) + int(summary.field("attempt"))
    wait_max_s = max(settings.approval_wait_s, settings.call_wait_max_s)
    return claimed_at + (settings.run_timeout_max_s + wait_max_s) * 1000


async def _turn_since(redis: Redis, summary: ActiveRun) -> int | None:
    """Returns since when a run has been active in its thread, Unix ms; None if it waits for its turn there.

    Before its turn a run may wait for as long as others take. A run that its thread does not know waits since its creation.
    """
    thread_key = summary.field("thread")
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hget(keys.thread_turns(thread_key), f"t:{summary.run_id}")
        pipe.lpos(keys.thread_line(thread_key), summary.run_id)
        activated_at, position = await pipe.execute()
    if activated_at is None and position is not None:
        return None
    return int(activated_at or summary.field("created_at"))


def _queue_timeout(settings: Settings) -> Error:
    failure = QueueTimeout(settings.queue_wait_max_s)
    return Error(error=str(failure), code=failure.code)


async def _end_abandoned(redis: Redis, settings: Settings, run_ids: list[str]) -> int:
    """Ends overdue runs whose workers lost their leases, if these workers do not renew them within the next `lease_s`.

    All leases expire while Redis is away. Workers that are alive renew theirs when it is back, but a sweep may be
    faster.

    Returns:
        How many ended.
    """
    await pause(settings.lease_s)
    ended = 0
    for run_id in run_ids:
        try:
            if await run_store.end_unheld(redis, settings, run_id, _queue_timeout(settings), "lease"):
                ended += 1
                logger.warning("run %s has ended: its worker died, and no other one acquired it", run_id)
        except RunEnded:
            logger.debug("run %s ended during the sweep", run_id)
    return ended
