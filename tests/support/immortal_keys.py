"""Finds keys that would never expire: those of runs that are not in `sb:active`, and any of a thread, without a TTL."""

import re

from redis.asyncio import Redis

from stagebus.shared.storage import keys

PATTERNS = ("sb:run:*", "arq:job:*", "sb:idempotency:*")
THREAD_PATTERNS = ("sb:thread:*", "sb:threads:*")


async def immortal_keys(redis: Redis) -> list[str]:
    """Returns the keys of runs that have no TTL and that no sweep would find."""
    found = [key.decode() for pattern in PATTERNS async for key in redis.scan_iter(pattern)]
    of_threads = [key.decode() for pattern in THREAD_PATTERNS async for key in redis.scan_iter(pattern)]
    immortal = [key for key in found if await redis.ttl(key) == -1 and not await _is_active(redis, key)]
    return immortal + [key for key in of_threads if await redis.ttl(key) == -1]


async def _is_active(redis: Redis, key: str) -> bool:
    if key.startswith("sb:idempotency:"):
        run_id = (await redis.get(key) or b"").decode().split(" ")[0]
    else:
        match = re.match(r"sb:run:\{(.*)\}|arq:job:(.*)", key)
        assert match is not None, key
        run_id = match[1] or match[2]
    # The key may have expired, or got its TTL with the run's end, since it was read.
    return await redis.zscore(keys.ACTIVE, run_id) is not None or await redis.ttl(key) != -1
