"""Reads a Redis server's own counters: commands, round trips, bytes, subscribers and blocked clients."""

from collections import Counter

from redis.asyncio import Redis


async def calls(redis: Redis) -> Counter[str]:
    """Returns how often each command was called so far, including the calls that scripts make."""
    stats = await redis.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): int(value["calls"]) for name, value in stats.items()})


async def sent(redis: Redis) -> int:
    """Returns the number of reads from clients so far: a pipeline, or one write of a pipelined connection, is one."""
    return int((await redis.info("stats"))["total_reads_processed"])


async def bytes_taken(redis: Redis) -> int:
    """Returns the number of bytes that clients sent so far."""
    return int((await redis.info("stats"))["total_net_input_bytes"])


async def subscriber_count(redis: Redis, channel: str) -> int:
    """Returns how many clients are subscribed to the channel."""
    return int((await redis.pubsub_numsub(channel))[0][1])


async def blocked_client_count(redis: Redis) -> int:
    """Returns how many clients wait in a blocking command."""
    return int((await redis.info("clients"))["blocked_clients"])
