"""An older copy of a Redis, to be restored: what a lagging replica looks like after a failover."""

from redis.asyncio import Redis

Snapshot = dict[bytes, tuple[bytes, int]]


async def take(redis: Redis) -> Snapshot:
    """Every key with its TTL in ms (0: none)."""
    return {key: (await redis.dump(key), max(0, await redis.pttl(key))) async for key in redis.scan_iter()}


async def restore(redis: Redis, snapshot: Snapshot) -> None:
    """Put the copy back; all that came since is lost."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.flushdb()
        for key, (value, ttl_ms) in snapshot.items():
            pipe.restore(key, ttl_ms, value)
        await pipe.execute()
