"""What things cost, counted: commands and round trips that a real server saw. Timing has no part in it.

`sent` is what clients sent, read by read; `calls` is what the server did, by command, with what
scripts call inside it. A change that makes one of these grow is a change that users pay for.
"""

import asyncio
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from types import FrameType
from uuid import uuid4

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START
from stagebus.shared.log import log_reader
from stagebus.shared.observability.loop_lag import LOOK_S
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.pubsub import CANARY_S, IDLE_CANARY_EVERY
from stagebus.shared.store import run_store
from stagebus.shared.store.heartbeats import SAY_S
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from stagebus.worker.stages.model_stage import model_stage
from tests.support.redis_calls import bytes_taken, calls, sent
from tests.support.runs_by_hand import RunByHand, chunk, start, stop
from tests.support.system import System, free_port

WATCH_S = 2.0
POLL_S = 1.0
LEASE_S = 6.0
HELD = 20
EVENTS = 4  # of a held run: it and its stage begin, who speaks, and the first word
LUA = Path(run_scripts.__file__).parent / "lua"


@pytest.fixture
async def run(redis: Redis) -> AsyncIterator[RunByHand]:
    run = await start(redis)
    yield run
    await stop(run)


async def test_an_event_alone_is_one_round_trip(redis: Redis, run: RunByHand) -> None:
    """One script; in it the fence's HMGET, the entry, the last id, the message, and nothing else."""
    await run.say("the stage begins")
    before, sent_before = await calls(redis), await sent(redis)
    for number in range(10):
        await run.say(str(number))
    used, reads = await calls(redis) - before, await sent(redis) - sent_before

    del used["info"]
    assert used == {"evalsha": 10, "hmget": 10, "exists": 10, "xadd": 10, "hset": 10, "publish": 10}
    assert reads <= 10 + 2  # the two that look


async def test_a_burst_is_one_round_trip(redis: Redis, run: RunByHand) -> None:
    """What is put at once goes at once: one script, one message, whatever the number of events."""
    await run.say("the stage begins")
    before, sent_before = await calls(redis), await sent(redis)
    await run.say(*(str(number) for number in range(200)))
    used, reads = await calls(redis) - before, await sent(redis) - sent_before

    assert used["evalsha"] == used["hmget"] == used["publish"] == used["hset"] == used["exists"] == 1
    assert used["xadd"] == 200
    assert reads <= 4  # a batch of 200 may come in more than one read


@pytest.mark.parametrize(("burst", "bytes_max"), [(1, 700), (100, 310)])
async def test_a_token_event_is_few_bytes_on_its_way_to_redis(
    redis: Redis, run: RunByHand, burst: int, bytes_max: int
) -> None:
    """It goes there twice, to be kept and to be sent on; what an append needs beside is shared by its events."""
    await run.say("the stage begins")
    before = await bytes_taken(redis)
    for _ in range(10):
        await run.say(*(" token" for _ in range(burst)))

    assert (await bytes_taken(redis) - before) / (10 * burst) <= bytes_max


async def test_an_append_late_in_a_run_is_as_one_early(redis: Redis, run: RunByHand) -> None:
    """What came before is neither read nor sent again."""

    async def cost_of_one() -> tuple[Counter[str], int]:
        before, taken = await calls(redis), await bytes_taken(redis)
        await run.say(" token")
        taken = await bytes_taken(redis) - taken
        return await calls(redis) - before, taken

    await run.say("the stage begins")
    early, early_bytes = await cost_of_one()
    await run.say(*(" token" for _ in range(2000)))
    late, late_bytes = await cost_of_one()

    assert late == early
    assert late_bytes <= early_bytes + 20  # longer numbers


async def test_appends_of_many_runs_share_their_round_trips(redis: Redis, settings: Settings) -> None:
    """Runs that have something to say at the same moment say it in one write."""
    line = PipelinedConnection(redis, settings.redis_timeout_s)
    runs = [await start(redis) for _ in range(20)]
    for run in runs:
        run.producer._redis = line
        await run.say("the stage begins")
    before = await sent(redis)
    await asyncio.gather(*(run.say("one") for run in runs))
    reads = await sent(redis) - before
    for run in runs:
        await stop(run)
    await line.aclose()

    assert reads <= 6


