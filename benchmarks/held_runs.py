"""Held runs: fills all slots and counts the Redis commands for holding runs and for waiting; compared with arq."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import arq
import httpx
from arq.connections import RedisSettings
from redis.asyncio import Redis

from benchmarks import lab

WORKERS = lab.sized(20, 2)
SLOTS = lab.sized(50, 80)
RUNS = WORKERS * SLOTS
WATCH_S = lab.sized(12.0, 1.5)
POST_AT_ONCE = 20
STILL_S = 10  # so long after the last one that was taken, no more of them will be
LOOK_S = 0.5
SETTLED_S = lab.sized(1.0, 0.3)
EVENTS = 2  # of a run's stage that is held: it began, and the model's first word
MODEL = "demo:stall_after=1,delay_ms=1"

Post = Callable[[], Awaitable[None]]


async def measure() -> dict[str, Any]:
    """Counts commands while idle and while a silent model occupies every slot."""
    return {"runs": RUNS, "workers": WORKERS, "slots": SLOTS, "stagebus": await _ours(), "arq": await _arq()}


async def _ours() -> dict[str, Any]:
    async with lab.Lab() as place, httpx.AsyncClient(timeout=30) as http:
        redis = await place.start_redis()
        await place.start_demo()
        _, url = await place.start_gateway()

        async def post() -> None:
            body = {"model": MODEL, "user_prompt": "hold", "tools": [], "synthesis": False}
            (await http.post(f"{url}/runs", json=body)).raise_for_status()

        def start_worker() -> Awaitable[lab.Process]:
            return place.start_worker(STAGEBUS_WORKER_CONCURRENCY=str(SLOTS))

        return await _cost(place, redis, start_worker, post, _silent)


async def _arq() -> dict[str, Any]:
    """Measures arq without a gateway: this program enqueues the jobs."""
    async with lab.Lab() as place:
        redis = await place.start_redis()
        await place.start_demo()
        pool = await arq.create_pool(RedisSettings.from_dsn(place.redis_url))

        async def post() -> None:
            await pool.enqueue_job("ask", MODEL, "hold")

        async def silent(_: Redis) -> int:
            return 0  # a job writes nothing that could be waited for

        try:
            return await _cost(place, redis, lambda: place.start_arq_worker(SLOTS), post, silent)
        finally:
            await pool.aclose()


async def _cost(
    place: lab.Lab,
    redis: Redis,
    start_worker: Callable[[], Awaitable[lab.Process]],
    post: Post,
    silent: Callable[[Redis], Awaitable[int]],
) -> dict[str, Any]:
    await _until_settled(redis)
    others = await _commands_per_s(redis)  # the gateway's canary, and this program's own
    workers = await asyncio.gather(*(start_worker() for _ in range(WORKERS)))
    await _until_settled(redis)
    idle = await _commands_per_s(redis)
    await _post_all(post)
    held = await _until_held(redis, silent)
    cpu, redis_cpu = sum(worker.cpu_s() for worker in workers), place.redis_process.cpu_s()
    busy = await _commands_per_s(redis)
    return {
        "held": held,
        "commands_per_s_idle_worker": (idle[0] - others[0]) / WORKERS,
        "commands_per_s_idle_worker_with_scripts": (idle[1] - others[1]) / WORKERS,
        "commands_per_s_held_run": (busy[0] - others[0]) / held,
        "commands_per_s_held_run_with_scripts": (busy[1] - others[1]) / held,
        "cpu_share_worker": (sum(worker.cpu_s() for worker in workers) - cpu) / WATCH_S / WORKERS,
        "cpu_share_redis": (place.redis_process.cpu_s() - redis_cpu) / WATCH_S,
    }


async def _until_settled(redis: Redis) -> None:
    """Waits until no new connection is opened, so that start-up commands are not counted as idle ones."""
    before, now = -1, 0
    while before != now:
        await asyncio.sleep(SETTLED_S)
        before, now = now, (await redis.info("stats"))["total_connections_received"]


async def _post_all(post: Post) -> None:
    slots = asyncio.Semaphore(POST_AT_ONCE)

    async def post_one() -> None:
        async with slots:
            await post()

    await asyncio.gather(*(post_one() for _ in range(RUNS)))


async def _until_held(redis: Redis, silent: Callable[[Redis], Awaitable[int]]) -> int:
    """Waits until every run is held and has sent its first chunk, or no progress is made; returns the number held."""
    held, grew_at = 0, time.monotonic()
    while (held < RUNS or await silent(redis)) and time.monotonic() - grew_at < STILL_S:
        await asyncio.sleep(LOOK_S)
        # The key by which arq marks a job that is in progress; ours is the same.
        now = sum([1 async for _ in redis.scan_iter("arq:in-progress:*", count=1000)])
        if now > held:
            held, grew_at = now, time.monotonic()
    return held


async def _silent(redis: Redis) -> int:
    streams = [key async for key in redis.scan_iter("sb:run:*:stage:extraction", count=1000)]
    async with redis.pipeline(transaction=False) as pipe:
        for key in streams:
            pipe.xlen(key)
        return RUNS - sum(length >= EVENTS for length in await pipe.execute())


async def _commands_per_s(redis: Redis) -> tuple[float, float]:
    """Returns the commands that clients sent, and all commands the server executed, including those within scripts."""
    before, started = await redis.info("stats"), time.monotonic()
    await asyncio.sleep(WATCH_S)
    after, seconds = await redis.info("stats"), time.monotonic() - started
    sent, done = (after[name] - before[name] for name in ("total_reads_processed", "total_commands_processed"))
    return (sent - 1) / seconds, (done - 1) / seconds


if __name__ == "__main__":
    lab.run("held_runs", measure)
