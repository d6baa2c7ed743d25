"""What a server was asked to do, counted by the server itself."""

from collections import Counter

from redis.asyncio import Redis


async def calls(redis: Redis) -> Counter[str]:
    """Calls of each command so far."""
    stats = await redis.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): int(value["calls"]) for name, value in stats.items()})


async def sent(redis: Redis) -> int:
    """Reads from clients so far: a pipeline, or what a line sends in one turn of the loop, is one."""
    return int((await redis.info("stats"))["total_reads_processed"])


async def bytes_taken(redis: Redis) -> int:
    """Bytes that clients sent so far."""
    return int((await redis.info("stats"))["total_net_input_bytes"])