async def test_a_token_event_takes_little_memory(redis: Redis, run: RunByHand) -> None:
    await run.say(*(" token" for _ in range(2000)))
    stream = keys.stage_stream(run.run_id, "extraction")

    assert len(chunk(" token").data()) < 100
    assert await redis.memory_usage(stream, samples=0) / await redis.xlen(stream) <= 140


async def test_a_page_of_a_replay_is_one_round_trip(redis: Redis, settings: Settings, run: RunByHand) -> None:
    """Of a stream whose stages are known: its first page is, too, since the request's answer told them."""
    line = PipelinedConnection(redis, settings.redis_timeout_s)
    await run.say(*"abcdef")
    page = await log_reader.read_page(line, run.run_id, START, 3)
    before, sent_before = await calls(redis), await sent(redis)
    for _ in range(2):
        page = await log_reader.read_page(line, run.run_id, page.position, 3, stage_ids=page.stage_ids)
    used, reads = await calls(redis) - before, await sent(redis) - sent_before
    await line.aclose()

    del used["info"]
    assert page.is_last
    assert used == {"multi": 2, "hmget": 2, "lrange": 2, "xrange": 4, "exec": 2}
    assert reads <= 2 + 2  # the two that look


async def test_a_run_is_made_in_one_round_trip(redis: Redis, settings: Settings) -> None:
    """With its first event, its place in the queue and a ring of the bell, whatever limits its tenant has."""

    async def create() -> None:
        await run_store.create_run(redis, settings, tenant="t", model="m", request={}, idempotency_key=uuid4().hex)

    await create()  # the script is known now
    before, sent_before = await calls(redis), await sent(redis)
    await create()
    used, reads = await calls(redis) - before, await sent(redis) - sent_before

    assert used["evalsha"] == used["xadd"] == 1
    assert reads <= 1 + 2  # the two that look


async def test_a_renewal_is_one_round_trip(redis: Redis, run: RunByHand) -> None:
    attempt = run.producer._attempt
    await redis.zadd(keys.QUEUE, {run.run_id: 1})
    assert await queue_scripts.acquire(redis, run.run_id, "token", 5)
    assert await queue_scripts.renew(
        redis, run.run_id, token="token", attempt=attempt, lease_s=5
    )  # the script is known now
    before = await calls(redis)
    assert await queue_scripts.renew(redis, run.run_id, token="token", attempt=attempt, lease_s=5)
    used = await calls(redis) - before

    del used["info"]
    assert used == {"evalsha": 1, "get": 1, "hmget": 1, "time": 1, "set": 1, "zadd": 1}


async def test_a_token_alone_takes_few_calls(redis: Redis, settings: Settings, run: RunByHand) -> None:
    """Calls of Python functions from the provider's socket to the append's reply: 99.5 (aiohttp 3.14), where 194 were."""
    tokens, warm_up, called = 60, 10, 0
    go_on = asyncio.Event()
    ours = (str(Path(__file__).parents[1] / "worker"), str(Path(__file__).parents[1] / "shared"), "site-packages")

    def count(frame: FrameType, event: str, _what: object) -> None:
        nonlocal called
        called += event == "call" and any(part in frame.f_code.co_filename for part in ours)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(tokens):
            data = b'data: {"choices": [{"index": 0, "delta": {"content": " token"}, "finish_reason": null}]}\n\n'
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await go_on.wait()
            go_on.clear()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    line = PipelinedConnection(redis, settings.redis_timeout_s)
    run.producer._redis = line
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    model = ModelClient.from_settings(Settings(openai_base_url=url, openai_api_key="k"))
    request = ModelRequest(model="m", messages=[{"role": "user", "content": "Hello"}])
    try:
        async with aclosing(model_stage("extraction", model, request, set())) as events:
            for number in range(tokens):
                if number == warm_up:
                    sys.setprofile(count)
                await run.put(await anext(events))
                go_on.set()
    finally:
        sys.setprofile(None)
        server.close()
        await model.aclose()
        await line.aclose()

    assert called / (tokens - warm_up) <= 104


