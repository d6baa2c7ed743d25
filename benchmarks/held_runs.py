"""Held runs: as many as there are slots, and the commands that holding them and waiting for them cost."""

import asyncio
import contextlib
from typing import Any

import httpx
from redis.asyncio import Redis

from benchmarks import lab

RUNS = lab.sized(1000, 200)
WORKERS = lab.sized(5, 2)
WATCH_S = lab.sized(12, 3)
POST_AT_ONCE = 20
HELD_S = 60
LOOK_S = 0.5
EVENTS = 2  # of a run's stage that is held: it began, and the model's first word


async def measure() -> dict[str, Any]:
    """Commands that clients sent, with nothing to do and with every slot taken by a silent model."""
    async with lab.Lab() as place:
        redis = await place.start_redis()
        await place.start_demo()
        _, url = await place.start_gateway()
        others = await _commands_per_s(redis)  # the gateway's canary, and this program's own
        slots = str(RUNS // WORKERS)
        workers = await asyncio.gather(*(place.start_worker(STAGEBUS_WORKER_CONCURRENCY=slots) for _ in range(WORKERS)))
        idle = await _commands_per_s(redis)
        await _post(url)
        held = await _until_held(redis)
        cpu = sum(worker.cpu_s() for worker in workers)
        busy = await _commands_per_s(redis)
        return {
            "runs": RUNS,
            "workers": WORKERS,
            "held": held,
            "commands_per_s_idle_worker": (idle[0] - others[0]) / WORKERS,
            "commands_per_s_idle_worker_with_scripts": (idle[1] - others[1]) / WORKERS,
            "commands_per_s_held_run": (busy[0] - others[0]) / RUNS,
            "commands_per_s_held_run_with_scripts": (busy[1] - others[1]) / RUNS,
            "cpu_share_worker": (sum(worker.cpu_s() for worker in workers) - cpu) / WATCH_S / WORKERS,
        }


async def _post(url: str) -> None:
    body = {"model": "demo:stall_after=1,delay_ms=1", "user_prompt": "hold", "tools": [], "synthesis": False}
    slots = asyncio.Semaphore(POST_AT_ONCE)
    async with httpx.AsyncClient(timeout=30) as http:

        async def post() -> None:
            async with slots:
                (await http.post(f"{url}/runs", json=body)).raise_for_status()

        await asyncio.gather(*(post() for _ in range(RUNS)))


async def _until_held(redis: Redis) -> int:
    """Until every run is held and has said its first words, or no more of them will be; how many are held."""
    held = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HELD_S):
            while held < RUNS or await _silent(redis):
                held = sum([1 async for _ in redis.scan_iter("arq:in-progress:*", count=1000)])
                await asyncio.sleep(LOOK_S)
    return held


async def _silent(redis: Redis) -> int:
    streams = [key async for key in redis.scan_iter("sb:run:*:stage:extraction", count=1000)]
    async with redis.pipeline(transaction=False) as pipe:
        for key in streams:
            pipe.xlen(key)
        return RUNS - sum(length >= EVENTS for length in await pipe.execute())


async def _commands_per_s(redis: Redis) -> tuple[float, float]:
    """What clients sent, and all that the server did, the commands that scripts call included."""
    before = await redis.info("stats")
    await asyncio.sleep(WATCH_S)
    after = await redis.info("stats")
    sent, done = (after[name] - before[name] for name in ("total_reads_processed", "total_commands_processed"))
    return (sent - 1) / WATCH_S, (done - 1) / WATCH_S


if __name__ == "__main__":
    lab.run("held_runs", measure)
