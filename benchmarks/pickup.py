"""Pick-up: from POST /runs to the provider's server being asked, with one and with many waiting workers."""

import asyncio
import time
from typing import Any

import httpx

from benchmarks import lab

WORKERS = (1, lab.sized(20, 4))
POSTS = lab.sized(100, 30)
PAUSE_S = 0.03
WARM_UP = 4  # posts a worker: its first run opens its connections


async def measure() -> dict[str, Any]:
    """Each POST alone, so that every worker waits."""
    result: dict[str, Any] = {"posts": POSTS, "by_workers": {}}
    for workers in WORKERS:
        async with lab.Lab() as place:
            await place.start_redis()
            provider = await place.python("benchmarks.provider")
            provider_url = await provider.line_with("listening on ")
            place.use_provider(f"{provider_url}/v1")
            _, url = await place.start_gateway()
            await asyncio.gather(*(place.start_worker() for _ in range(workers)))
            result["by_workers"][workers] = await _pick_up(url, provider_url, workers * WARM_UP)
    return result


async def _pick_up(url: str, provider_url: str, warm_up: int) -> dict[str, float]:
    posted: dict[str, int] = {}
    async with httpx.AsyncClient() as http:
        for number in range(warm_up + POSTS):
            body = {"model": "chunks=1", "user_prompt": str(number), "tools": [], "synthesis": False}
            posted[str(number)] = time.monotonic_ns()
            (await http.post(f"{url}/runs", json=body)).raise_for_status()
            await asyncio.sleep(PAUSE_S)
        await asyncio.sleep(1)
        asked: dict[str, int] = (await http.get(f"{provider_url}/asked")).json()
    times = [(asked[prompt] - posted[prompt]) / 1e6 for prompt in posted if prompt in asked and int(prompt) >= warm_up]
    return {"asked": len(times), **{f"p{percent}_ms": lab.percentile(times, percent) for percent in (50, 90, 99)}}


if __name__ == "__main__":
    lab.run("pickup", measure)
