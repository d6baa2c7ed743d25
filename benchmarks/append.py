"""Append: round trips, and Redis's CPU and memory per event, compared with separate XADD, HSET and PUBLISH."""

import time
from typing import Any

import orjson
from redis.asyncio import Redis

from benchmarks import lab
from benchmarks.latency import EVENT, STAGE, stamped
from benchmarks.publisher import Appender
from stagebus.shared.storage import keys

EVENTS = lab.sized(20_000, 2_000)
BURSTS = (1, 4, 16, 64)


async def measure() -> dict[str, Any]:
    """Measures single events and bursts, each kind with its own run."""
    async with lab.Lab() as place:
        redis = await place.start_redis()
        appender = Appender(place.redis_url)
        result: dict[str, Any] = {"events": EVENTS, "by_burst": {}}
        for number, burst in enumerate(BURSTS):
            (run_id,) = await appender.make(1)
            result["by_burst"][burst] = await _cost(
                place, redis, lambda n=number, b=burst: appender.publish(n, b), burst
            )
            stored = await redis.memory_usage(keys.stage_stream(run_id, STAGE), samples=0)
            result["by_burst"][burst]["memory_bytes_an_event"] = stored / await redis.xlen(
                keys.stage_stream(run_id, STAGE)
            )
        result["memory_bytes_a_token_event"] = await _memory_bytes(redis)
        result["one_by_one"] = await _cost(place, redis, lambda: _append_one_by_one(redis), 1)
        return result


async def _memory_bytes(redis: Redis) -> float:
    """Returns the memory of a token's event as stored, without the benchmark's timestamp."""
    data = orjson.dumps(
        {"stage_id": "synthesis", "tool_results": {"choices": [{"index": 0, "delta": {"content": " token"}}]}}
    )
    for sequence in range(1, EVENTS + 1):
        await redis.xadd("tokens", {"event": EVENT, "data": data}, id=f"5204-{sequence}")
    return float(await redis.memory_usage("tokens", samples=0)) / EVENTS


async def _append_one_by_one(redis: Redis) -> None:
    entry_id = await redis.xadd("plain", {"event": EVENT, "data": stamped()})
    await redis.hset("plain:run", "last_id", entry_id)
    await redis.publish("plain:live", stamped())


async def _cost(place: lab.Lab, redis: Redis, append: Any, burst: int) -> dict[str, float]:
    await append()
    calls = await _round_trips(redis)
    server, own, started = place.redis_process.cpu_s(), time.process_time(), time.monotonic()
    for _ in range(EVENTS // burst):
        await append()
    events = EVENTS // burst * burst
    return {
        "redis_cpu_us_an_event": (place.redis_process.cpu_s() - server) / events * 1e6,
        "caller_cpu_us_an_event": (time.process_time() - own) / events * 1e6,
        "seconds": time.monotonic() - started,
        "round_trips_an_append": (await _round_trips(redis) - calls - 1) / (EVENTS // burst),
    }


async def _round_trips(redis: Redis) -> int:
    """Returns how often the server read from a client."""
    return int((await redis.info("stats"))["total_reads_processed"])


if __name__ == "__main__":
    lab.run("append", measure)
