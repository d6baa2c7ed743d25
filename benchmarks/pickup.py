"""Pick-up: time from POST /runs to the request at the provider, with one and with many waiting workers; compared with arq."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import arq
import httpx
from arq.connections import RedisSettings

from benchmarks import lab
from benchmarks.latency import percentile

WORKERS = (1, lab.sized(20, 2))
POSTS = lab.sized(100, 30)
PAUSE_S = 0.03
WARM_UP = 4  # posts a worker: its first run opens its connections
ASKED_S = 30
SLOTS = 100  # more than there are posts between two looks of arq's: none of them waits for a slot
MODEL = "chunks=1"

Post = Callable[[str], Awaitable[None]]


async def measure() -> dict[str, Any]:
    """Sends each POST alone, so that every worker waits."""
    return {"posts": POSTS, "by_workers": await _ours(), "arq_by_workers": await _arq()}


async def _ours() -> dict[int, dict[str, float]]:
    async with lab.Lab() as place, httpx.AsyncClient() as http:
        await place.start_redis()
        provider_url = await _start_provider(place)
        _, url = await place.start_gateway()

        async def post(prompt: str) -> None:
            body = {"model": MODEL, "user_prompt": prompt, "tools": [], "synthesis": False}
            (await http.post(f"{url}/runs", json=body)).raise_for_status()

        return await _by_workers(provider_url, lambda: place.start_worker(STAGEBUS_WORKER_CONCURRENCY=str(SLOTS)), post)


async def _arq() -> dict[int, dict[str, float]]:
    """Measures arq without a gateway: this program enqueues the job."""
    async with lab.Lab() as place:
        await place.start_redis()
        provider_url = await _start_provider(place)
        pool = await arq.create_pool(RedisSettings.from_dsn(place.redis_url))

        async def post(prompt: str) -> None:
            await pool.enqueue_job("ask", MODEL, prompt)

        try:
            return await _by_workers(provider_url, lambda: place.start_arq_worker(SLOTS), post)
        finally:
            await pool.aclose()


async def _start_provider(place: lab.Lab) -> str:
    provider = await place.python("benchmarks.scripted_provider")
    url = await provider.line_with("listening on ")
    place.use_provider(f"{url}/v1")
    return url


async def _by_workers(
    provider_url: str, start_worker: Callable[[], Awaitable[lab.Process]], post: Post
) -> dict[int, dict[str, float]]:
    result: dict[int, dict[str, float]] = {}
    there = 0
    for workers in WORKERS:
        await asyncio.gather(*(start_worker() for _ in range(workers - there)))
        there = workers
        result[workers] = await _pick_up(provider_url, post, workers * WARM_UP)
    return result


async def _pick_up(provider_url: str, post: Post, warm_up: int) -> dict[str, float]:
    await _waits_ms(provider_url, post, warm_up)
    waits_ms = await _waits_ms(provider_url, post, POSTS)
    return {f"p{percent}_ms": percentile(waits_ms, percent) for percent in (50, 90, 99)}


async def _waits_ms(provider_url: str, post: Post, posts: int) -> list[float]:
    posted: dict[str, int] = {}
    asked: dict[str, int] = {}
    for prompt in map(str, range(posts)):
        posted[prompt] = time.monotonic_ns()
        await post(prompt)
        await asyncio.sleep(PAUSE_S)
    async with asyncio.timeout(ASKED_S), httpx.AsyncClient() as http:
        while len(asked) < posts:
            asked |= (await http.get(f"{provider_url}/asked")).json()
            await asyncio.sleep(PAUSE_S)
    return [(asked[prompt] - at_ns) / 1e6 for prompt, at_ns in posted.items()]


if __name__ == "__main__":
    lab.run("pickup", measure)
