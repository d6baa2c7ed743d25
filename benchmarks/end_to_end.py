"""End to end: latency from the provider's byte to the browser's, for many runs at a model's pace on one machine.

What is timed is the time in which all of them stream. They are all made at once and so all end at once, which no
pace of arrivals would give: those moments stand in the results for themselves.
"""

import asyncio
from typing import Any

import httpx

from benchmarks import lab, relaying

RUNS = lab.sized(500, 50)
PER_S = 10
CHUNKS = lab.sized(250, 40)
WORKERS = 2
POST_AT_ONCE = 10
SETTLED = RUNS * PER_S  # events: a second of them
STEADY = lab.sized(14, 1) * SETTLED
MORE = 6  # events of a run beside its tokens


async def measure() -> dict[str, Any]:
    """Measures with real processes for provider, workers, Redis, gateway and browsers."""
    async with lab.Lab() as place:
        await place.start_redis()
        provider = await place.python("benchmarks.scripted_provider")
        place.use_provider(await provider.line_with("listening on ") + "/v1")
        gateway, url = await place.start_gateway()
        browsers = await place.python("benchmarks.browsers")
        slots = str(RUNS)
        workers = await asyncio.gather(*(place.start_worker(STAGEBUS_WORKER_CONCURRENCY=slots) for _ in range(WORKERS)))
        processes = {"gateway": gateway, "redis": place.redis_process, "provider": provider}
        processes |= {f"worker {number}": worker for number, worker in enumerate(workers, 1)}
        before = {name: process.cpu_s() for name, process in processes.items()}
        paths = await _post(url)
        await browsers.ask({"open": paths, "port": relaying.port_of(url), "events": 1})
        # What was said before a stream was open comes as its replay, late for no fault of the way.
        replayed = await browsers.ask("report")
        await browsers.ask({"wait": SETTLED})
        early = await browsers.ask("report")
        await browsers.ask({"wait": STEADY})
        steady = await browsers.ask("report")
        before_end = (replayed, early, steady)
        await browsers.ask({"wait": RUNS * (CHUNKS + MORE) - sum(part["events"] for part in before_end)})
        late = await browsers.ask("report")
        return {
            "runs": RUNS,
            "per_s": PER_S,
            "tokens": steady["stamped"],
            "lost": RUNS * CHUNKS - sum(part["stamped"] for part in (*before_end, late)),
            "latency_ms": steady["latency_ms"],
            "latency_ms_as_all_end": late["latency_ms"],
            "cpu_s": {name: process.cpu_s() - before[name] for name, process in processes.items()},
            "browsers_cpu_s": late["cpu_s"],
        }


async def _post(url: str) -> list[str]:
    body = {"model": f"chunks={CHUNKS},per_s={PER_S}", "user_prompt": "talk", "tools": [], "synthesis": False}
    slots = asyncio.Semaphore(POST_AT_ONCE)
    async with httpx.AsyncClient(timeout=30) as http:

        async def post() -> str:
            async with slots:
                response = await http.post(f"{url}/runs", json=body)
            return f"/runs/{response.raise_for_status().json()['id']}/events"

        return await asyncio.gather(*(post() for _ in range(RUNS)))


if __name__ == "__main__":
    lab.run("end_to_end", measure)
