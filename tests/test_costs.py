"""Costs in Redis commands, round trips, bytes and memory, as a real server counts them. No test measures time.

`sent` counts round trips: what the server read from its clients. `calls` counts commands, including those that Lua
scripts call. Users pay for every increase, so each test has an upper bound. CPU per token is a benchmark
(benchmarks/worker_chunk.py).
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START
from stagebus.shared.domain.threads import OnActive
from stagebus.shared.log import log_reader
from stagebus.shared.observability.loop_lag import INTERVAL_S
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.pubsub import CANARY_S, IDLE_CANARY_EVERY
from stagebus.shared.store import run_store
from stagebus.shared.store.heartbeats import HEARTBEAT_S
from tests.support.redis_calls import bytes_taken, calls, sent
from tests.support.runs_by_hand import RunByHand, chunk, start, stop
from tests.support.system import System, free_port
from tests.support.threads_by_hand import ThreadByHand
from tests.support.waiting import until

WATCH_S = 2.0
POLL_S = 1.0
LEASE_S = 6.0
HELD = 20
EVENTS = 4  # of a held run: run_started, stage_started, the chunk with the role, the first token
COUNTING = 2  # round trips of the INFO commands that read the counters
LUA = Path(run_scripts.__file__).parent / "lua"


class Cost(NamedTuple):
    """Commands, by name, and round trips."""

    commands: Counter[str]
    round_trips: int


async def cost_of(redis: Redis, action: Callable[[], Awaitable[object]]) -> Cost:
    """Runs the action and returns the commands and round trips that the server counted meanwhile."""
    before, sent_before = await calls(redis), await sent(redis)
    await action()
    used, round_trips = await calls(redis) - before, await sent(redis) - sent_before
    del used["info"]
    return Cost(used, round_trips - COUNTING)


@pytest.fixture
async def run(redis: Redis) -> AsyncIterator[RunByHand]:
    run = await start(redis)
    await run.say("the stage begins")
    yield run
    await stop(run)


async def test_append_of_one_event_is_one_round_trip(redis: Redis, run: RunByHand) -> None:
    """One script call with five commands: read the fence, check the stream, add the entry, set the last id, publish."""

    async def say_ten() -> None:
        for number in range(10):
            await run.say(str(number))

    used, round_trips = await cost_of(redis, say_ten)

    assert used["evalsha"] == used["xadd"] == used["publish"] == 10
    assert used.total() <= 10 * 6
    assert round_trips <= 10


async def test_append_of_a_burst_is_one_round_trip(redis: Redis, run: RunByHand) -> None:
    """Events that are put together are appended together: one script call and one message for any number of them."""
    used, round_trips = await cost_of(redis, lambda: run.say(*(str(number) for number in range(200))))

    assert used["evalsha"] == used["publish"] == 1
    assert used["xadd"] == 200
    assert used.total() <= 200 + 5
    assert round_trips <= 2, "the server may need two reads for a batch of 200"


@pytest.mark.parametrize(("burst", "bytes_max"), [(1, 700), (100, 310)])
async def test_append_of_a_token_sends_few_bytes(redis: Redis, run: RunByHand, burst: int, bytes_max: int) -> None:
    """Each event travels twice, for the log and for the message; the events of a burst share the other arguments."""
    before = await bytes_taken(redis)
    for _ in range(10):
        await run.say(*(" token" for _ in range(burst)))

    assert (await bytes_taken(redis) - before) / (10 * burst) <= bytes_max


async def test_append_costs_the_same_early_and_late_in_a_run(redis: Redis, run: RunByHand) -> None:
    """Earlier events are neither read nor sent again."""

    async def cost_of_one() -> tuple[Counter[str], int]:
        before = await bytes_taken(redis)
        used, _ = await cost_of(redis, lambda: run.say(" token"))
        return used, await bytes_taken(redis) - before

    early, early_bytes = await cost_of_one()
    await run.say(*(" token" for _ in range(2000)))
    late, late_bytes = await cost_of_one()

    assert late == early
    assert late_bytes <= early_bytes + 20, "only the numbers are longer"


async def test_appends_of_many_runs_share_round_trips(redis: Redis, settings: Settings) -> None:
    """Runs that append at the same moment share one write of the pipelined connection."""
    connection = PipelinedConnection(redis, settings.redis_timeout_s)
    runs = [await start(redis, connection) for _ in range(20)]
    for run in runs:
        await run.say("the stage begins")

    _, round_trips = await cost_of(redis, lambda: asyncio.gather(*(run.say("one") for run in runs)))
    for run in runs:
        await stop(run)
    await connection.aclose()

    assert round_trips <= 4


async def test_token_takes_little_redis_memory(redis: Redis, run: RunByHand) -> None:
    await run.say(*(" token" for _ in range(2000)))
    stream = keys.stage_stream(run.run_id, "extraction")

    assert len(chunk(" token").data()) < 100
    assert await redis.memory_usage(stream, samples=0) / await redis.xlen(stream) <= 140


async def test_replay_page_is_one_round_trip(redis: Redis, settings: Settings, run: RunByHand) -> None:
    """Holds once the stages are known; a request's first page reads them with the run's record."""
    connection = PipelinedConnection(redis, settings.redis_timeout_s)
    await run.say(*"abcde")
    page = await log_reader.read_page(connection, run.run_id, START, 3)

    async def read_two_pages() -> None:
        nonlocal page
        for _ in range(2):
            page = await log_reader.read_page(connection, run.run_id, page.position, 3, stage_ids=page.stage_ids)

    used, round_trips = await cost_of(redis, read_two_pages)
    await connection.aclose()

    assert page.is_last
    assert used["xrange"] == 2 * 2, "two streams per page: the journal and the stage"
    assert used.total() <= 2 * 6
    assert round_trips <= 2


async def test_run_is_created_in_one_round_trip(redis: Redis, settings: Settings) -> None:
    """Includes its first event, its place in the queue, the wake-up of a worker, its tenant's limits, tokens and feed."""

    async def create() -> None:
        await run_store.create_run(
            redis, settings, tenant="t", model="m", request={}, tokens=9, idempotency_key=uuid4().hex
        )

    await create()  # loads the script
    used, round_trips = await cost_of(redis, create)

    assert used["evalsha"] == 1
    assert used["xadd"] == 2, "the run's log and its tenant's feed"
    assert round_trips <= 1


