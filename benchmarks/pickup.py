"""Pick-up: from POST /runs to the provider's server being asked, with one and with many waiting workers."""

import asyncio
import time
from typing import Any

import httpx

from benchmarks import lab
from benchmarks.latency import percentile

WORKERS = (1, lab.sized(20, 2))
POSTS = lab.sized(100, 30)
PAUSE_S = 0.03
WARM_UP = 4  # posts a worker: its first run opens its connections
ASKED_S = 30


async def measure() -> dict[str, Any]:
    """Each POST alone, so that every worker waits."""
    result: dict[str, Any] = {"posts": POSTS, "by_workers": {}}
    async with lab.Lab() as place:
        await place.start_redis()
        provider = await place.python("benchmarks.provider")
        provider_url = await provider.line_with("listening on ")
        place.use_provider(f"{provider_url}/v1")
        _, url = await place.start_gateway()
        there = 0
        for workers in WORKERS:
            await asyncio.gather(*(place.start_worker() for _ in range(workers - there)))
            there = workers
            result["by_workers"][workers] = await _pick_up(url, provider_url, workers * WARM_UP)
    return result


async def _pick_up(url: str, provider_url: str, warm_up: int) -> dict[str, float]:
    posted: dict[str, int] = {}
    asked: dict[str, int] = {}
    async with httpx.AsyncClient() as http:
        for number in range(warm_up + POSTS):
            body = {"model": "chunks=1", "user_prompt": str(number), "tools": [], "synthesis": False}
            posted[str(number)] = time.monotonic_ns()
            (await http.post(f"{url}/runs", json=body)).raise_for_status()
            await asyncio.sleep(PAUSE_S)
        async with asyncio.timeout(ASKED_S):
            while len(asked) < len(posted):
                asked |= (await http.get(f"{provider_url}/asked")).json()
                await asyncio.sleep(PAUSE_S)
    times = [(asked[prompt] - posted[prompt]) / 1e6 for prompt in posted if int(prompt) >= warm_up]
    return {"asked": len(times), **{f"p{percent}_ms": percentile(times, percent) for percent in (50, 90, 99)}}


if __name__ == "__main__":
    lab.run("pickup", measure)
