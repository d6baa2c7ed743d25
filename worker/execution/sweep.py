"""The sweep: looks through the runs that have not ended for those that nobody would ever end.

Any worker does it once in a while, elected by a key. It requeues runs without an entry in
the queue, ends those that waited too long, keeps the keys of those that wait, forgets
those that have ended or never began, and lets in what no limit holds back any more.
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
# A creation that stopped before its record may still be completed by its client for this long.
INCOMPLETE_MAX_S: Final = 3600.0


async def sweep_forever(redis: Redis, settings: Settings, worker: str) -> None:
    """Sweep every `sweep_s`, if no other worker has."""
    while True:
        try:
            if await redis.set(keys.SWEEP, worker, nx=True, px=round(settings.sweep_s * 1000)):
                await sweep(redis, settings)
        except REDIS_AWAY as exc:
            logger.warning("the sweep waits for Redis: %s", exc)
        except Exception:
            # It would end for good, silently, and with it what brings back runs that no queue knows.
            logger.exception("a sweep failed; the next one comes")
        await asyncio.sleep(settings.sweep_s / 2)


class RunSummary(NamedTuple):
    """What of a run tells whether anything is to be done about it. Its request, up to a megabyte, is none of it."""

    run_id: str
    fields: list[bytes | None] | Exception  # FIELDS of its record, all None where there is none
    ttls_s: tuple[int, int]  # of its record and its job
    is_queued: bool


async def sweep(redis: Redis, settings: Settings) -> None:
    """DecisionSnapshot at every active run once."""
    now_ms = await read_time_ms(redis)
    offset = 0
    while run_ids := await redis.zrange(keys.ACTIVE, offset, offset + BATCH - 1):
        offset += len(run_ids)
        for summary in await _read_summaries(redis, [run_id.decode() for run_id in run_ids]):
            try:
                offset -= await _repair(redis, settings, summary, now_ms)
            except RunEnded:
                logger.debug("run %s ended while it was looked at", summary.run_id)
            except Exception as exc:
                if isinstance(exc, REDIS_AWAY) and is_passing(exc):
                    raise
                # One bad record must not cost all others their sweep.
                logger.exception("run %s cannot be looked at", summary.run_id)
    await _admit(redis, settings, now_ms)


async def _read_summaries(redis: Redis, run_ids: list[str]) -> list[RunSummary]:
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zmscore(keys.QUEUE, run_ids)
        for run_id in run_ids:
            pipe.hmget(keys.run(run_id), list(FIELDS))
            pipe.ttl(keys.run(run_id))
            pipe.ttl(keys.job(run_id))
        scores, *replies = await pipe.execute(raise_on_error=False)
    each = zip(run_ids, replies[::3], replies[1::3], replies[2::3], scores, strict=True)
    return [
        RunSummary(run_id, fields, (ttl, job_ttl), score is not None) for run_id, fields, ttl, job_ttl, score in each
    ]


async def _admit(redis: Redis, settings: Settings, now_ms: int) -> None:
    """Let in what is held back, as far as limits allow, though a process died before it could do so."""
    for member in await redis.zrange(keys.RUNNING, 0, -1):
        tenant, _, run_id = member.decode().rpartition(" ")
        async with redis.pipeline(transaction=False) as pipe:
            pipe.zscore(keys.ACTIVE, run_id)
            pipe.exists(keys.lease(run_id))
            pipe.zscore(keys.QUEUE, run_id)
            active, is_held, score = await pipe.execute()
        # One whose lease ran out is still counted: it goes on as soon as a worker takes it.
        if active is None or (not is_held and (score is None or score > now_ms)):
            await queue_scripts.admit(redis, run_id, settings.tenant_runs_running, tenant=tenant)
    waiting = (member.decode().rpartition(" ") for member in await redis.zrange(keys.THROTTLED, 0, -1))
    for tenant, run_id in {tenant: run_id for tenant, _, run_id in waiting}.items():
        await queue_scripts.admit(redis, run_id, settings.tenant_runs_running, tenant=tenant)


async def _repair(redis: Redis, settings: Settings, summary: RunSummary, now_ms: int) -> int:
    """Put one run right; 1 where it left `sb:active`."""
    run_id = summary.run_id
    if isinstance(summary.fields, Exception):
        raise summary.fields
    status, worker, cancel, created_at = (field or b"" for field in summary.fields)
    if not status:
        if now_ms - ids.created_ms(run_id) < INCOMPLETE_MAX_S * 1000:
            return 0
        await run_store.settle(redis, settings, run_id)
        return 1
    if status.decode() in TERMINAL:  # a newer version's word is none of them, and a worker finds out
        await run_store.settle(redis, settings, run_id)
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
    """Renew the TTLs of a run that waits: no worker does.

    Its job's is looked at, too: a worker that holds the run does not renew that one, nor the
    idempotency key's, which is as old.
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
    """End a run that nobody holds and that is cancelled or waited too long."""
    if is_cancelled:
        return await run_store.end_unheld(redis, settings, run_id, Cancel())
    if queued_ms > settings.queue_wait_max_s * 1000:
        failure = QueueTimeout(settings.queue_wait_max_s)
        return await run_store.end_unheld(redis, settings, run_id, Error(error=str(failure), code=failure.code))
    return False