async def test_run_of_a_thread_takes_one_round_trip_or_two(redis: Redis, settings: Settings) -> None:
    """One if the thread is idle. Else the reply names the active run, which the second call names. Its claim takes one."""
    thread = ThreadByHand(redis, settings)
    await thread.end(await thread.post())  # loads the scripts
    idle, idle_trips = await cost_of(redis, thread.post)
    active = (await thread.read()).active_run_id
    waiting, waiting_trips = await cost_of(redis, lambda: thread.post(on_active=OnActive.ENQUEUE))
    await thread.work(active)
    second = (await thread.read()).waiting[0].run_id
    await thread.end(active)
    _, worker_trips = await cost_of(redis, lambda: thread.work(second))
    await thread.end(second)

    assert (idle["evalsha"], idle_trips) == (1, 1)
    assert idle.total() <= 78, "eight of them find keys of a wrong type"
    assert (waiting["evalsha"], waiting_trips) == (2, 2)
    assert worker_trips == 2, "an acquire and a claim"


async def test_lease_is_renewed_in_one_round_trip(redis: Redis, run: RunByHand) -> None:
    await redis.zadd(keys.QUEUE, {run.run_id: 1})
    assert await queue_scripts.acquire(redis, run.run_id, "token", 5)
    attempt = (await run_store.get_run(redis, run.run_id)).attempt  # the ms since the creation, so not always 1

    async def renew() -> None:
        assert await queue_scripts.renew(redis, run.run_id, token="token", attempt=attempt, lease_s=5)

    await renew()  # loads the script
    used, round_trips = await cost_of(redis, renew)

    assert used["evalsha"] == 1
    assert used.total() <= 6
    assert round_trips <= 1


