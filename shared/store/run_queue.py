"""Writes the jobs of arq's queue, without arq. A job carries its run's id and its thread's key, as JSON, never pickle.

arq:job:01J…   {"t": null, "f": "run_toolchain", "a": ["01J…"], "k": {}, "et": 1735689600000}
arq:job:01J…   {"t": null, "f": "run_toolchain", "a": ["01J…"], "k": {"thread_key": "sb:thread:{CE}:5b0f…"}, "et": …}
"""

from typing import Any, Final

import orjson

from stagebus.shared.runtime.clock import wall_ms
from stagebus.shared.storage import keys, queue_scripts
from stagebus.shared.storage.partition_keys import UNTAGGED, Partition
from stagebus.shared.storage.redis_client import Redis

FUNCTION: Final = "run_toolchain"


def encode_job(job: dict[str, Any]) -> bytes:
    """Encodes arq's job as JSON."""
    return orjson.dumps(job)


def decode_job(raw: bytes) -> dict[str, Any]:
    """Decodes the bytes of `encode_job`.

    Raises:
        ValueError: the bytes are not a JSON object; arq then fails the job.
    """
    job = orjson.loads(raw)
    if not isinstance(job, dict):
        raise ValueError("a job is a JSON object")  # noqa: TRY004 - arq catches any exception
    return job


def new_job(run_id: str, thread_key: str = "") -> bytes:
    """Returns the serialised job of a run, as arq 0.28 reads it.

    The claim of a run in a thread names the thread, and the worker reads nothing but the job before it.

    arq's own enqueue_job would take four round trips and use this machine's clock for the score.
    """
    # t: the try that the job begins with, et: when it was queued; arq only logs that time.
    named = {"thread_key": thread_key} if thread_key else {}
    return encode_job({"t": None, "f": FUNCTION, "a": [run_id], "k": named, "et": wall_ms()})


async def requeue(redis: Redis, run_id: str, thread_key: str = "") -> bool:
    """Ensures that an active run has a job in the queue; returns True if it had none. Overwrites an unreadable job."""
    return await queue_scripts.requeue(redis, run_id, new_job(run_id, thread_key), thread_key)


async def ring(redis: Redis, run_id: str, partition: Partition = UNTAGGED) -> None:
    """Wakes one worker that waits for runs of the partition, and tries to acquire this run first."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.rpush(partition.wakeup, run_id)
        pipe.ltrim(partition.wakeup, -keys.WAKEUPS_MAX, -1)
        await pipe.execute()
