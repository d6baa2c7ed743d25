"""The sweep: finds active runs that no worker or gateway would ever end, and repairs them.

Any worker sweeps from time to time, elected by a key in Redis. The sweep requeues runs that have no entry in
the queue, ends runs that waited too long, renews the TTLs of waiting runs, removes runs that have ended or
were never created completely, and admits throttled runs that are within their tenant's limit again.
"""

import asyncio
import logging
from typing import Final, NamedTuple

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.events import Cancel, Error
from stagebus.shared.domain.runs import TERMINAL, RunStatus
from stagebus.shared.errors import QueueTimeout, RunEnded
from stagebus.shared.log import log_reader
from stagebus.shared.storage import keys, queue_scripts
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing, read_time_ms
from stagebus.shared.store import run_queue, run_store

logger = logging.getLogger(__name__)

BATCH: Final = 500
FIELDS: Final = ("status", "worker", "cancel", "created_at")
# A creation that stopped before the record was written may be completed by its client's retry for this long.
INCOMPLETE_MAX_S: Final = 3600.0


async def sweep_forever(redis: Redis, settings: Settings, worker: str) -> None:
    """Sweeps every `sweep_s` unless another worker has done so."""
    while True:
        try:
            if await redis.set(keys.SWEEP, worker, nx=True, px=round(settings.sweep_s * 1000)):
                await sweep(redis, settings)
        except REDIS_AWAY as exc:
            logger.warning("the sweep waits for Redis: %s", exc)
        except Exception:
            # Otherwise the task would end silently, and runs without an entry in the queue would stay stranded.
            logger.exception("a sweep failed; trying again at the next interval")
        await asyncio.sleep(settings.sweep_s / 2)


class ActiveRun(NamedTuple):
    """The small fields of a run that show whether it needs a repair; without its request of up to a megabyte."""

    run_id: str
    fields: list[bytes | None] | Exception  # FIELDS of its record; all None if there is no record
    ttls_s: tuple[int, int]  # of the record and the job
    is_queued: bool


async def sweep(redis: Redis, settings: Settings) -> None:
    """Checks every active run once."""
    now_ms = await read_time_ms(redis)
    offset = 0
    while run_ids := await redis.zrange(keys.ACTIVE, offset, offset + BATCH - 1):
        offset += len(run_ids)
        for summary in await _read_summaries(redis, [run_id.decode() for run_id in run_ids]):
            try:
                offset -= await _repair(redis, settings, summary, now_ms)
            except RunEnded:
                logger.debug("run %s ended during the sweep", summary.run_id)
            except Exception as exc:
                if isinstance(exc, REDIS_AWAY) and is_passing(exc):
                    raise
                # One bad record must not keep the other runs from being swept.
                logger.exception("run %s cannot be swept", summary.run_id)
    await _admit(redis, settings, now_ms)


async def _read_summaries(redis: Redis, run_ids: list[str]) -> list[ActiveRun]:
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zmscore(keys.QUEUE, run_ids)
        for run_id in run_ids:
            pipe.hmget(keys.run(run_id), list(FIELDS))
            pipe.ttl(keys.run(run_id))
            pipe.ttl(keys.job(run_id))
        scores, *replies = await pipe.execute(raise_on_error=False)
    each = zip(run_ids, replies[::3], replies[1::3], replies[2::3], scores, strict=True)
    return [
        ActiveRun(run_id, fields, (ttl, job_ttl), score is not None) for run_id, fields, ttl, job_ttl, score in each
    ]


async def _admit(redis: Redis, settings: Settings, now_ms: int) -> None:
    """Admits throttled runs as far as the limits allow, in case a process died before it could do so."""
    for member in await redis.zrange(keys.RUNNING, 0, -1):
        tenant, _, run_id = member.decode().rpartition(" ")
        async with redis.pipeline(transaction=False) as pipe:
            pipe.zscore(keys.ACTIVE, run_id)
            pipe.exists(keys.lease(run_id))
            pipe.zscore(keys.QUEUE, run_id)
            active, is_held, score = await pipe.execute()
        # A run whose lease expired still counts: it continues as soon as a worker acquires it.
        if active is None or (not is_held and (score is None or score > now_ms)):
            await queue_scripts.admit(redis, run_id, settings.tenant_runs_running, tenant=tenant)
    waiting = (member.decode().rpartition(" ") for member in await redis.zrange(keys.THROTTLED, 0, -1))
    for tenant, run_id in {tenant: run_id for tenant, _, run_id in waiting}.items():
        await queue_scripts.admit(redis, run_id, settings.tenant_runs_running, tenant=tenant)


async def _repair(redis: Redis, settings: Settings, summary: ActiveRun, now_ms: int) -> int:
    """Repairs one run; returns 1 if it was removed from `sb:active`, else 0."""
    run_id = summary.run_id
    if isinstance(summary.fields, Exception):
        raise summary.fields
    status, worker, cancel, created_at = (field or b"" for field in summary.fields)
    if not status:
        if now_ms - ids.created_ms(run_id) < INCOMPLETE_MAX_S * 1000:
            return 0
        await run_store.finalize(redis, settings, run_id)
        return 1
    if (
        status.decode() in TERMINAL
    ):  # a newer version's status is not in TERMINAL; a worker that claims the run finds out
        await run_store.finalize(redis, settings, run_id)
        return 1
    if not worker:
        queued_ms = now_ms - int(created_at) if status == RunStatus.QUEUED.encode() else 0
        if await _end_overdue(redis, settings, run_id, queued_ms, is_cancelled=cancel == b"1"):
            return 1
        if min(summary.ttls_s) <= settings.live_ttl_s / 2:
            await _keep_alive(redis, settings, run_id)
    if not summary.is_queued and await run_queue.requeue(redis, run_id, settings.live_ttl_s):
        logger.warning("run %s had no entry in the queue; it has one again", run_id)
    return 0


async def _keep_alive(redis: Redis, settings: Settings, run_id: str) -> None:
    """Renews the TTLs of a waiting run, because no worker does.

    This includes the job and the idempotency key, which are as old and which even a worker that holds the run
    does not renew.
    """
    head = await log_reader.read_head(redis, run_id)
    run_keys = [keys.run(run_id), keys.stages(run_id), keys.job(run_id)]
    run_keys += [keys.stage_stream(run_id, stage_id) for stage_id in head.stage_ids]
    if reserved := await redis.hget(keys.run(run_id), "idempotency"):  # type: ignore[misc]
        run_keys.append(reserved.decode())
    async with redis.pipeline(transaction=False) as pipe:
        for key in run_keys:
            pipe.expire(key, round(settings.live_ttl_s))
        await pipe.execute()


async def _end_overdue(redis: Redis, settings: Settings, run_id: str, queued_ms: int, *, is_cancelled: bool) -> bool:
    """Ends a run that no worker holds and that was cancelled or has waited too long; returns True if it ended."""
    if is_cancelled:
        return await run_store.end_unheld(redis, settings, run_id, Cancel())
    if queued_ms > settings.queue_wait_max_s * 1000:
        failure = QueueTimeout(settings.queue_wait_max_s)
        return await run_store.end_unheld(redis, settings, run_id, Error(error=str(failure), code=failure.code))
    return False
