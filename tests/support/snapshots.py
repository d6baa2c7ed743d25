"""Copies a Redis database and restores the copy, as if a lagging replica had taken over."""

from redis.asyncio import Redis

Snapshot = dict[bytes, tuple[bytes, int]]


async def take(redis: Redis) -> Snapshot:
    """Copies every key with its TTL in ms (0: none), all at one moment, as a replica has them."""
    names: list[bytes] = []
    while True:  # a key that is created between the listing and the dump would be missing from the copy
        async with redis.pipeline(transaction=True) as pipe:
            for name in names:
                pipe.dump(name)
                pipe.pttl(name)
            pipe.keys()
            *replies, there = await pipe.execute()
        if set(there) <= set(names):
            break
        names = there
    values = zip(names, replies[::2], replies[1::2], strict=True)
    return {name: (value, max(0, ttl_ms)) for name, value, ttl_ms in values if value is not None}


async def restore(redis: Redis, snapshot: Snapshot) -> None:
    """Restores the copy; everything written since is lost."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.flushdb()
        for key, (value, ttl_ms) in snapshot.items():
            pipe.restore(key, ttl_ms, value)
        await pipe.execute()
