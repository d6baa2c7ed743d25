"""Runs into arq's queue. A job carries nothing but its run's id, as JSON, never pickle.

arq:job:01J…   {"t": null, "f": "run_toolchain", "a": ["01J…"], "k": {}, "et": 1735689600000}
"""

from datetime import UTC, datetime
from typing import Any, Final

import orjson
from arq.connections import ArqRedis
from arq.jobs import serialize_job
from redis.asyncio import Redis

from shared import keys, scripts

FUNCTION: Final = "run_toolchain"


def encode_job(job: dict[str, Any]) -> bytes:
    """arq's job as JSON."""
    return orjson.dumps(job)


def decode_job(raw: bytes) -> dict[str, Any]:
    """The inverse of `encode_job`.

    Raises:
        ValueError: not a JSON object; arq fails the job then.
    """
    job = orjson.loads(raw)
    if not isinstance(job, dict):
        raise ValueError("a job is a JSON object")  # noqa: TRY004 - arq looks for no type in particular
    return job


def job_client(redis: Redis) -> ArqRedis:
    """arq's client on the pool of ours."""
    return ArqRedis(
        redis.connection_pool,
        job_serializer=encode_job,
        job_deserializer=decode_job,
        default_queue_name=keys.QUEUE,
    )


async def enqueue(redis: Redis, run_id: str, turn: int, ttl_s: float) -> None:
    """Put a new run into the queue and ring; safe to repeat.

    Args:
        turn: its place among those that wait, and its score: as a time, one that is long over.
            arq would take this machine's clock.
        ttl_s: how long the job may wait.
    """
    job = await job_client(redis).enqueue_job(
        FUNCTION,
        run_id,
        _job_id=run_id,
        _defer_until=datetime.fromtimestamp(turn / 1000, UTC),
        _expires=ttl_s,
    )
    if job is None:  # arq says nothing of whether its entry stands, too
        await requeue(redis, run_id, ttl_s)
    else:
        await ring(redis)


async def requeue(redis: Redis, run_id: str, ttl_s: float) -> bool:
    """Make sure that a run has a job; True where it had none. Overwrites a job that cannot be read."""
    now_ms = int(datetime.now(UTC).timestamp() * 1000)  # arq's log line shows it, nothing rests on it
    job = serialize_job(FUNCTION, (run_id,), {}, None, now_ms, serializer=encode_job)
    return await scripts.requeue(redis, run_id, job, ttl_s)


async def ring(redis: Redis) -> None:
    """Wake one waiting worker."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.rpush(keys.BELL, "1")
        pipe.ltrim(keys.BELL, -scripts.BELLS_MAX, -1)
        await pipe.execute()
