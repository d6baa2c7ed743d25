"""Reads whether the runs of silent streams have a worker."""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, Final

from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import partition_of_run
from stagebus.shared.storage.redis_client import Redis

# A worker renews a lease when a third of it has passed. If less than this share is left, a renewal is overdue.
_LEFT_MIN: Final = 0.5


class RunHealth(Enum):
    """The worker's side of a run."""

    HELD = auto()  # a worker, which renews its lease
    UNHELD = auto()  # its worker has gone silent
    QUEUED = auto()  # no worker yet, or its worker gave it back
    AT_REST = auto()  # nobody: it has ended, waits for a person or for its turn, or has no readable record


async def read_run_health(redis: Redis, run_ids: Sequence[str], lease_s: float) -> list[RunHealth]:
    """Reads the health of several runs in one round trip, and in a second one which runs wait for their turn in a thread."""
    async with redis.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hmget(keys.run(run_id), ["status", "worker", "finished_at", "thread"])
            pipe.pttl(partition_of_run(redis, run_id).lease(run_id))
        replies = await pipe.execute(raise_on_error=False)
    healths = [_health(*pair, lease_s) for pair in zip(replies[::2], replies[1::2], strict=True)]
    places = [place for place, health in enumerate(healths) if health is RunHealth.QUEUED and replies[2 * place][3]]
    in_threads = {place: replies[2 * place][3].decode() for place in places}
    if in_threads:
        async with redis.pipeline(transaction=False) as pipe:
            for place, thread_key in in_threads.items():
                pipe.lpos(keys.thread_line(thread_key), run_ids[place])
            positions = await pipe.execute()
        for place, position in zip(in_threads, positions, strict=True):
            if position is not None:
                healths[place] = RunHealth.AT_REST
    return healths


def _health(record: Any, lease_left_ms: Any, lease_s: float) -> RunHealth:
    # One bad record must not fail the others of the same read.
    if isinstance(record, Exception) or isinstance(lease_left_ms, Exception):
        return RunHealth.AT_REST
    status, worker, finished_at, _ = record
    if status is None or finished_at or status == RunStatus.PARKED.encode():
        return RunHealth.AT_REST
    if not worker:
        return RunHealth.QUEUED
    return RunHealth.HELD if lease_left_ms >= _LEFT_MIN * lease_s * 1000 else RunHealth.UNHELD
