"""Finds keys of runs that would never expire: keys without a TTL whose run is not in `sb:active`."""

import re

from redis.asyncio import Redis

from stagebus.shared.storage import keys

PATTERNS = ("sb:run:*", "arq:job:*", "sb:idempotency:*")


async def immortal_keys(redis: Redis) -> list[str]:
    """Returns the keys of runs that have no TTL and that no sweep would find."""
    found = [key.decode() for pattern in PATTERNS async for key in redis.scan_iter(pattern)]
    return [key for key in found if await redis.ttl(key) == -1 and not await _is_active(redis, key)]


async def _is_active(redis: Redis, key: str) -> bool:
    if key.startswith("sb:idempotency:"):
        run_id = (await redis.get(key) or b"").decode().split(" ")[0]
    else:
        match = re.match(r"sb:run:\{(.*)\}|arq:job:(.*)", key)
        assert match is not None, key
        run_id = match[1] or match[2]
    # The key may have expired, or got its TTL with the run's end, since it was read.
    return await redis.zscore(keys.ACTIVE, run_id) is not None or await redis.ttl(key) != -1
