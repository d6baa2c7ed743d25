"""Copies the tenants' own limits into each partition, where its scripts read them.

The operator writes `sb:limits`. On a cluster a script reads only keys of its own slot, so a limit takes effect there with
the partition's next sweep.
"""

from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import Partition
from stagebus.shared.storage.redis_client import Redis


async def copy_limits(redis: Redis, partition: Partition) -> None:
    """Makes a partition's copy equal to what the operator wrote; writes nothing if it is."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys.LIMITS)
        pipe.hgetall(partition.limits)
        limits, copy = await pipe.execute()
    if limits == copy:
        return
    async with redis.pipeline(transaction=True) as pipe:
        pipe.delete(partition.limits)
        if limits:
            pipe.hset(partition.limits, mapping=limits)
        await pipe.execute()
