"""Publishes events at an even pace, each with its creation time in its data.

Takes orders as lines of JSON on stdin, and answers each with a line:

    {"make": 1000}                               run ids; each run claimed and begun
    {"events": 20000, "per_s": 2000}             one event after the other, round the runs in turn
    {"events": 20000, "per_s": 2000, "burst": 8} the same, so many at a time to one run

How an event gets to its stream is the first argument's: `stagebus` appends as a worker's
producer does; `xadd` and `post` are the ways of the rivals.
"""

import asyncio
import hashlib
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson
import uvloop

from benchmarks.latency import EVENT, STAGE, stamped
from benchmarks.rivals.publishing import Poster, Xadder
from stagebus.gateway.api.schemas.create_run import parse_create_run
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.log import live_batch, sse
from stagebus.shared.storage import keys, redis_client, run_scripts
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.run_scripts import LogEntry

TTL_S: Final = 3600
MAKE_AT_ONCE: Final = 50
# A view that has no other way to a run attaches to it with this body.
REQUEST: Final[dict[str, Any]] = {"model": "bench", "messages": [{"role": "user", "content": "Hello"}]}
BEHIND_MAX: Final = 500  # events under way at once


class Publishing(Protocol):
    """A way to publish."""

    async def make(self, count: int) -> list[str]:
        """Creates streams, each with its first event."""
        ...

    async def publish(self, number: int, burst: int) -> None:
        """Publishes events to the stream of that number."""
        ...


class Appender:
    """Appends to runs with the script that workers use; one append per run at a time, as a producer does."""

    def __init__(self, redis_url: str) -> None:
        settings = Settings(redis_url=redis_url)
        self._redis = redis_client.connect(settings)
        self._line = PipelinedConnection(self._redis, settings.redis_timeout_s)
        self._runs: list[_Run] = []
        request = parse_create_run(REQUEST, settings).model_dump(mode="json")
        self._request = orjson.dumps(request, option=orjson.OPT_SORT_KEYS)

    async def make(self, count: int) -> list[str]:
        """Creates claimed runs with a first chunk."""
        slots = asyncio.Semaphore(MAKE_AT_ONCE)

        async def make_one() -> _Run:
            async with slots:
                run = await self._claim(ids.new_run_id())
                await self._append(run, 1)
                return run

        made = await asyncio.gather(*(make_one() for _ in range(count)))
        self._runs += made
        return [run.run_id for run in made]

    async def publish(self, number: int, burst: int) -> None:
        """Appends that many events at once."""
        run = self._runs[number]
        async with run.lock:
            await self._append(run, burst)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._line.aclose()
        await redis_client.close(self._redis)

    async def _claim(self, run_id: str) -> "_Run":
        """Creates a run as `POST /runs` would with `REQUEST` and the run's id as the Idempotency-Key, and claims it."""
        await run_scripts.create(
            self._redis, run_id, tenant="default", model="bench", request=self._request, event="run_queued",
            data=orjson.dumps({"stage_id": "run", "run_id": run_id, "model": "bench"}), life_s=TTL_S,
            idempotency=keys.idempotency("default", run_id),
            reservation=f"{run_id} {hashlib.sha256(self._request).hexdigest()}",
        )  # fmt: skip
        claim = await run_scripts.claim(self._redis, run_id, "bench")
        assert claim is not None
        await self._place_in_thread(run_id)
        return _Run(run_id, claim.attempt, claim.last_id)

    async def _place_in_thread(self, run_id: str) -> None:
        """Makes the run the only turn of a thread with the run's id, for streams of threads."""
        thread_key = keys.thread(ThreadIdentity("default", "", run_id))
        fields = {
            thread_key: {"gen": run_id, "active": run_id, "next_seq": 1},
            keys.thread_turns(thread_key): {f"p:{run_id}": "", f"n:{run_id}": 1},
            keys.thread_in(thread_key): {run_id: orjson.dumps(REQUEST["messages"])},
        }
        async with self._redis.pipeline() as pipe:
            for key, values in fields.items():
                pipe.hset(key, mapping=values)
                pipe.expire(key, TTL_S)
            pipe.zadd(keys.thread_order(thread_key), {run_id: 1})
            pipe.expire(keys.thread_order(thread_key), TTL_S)
            await pipe.execute()

    async def _append(self, run: "_Run", burst: int) -> None:
        last = EventId(run.attempt, run.last.sequence + burst)
        entries = [LogEntry(STAGE, EVENT, stamped()) for _ in range(burst)]
        frames = [
            sse.encode(b"%d-%d" % (run.attempt, sequence), EVENT.encode(), entry.data)
            for sequence, entry in enumerate(entries, run.last.sequence + 1)
        ]
        message = live_batch.encode(run.last, last, [STAGE] * burst, frames)
        await run_scripts.append(
            self._line, run.run_id, attempt=run.attempt, before=run.last, entries=entries, message=message,
        )  # fmt: skip
        run.last = last


@dataclass
class _Run:
    run_id: str
    attempt: int
    last: EventId
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


async def pace(publishing: Publishing, streams: int, events: int, per_s: float, burst: int) -> dict[str, Any]:
    """Publishes at an even pace; returns how far it fell behind."""
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
