"""Runs into arq's queue. A job carries nothing but its run's id, as JSON, never pickle.

arq:job:01J…   {"t": null, "f": "run_toolchain", "a": ["01J…"], "k": {}, "et": 1735689600000}
"""

from typing import Any, Final

import orjson
from arq.connections import ArqRedis
from arq.jobs import serialize_job

from stagebus.shared.runtime.clock import wall_ms
from stagebus.shared.storage import keys, queue_scripts
from stagebus.shared.storage.redis_client import Redis

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


def new_job(run_id: str) -> bytes:
    """A run's job, serialised.

    arq's own enqueue_job takes four round trips for it (arq 0.28), and this machine's clock for its score.
    """
    # arq's log line shows the time, nothing rests on it.
    return serialize_job(FUNCTION, (run_id,), {}, None, wall_ms(), serializer=encode_job)


async def requeue(redis: Redis, run_id: str, ttl_s: float) -> bool:
    """Make sure that a run has a job; True where it had none. Overwrites a job that cannot be read."""
    return await queue_scripts.requeue(redis, run_id, new_job(run_id), ttl_s)


async def ring(redis: Redis, run_id: str) -> None:
    """Wake one waiting worker, which looks for this run first."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.rpush(keys.WAKEUP, run_id)
        pipe.ltrim(keys.WAKEUP, -keys.WAKEUPS_MAX, -1)
        await pipe.execute()
