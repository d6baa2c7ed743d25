"""What a server was asked to do, counted by the server itself."""

from collections import Counter

from redis.asyncio import Redis


async def calls(redis: Redis) -> Counter[str]:
    """Calls of each command so far."""
    stats = await redis.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): int(value["calls"]) for name, value in stats.items()})
