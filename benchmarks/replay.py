"""Replay: sends a long finished log to one client, and measures the effect on other streams.

Its time is from the request to the last event, as the client has them.

How long a page holds the event loop shows in requests that do nothing (`/healthz`), sent
one after the other while replays go on, beside the same with no replay.
"""

import asyncio
import time
from typing import Any

from benchmarks import lab, relaying
from benchmarks.latency import percentile

EVENTS = lab.sized(10_000, 5_000)
REPLAYS = lab.sized(10, 4)
BURST = 50


async def measure() -> dict[str, Any]:
    """Measures ours and each rival."""
    result: dict[str, Any] = {"events": EVENTS}
    for name, start in relaying.WAYS.items():
        async with lab.Lab() as place:
            try:
                relay = await start(place)
            except relaying.Missing as exc:
                result[name] = {"skipped": str(exc)}
                continue
            (stream,) = await relay.publisher.ask({"make": 1})
            await relay.publisher.ask({"events": EVENTS, "per_s": 1_000_000, "burst": BURST})
            path = relay.path.format(stream)
            with place.undisturbed():
                result[name] = await _replay(relay, path)
                if name == "stagebus":
                    result["others"] = await _others(relay, path)
    return result


async def _replay(relay: relaying.Relay, path: str) -> dict[str, float]:
    await relay.browsers.ask("report")
    speeds, cpu = [], relay.server.cpu_s()
    for _ in range(REPLAYS):
        await relay.browsers.ask({"open": [path], "port": relay.port, "events": EVENTS})
        speeds.append(EVENTS / (await relay.browsers.ask("report"))["asked_to_last_s"])
    cpu = relay.server.cpu_s() - cpu
    return {
        "events_per_s_best": max(speeds),
        "events_per_s_median": percentile(speeds, 50),
        "events_per_cpu_s": EVENTS * REPLAYS / cpu,
    }


async def _others(relay: relaying.Relay, path: str) -> dict[str, Any]:
    alone = await _ping(relay.port, asyncio.create_task(asyncio.sleep(1)))
    opening = relay.browsers.ask({"open": [path] * REPLAYS, "port": relay.port, "events": EVENTS})
    beside = await _ping(relay.port, asyncio.create_task(opening))
    return {"request_ms_alone": alone, "request_ms_beside_replays": beside, "replays_at_once": REPLAYS}


async def _ping(port: int, until: asyncio.Task[Any]) -> dict[str, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    while not until.done():
        started = time.perf_counter()
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        times.append((time.perf_counter() - started) * 1000)
    writer.close()
    return {f"p{percent}": percentile(times, percent) for percent in (50, 99, 100)}


if __name__ == "__main__":
    lab.run("replay", measure)
