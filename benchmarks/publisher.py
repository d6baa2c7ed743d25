"""Publishes events at an even pace, each with the time of its making in its data.

Takes orders as lines of JSON on stdin, and answers each with a line:

    {"make": 1000}                               run ids; each run claimed and begun
    {"events": 20000, "per_s": 2000}             one event after the other, round the runs in turn
    {"events": 20000, "per_s": 2000, "burst": 8} the same, so many at a time to one run

How an event gets to its stream is the first argument's: `stagebus` appends as a worker's
producer does; `xadd` and `post` are the ways of the rivals.
"""

import asyncio
import json
import sys
import time
from typing import Any, Final, Protocol

import orjson
import uvloop

from benchmarks.rivals.publishing import Poster, Xadder
from shared import ids, live, scripts, sse
from shared import redis as redis_connections
from shared.cursor import EventId
from shared.line import Line
from shared.scripts import LogEntry
from shared.settings import Settings

TTL_S: Final = 3600
EVENT: Final = "tool_completion_chunk"
STAGE: Final = "synthesis"
BEHIND_MAX: Final = 500  # events under way at once


def stamped(text: str = " token") -> bytes:
    """A model's chunk as the log keeps it, and when it was made."""
    delta = {"choices": [{"index": 0, "delta": {"content": text}}]}
    return orjson.dumps({"stage_id": STAGE, "tool_results": delta, "t": time.monotonic_ns()})


class Publishing(Protocol):
    """A way to publish."""

    async def make(self, count: int) -> list[str]:
        """New streams, each with its first event."""
        ...

    async def publish(self, number: int, burst: int) -> None:
        """Events to the stream of that number."""
        ...


class Appender:
    """Appends to runs by the script that workers use; one append of a run at a time, as a producer does."""

    def __init__(self, redis_url: str) -> None:
        settings = Settings(redis_url=redis_url)
        self._redis = redis_connections.connect(settings)
        self._line = Line(self._redis, settings.redis_timeout_s)
        self._run_ids: list[str] = []
        self._attempts: list[int] = []
        self._last: list[EventId] = []
        self._locks: list[asyncio.Lock] = []

    async def make(self, count: int) -> list[str]:
        """Claimed runs that have begun to say something."""
        run_ids = [ids.new_run_id() for _ in range(count)]
        for run_id in run_ids:
            await scripts.create(
                self._redis, run_id, tenant="default", model="bench", request=b"{}", event="run_queued",
                data=orjson.dumps({"stage_id": "run", "run_id": run_id, "model": "bench"}), ttl_s=TTL_S,
            )  # fmt: skip
            claim = await scripts.claim(self._redis, run_id, "bench")
            assert claim is not None
            self._run_ids.append(run_id)
            self._attempts.append(claim.attempt)
            self._last.append(claim.last_id)
            self._locks.append(asyncio.Lock())
            await self._append(len(self._run_ids) - 1, 1)
        return run_ids

    async def publish(self, number: int, burst: int) -> None:
        """One append of so many events."""
        async with self._locks[number]:
            await self._append(number, burst)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._line.aclose()
        await redis_connections.close(self._redis)

    async def _append(self, number: int, burst: int) -> None:
        attempt = self._attempts[number]
        before = self._last[number]
        last = EventId(attempt, before.sequence + burst)
        entries = [LogEntry(STAGE, EVENT, stamped()) for _ in range(burst)]
        frames = [
            sse.encode(b"%d-%d" % (attempt, sequence), EVENT.encode(), entry.data)
            for sequence, entry in enumerate(entries, before.sequence + 1)
        ]
        message = live.encode(before, last, [STAGE] * burst, frames)
        await scripts.append(
            self._line, self._run_ids[number], attempt=attempt, before=before, entries=entries, message=message,
            ttl_s=TTL_S,
        )  # fmt: skip
        self._last[number] = last


async def pace(publishing: Publishing, streams: int, events: int, per_s: float, burst: int) -> dict[str, Any]:
    """Publish at an even pace; says how far behind its own clock it fell."""
    started = time.monotonic()
    cpu_started = time.process_time()
    lag_max_s = 0.0
    under_way: set[asyncio.Task[None]] = set()
    for number in range(events // burst):
        due = started + number * burst / per_s
        while (wait_s := due - time.monotonic()) > 0 or len(under_way) > BEHIND_MAX:  # noqa: ASYNC110 - a pace
            await asyncio.sleep(max(wait_s, 0.001))
        lag_max_s = max(lag_max_s, -wait_s)
        task = asyncio.create_task(publishing.publish(number % streams, burst))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    return {
        "events": events // burst * burst,
        "seconds": time.monotonic() - started,
        "cpu_s": time.process_time() - cpu_started,
        "lag_max_ms": lag_max_s * 1000,
    }


async def _main(way: str, target: str) -> None:
    publishing: Publishing = {"stagebus": Appender, "xadd": Xadder, "post": Poster}[way](target)
    streams: list[str] = []
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        if "make" in order:
            streams += (answer := await publishing.make(order["make"]))
        else:
            count = order.get("streams", len(streams))
            answer = await pace(publishing, count, order["events"], order["per_s"], order.get("burst", 1))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1], sys.argv[2]))