@pytest.mark.faults
async def test_what_waiting_holding_and_creating_cost(tmp_path: Path) -> None:
    """Over a whole system: an idle worker, a held run, and a POST."""
    env = {
        "STAGEBUS_LEASE_S": str(LEASE_S),
        "STAGEBUS_POLL_S": str(POLL_S),
        "STAGEBUS_SWEEP_S": "60",
        "STAGEBUS_WORKER_METRICS_PORT": str(free_port()),
    }
    worker_url = f"http://127.0.0.1:{env['STAGEBUS_WORKER_METRICS_PORT']}"
    async with System(tmp_path, env=env) as system, httpx.AsyncClient(base_url=system.url) as http:
        looks = [await _looks_at_loop(http, url) for url in (system.url, worker_url)]
        started_at = time.monotonic()
        idle = await _sent_in(system.redis, WATCH_S)
        # A worker's and the gateway's canary and what they say of themselves, the worker's poll with its wait on the
        # bell, and those that look.
        assert idle <= WATCH_S * (2 / CANARY_S / IDLE_CANARY_EVERY + 2 / SAY_S + 2 / POLL_S) + 4
        for before, url in zip(looks, (system.url, worker_url), strict=True):
            assert 0 < await _looks_at_loop(http, url) - before <= (time.monotonic() - started_at) / LOOK_S + 1

        body = {"model": "demo:stall_after=1,delay_ms=1", "user_prompt": "hold", "tools": [], "synthesis": False}
        started_at, before = time.monotonic(), await calls(system.redis)
        await asyncio.gather(*[http.post("/runs", json=body) for _ in range(HELD)])
        await _until_held(system.redis)
        used = await calls(system.redis) - before
        took_s = time.monotonic() - started_at
        appends = used["xadd"] - HELD  # if each event went alone, which is the most that it can be
        assert appends <= HELD * EVENTS
        # Creating, taking and claiming, and no more than a look at the queue for each bell. The rest is as much as the
        # time was: polls, renewals, what is said; and scripts that are sent again, as the server did not know them.
        by_time = took_s * (2 / POLL_S + 2 / SAY_S + HELD * 3 / LEASE_S) + len(list(LUA.glob("*.lua")))
        assert used["evalsha"] + used["eval"] - appends <= HELD * (3 + 1) + by_time

        before = await calls(system.redis)
        await asyncio.sleep(WATCH_S)
        used = await calls(system.redis) - before
        # Three renewals a lease, of which one more may fall into the time that was looked at; the polls; what is said.
        assert used["evalsha"] <= HELD * (WATCH_S * 3 / LEASE_S + 1) + 2 * WATCH_S / POLL_S + 2 * (WATCH_S / SAY_S + 1)
        assert used["hgetall"] == used["xadd"] == used["xrange"] == 0


async def _looks_at_loop(http: httpx.AsyncClient, url: str) -> float:
    """How often a process woke to see how late its event loop is."""
    found = re.search(
        r"^stagebus_event_loop_lag_seconds_count (\S+)", (await http.get(f"{url}/metrics")).text, re.MULTILINE
    )
    assert found is not None
    return float(found[1])


async def _sent_in(redis: Redis, seconds: float) -> int:
    before = await sent(redis)
    await asyncio.sleep(seconds)
    return await sent(redis) - before


async def _until_held(redis: Redis) -> None:
    async with asyncio.timeout(20):
        while True:
            found = [key async for key in redis.scan_iter("sb:run:*:stage:extraction", count=1000)]
            if len(found) == HELD and all([await redis.xlen(key) >= 2 for key in found]):
                return
            await asyncio.sleep(0.1)