@pytest.mark.faults
async def test_idle_worker_held_run_and_post_ask_little_of_redis(tmp_path: Path) -> None:
    """Counts over a whole system: an idle worker, runs that wait for their model, and creating runs."""
    env = {
        "STAGEBUS_LEASE_S": str(LEASE_S),
        "STAGEBUS_POLL_S": str(POLL_S),
        "STAGEBUS_SWEEP_S": "60",
        "STAGEBUS_WORKER_METRICS_PORT": str(free_port()),
    }
    worker_url = f"http://127.0.0.1:{env['STAGEBUS_WORKER_METRICS_PORT']}"
    async with System(tmp_path, env=env) as system, httpx.AsyncClient(base_url=system.url) as http:
        looks = [await loop_lag_samples(http, url) for url in (system.url, worker_url)]
        started_at = time.monotonic()
        _, idle = await cost_of(system.redis, lambda: asyncio.sleep(WATCH_S))
        # The canary and the heartbeat of both processes, and the worker's poll with its wait for a wake-up.
        assert idle <= WATCH_S * (2 / CANARY_S / IDLE_CANARY_EVERY + 2 / HEARTBEAT_S + 2 / POLL_S) + 2
        for before, url in zip(looks, (system.url, worker_url), strict=True):
            taken = await loop_lag_samples(http, url) - before
            assert 0 < taken <= (time.monotonic() - started_at) / INTERVAL_S + 1

        body = {"model": "demo:stall_after=1,delay_ms=1", "user_prompt": "hold", "tools": [], "synthesis": False}

        async def create_and_hold() -> None:
            await asyncio.gather(*[http.post("/runs", json=body) for _ in range(HELD)])
            await until(lambda: all_are_held(system.redis))

        started_at = time.monotonic()
        used, _ = await cost_of(system.redis, create_and_hold)
        took_s = time.monotonic() - started_at
        # An upper bound: as if each event were appended alone. The creation writes the log and the feed, the start the feed.
        appends = used["xadd"] - HELD * 3
        assert appends <= HELD * EVENTS
        # Create, acquire and claim, and at most one look at the queue per wake-up. Polls, renewals and heartbeats
        # depend on the time; a script that the server does not know yet is sent again.
        by_time = took_s * (2 / POLL_S + 2 / HEARTBEAT_S + HELD * 3 / LEASE_S) + len(list(LUA.glob("*.lua")))
        assert used["evalsha"] + used["eval"] - appends <= HELD * (3 + 1) + by_time

        used, _ = await cost_of(system.redis, lambda: asyncio.sleep(WATCH_S))
        # Three renewals per lease, one more of which may fall into the measured time; the polls; the heartbeats.
        assert used["evalsha"] <= HELD * (WATCH_S * 3 / LEASE_S + 1) + 2 * WATCH_S / POLL_S + 2 * (
            WATCH_S / HEARTBEAT_S + 1
        )
        assert used["hgetall"] == used["xadd"] == used["xrange"] == 0


async def loop_lag_samples(http: httpx.AsyncClient, url: str) -> float:
    """Returns how many samples of its event-loop lag a process has taken."""
    text = (await http.get(f"{url}/metrics")).text
    found = re.search(r"^stagebus_event_loop_lag_seconds_count (\S+)", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


async def all_are_held(redis: Redis) -> bool:
    streams = [key async for key in redis.scan_iter("sb:run:*:stage:extraction", count=1000)]
    return len(streams) == HELD and all([await redis.xlen(key) >= 2 for key in streams])
