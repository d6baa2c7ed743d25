"""Selects the active runs that a sweep looks at, so that runs that wait for something far ahead cost it nothing.

    each sweep     every run whose score in the queue is near or past, or that is throttled: at work, new, due, overdue
                   every run without an entry in the queue, if there are fewer entries than active runs
                                  PART of all active runs, the next ones in turn
    a pass         so each run is looked at, wherever it waits: what is older than the lists is kept in them, and what no
                   other look has found is repaired; often enough for the lists, which expire

A parked run's score is the time at which its wait ends, and everything that ends its wait earlier sets the score: a
decision, a cancel. Up to PART active runs, each sweep looks at all of them.
"""

from collections.abc import AsyncIterator
from math import ceil
from typing import Final, NamedTuple

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import UNTAGGED, Partition
from stagebus.shared.storage.redis_client import Redis

PART: Final = 1000
# An id and its score are small, so that more of them are read at a time than of records.
IDS_BATCH: Final = 2000
# A process waits up to one and a half intervals between two sweeps.
_INTERVAL_MAX: Final = 1.5


class Candidates(NamedTuple):
    """The runs that a sweep looks at, each once; `ends_pass` if with them all active runs have had their turn."""

    run_ids: list[str]
    ends_pass: bool


async def find_candidates(redis: Redis, settings: Settings, now_ms: int, partition: Partition = UNTAGGED) -> Candidates:
    """Returns the runs of a partition that this sweep looks at."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zcard(partition.active)
        pipe.zcard(partition.queue)
        active, queued = await pipe.execute()
    if active <= PART:
        return Candidates([run_id.decode() for run_id in await redis.zrange(partition.active, 0, -1)], ends_pass=True)
    found, ends_pass = await _next_part(redis, settings, partition, active)
    near_ms = now_ms + round(1000 * max(settings.lease_s, settings.sweep_s))
    for low, high in (("-inf", near_ms), (keys.THROTTLED_SCORE, "+inf")):
        async for run_ids in _in_queue(redis, partition, low, high):
            found |= dict.fromkeys(run_ids)
    if active > queued:
        async for run_ids in _missing_in_queue(redis, partition):
            found |= dict.fromkeys(run_ids)
    return Candidates([run_id.decode() for run_id in found], ends_pass)


def part_size(settings: Settings, active: int) -> int:
    """Returns how many of the active runs a sweep looks at in turn: more than `PART` if the lists would else expire."""
    sweeps = settings.lists_ttl_s / 4 / (_INTERVAL_MAX * settings.sweep_s)
    return max(PART, ceil(active / max(1, sweeps)))


async def _next_part(
    redis: Redis, settings: Settings, partition: Partition, active: int
) -> tuple[dict[bytes, None], bool]:
    """Returns the next part of the active runs, by creation time, and whether it is the last; stores where it ends.

    If it were stored after the look, a run that ends its sweeper each time would keep the others from their turn.
    """
    size = part_size(settings, active)
    after = await redis.get(partition.sweep_position)
    low = f"({after.decode()}" if after else "-inf"
    part = await redis.zrangebyscore(partition.active, low, "+inf", 0, size, withscores=True)
    if len(part) < size:
        await redis.delete(partition.sweep_position)
        return dict.fromkeys(run_id for run_id, _ in part), True
    last = f"{part[-1][1]:.0f}"
    await redis.set(partition.sweep_position, last, px=round(1000 * settings.lists_ttl_s))
    same = await redis.zrangebyscore(partition.active, last, last)  # those of the same millisecond, which come next
    return dict.fromkeys([run_id for run_id, _ in part] + same), False


async def _in_queue(
    redis: Redis, partition: Partition, low: float | str, high: float | str
) -> AsyncIterator[list[bytes]]:
    """Yields the active runs in the queue with these scores. One that moves meanwhile may be left out until the next sweep."""
    offset = 0
    while run_ids := await redis.zrangebyscore(partition.queue, low, high, offset, IDS_BATCH):
        offset += len(run_ids)
        scores = await redis.zmscore(partition.active, run_ids)
        yield [run_id for run_id, score in zip(run_ids, scores, strict=True) if score is not None]


async def _missing_in_queue(redis: Redis, partition: Partition) -> AsyncIterator[list[bytes]]:
    """Yields the active runs without an entry in the queue, from their ids alone."""
    offset = 0
    while run_ids := await redis.zrange(partition.active, offset, offset + IDS_BATCH - 1):
        offset += len(run_ids)
        scores = await redis.zmscore(partition.queue, run_ids)
        yield [run_id for run_id, score in zip(run_ids, scores, strict=True) if score is None]
