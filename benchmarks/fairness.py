"""Measures the wait of one run behind another tenant's thousands: with fair queueing, and first come, first served."""

import asyncio
import time
from typing import Any

from redis.asyncio import Redis

from benchmarks import lab
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.runs import TERMINAL
from stagebus.shared.storage import keys
from stagebus.shared.store import run_store

RUNS = lab.sized(10_000, 100)
SLOTS = 10
CREATE_AT_ONCE = 50
WAIT_MAX_S = 800
LOOK_S = 0.05


async def measure() -> dict[str, Any]:
    """Uses one worker; the single run arrives when every slot is taken by the other tenant."""
    async with lab.Lab() as place:
        redis = await place.start_redis()
        provider = await place.python("benchmarks.scripted_provider")
        place.use_provider(f"{await provider.line_with('listening on ')}/v1")
        many = await _create_many(redis, place.settings)
        await place.start_worker(STAGEBUS_WORKER_CONCURRENCY=str(SLOTS))
        await _until_busy(redis)
        by_turns = await _wait_of(redis, await _create(redis, place.settings, "single"))
        last = await _create(redis, place.settings, "another")
        await redis.zadd(keys.QUEUE, {last: keys.TIME_SCORE_MIN - 1}, xx=True)  # behind everybody, as by time
        by_time = await _wait_of(redis, last)
        return {"runs": len(many), "slots": SLOTS, "wait_s_by_turns": by_turns, "wait_s_by_time": by_time}


async def _until_busy(redis: Redis) -> None:
    async with asyncio.timeout(WAIT_MAX_S):
        while await redis.zcard(keys.RUNNING) < SLOTS:  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(LOOK_S)


async def _create_many(redis: Redis, settings: Settings) -> list[str]:
    made: list[str] = []
    while len(made) < RUNS:
        made += await asyncio.gather(*(_create(redis, settings, "many") for _ in range(CREATE_AT_ONCE)))
    return made


async def _create(redis: Redis, settings: Settings, tenant: str) -> str:
    request = {
        "model": "chunks=5,per_s=20", "messages": [{"role": "user", "content": "x"}], "tools": [], "synthesis": False,
        "timeout_s": 600,
    }  # fmt: skip
    return await run_store.create_run(redis, settings, tenant=tenant, model=request["model"], request=request)


async def _wait_of(redis: Redis, run_id: str) -> float:
    """Returns the time from creation to a worker's claim, by the record's own times."""
    deadline = time.monotonic() + WAIT_MAX_S
    while not (run := await run_store.get_run(redis, run_id)).started_at:
        if run.status in TERMINAL or time.monotonic() > deadline:
            raise RuntimeError(f"the run was never begun: {run.status}")
        await asyncio.sleep(LOOK_S)
    return (run.started_at - run.created_at) / 1000


if __name__ == "__main__":
    lab.run("fairness", measure)
