"""Real gateway processes: start, signals, drain."""

import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.shared.log import sse
from tests.support.system import Process
from tests.support.waiting import until_equal

Start = Callable[..., Process]


@pytest.fixture
async def start(redis: Redis, redis_url: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a gateway on a free port."""
    started: list[Process] = []

    def start(*args: str, delay_s: float = 0, spread_s: float = 0.2, url: str = redis_url) -> Process:
        env = {
            "STAGEBUS_REDIS_URL": url,
            "STAGEBUS_DRAIN_DELAY_S": str(delay_s),
            "STAGEBUS_DRAIN_SPREAD_S": str(spread_s),
        }
        process = Process(
            f"gateway{len(started)}", list(args or ("-m", "stagebus.gateway", "--port", "0")), env, tmp_path
        )
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        if process.is_running:
            await process.kill()


async def create(http: httpx.AsyncClient) -> str:
    response = await http.post("/runs", json={"user_prompt": "Hello"})
    return f"/runs/{response.json()['id']}/events"


async def readiness(http: httpx.AsyncClient) -> int:
    return (await http.get("/readyz")).status_code


async def read_until_end(stream: httpx.Response, at_first_event: Callable[[], None] = lambda: None) -> list[str]:
    body, parts = b"", stream.aiter_bytes()
    while b"event: " not in body:
        body += await anext(parts)
    at_first_event()
    body += b"".join([part async for part in parts])
    return [frame.event for frame in sse.decode(body)]


async def test_server_prints_its_address_and_sends_no_server_header(start: Start) -> None:
    async with httpx.AsyncClient(base_url=await start().ready()) as http:
        response = await http.get("/healthz")

    assert response.json() == {"status": "ok"}
    assert "server" not in response.headers


async def test_readiness_fails_before_streams_end(start: Start) -> None:
    process = start(delay_s=1.0)
    async with (
        httpx.AsyncClient(base_url=await process.ready()) as http,
        http.stream("GET", await create(http)) as stream,
    ):
        process.signal(signal.SIGTERM)
        await until_equal(lambda: readiness(http), 503, timeout_s=0.9)
        still_serves = (await http.get("/healthz")).status_code
        events = await read_until_end(stream)
    await process.wait()

    assert still_serves == 200
    assert events == ["run_queued"], (
        "no terminal event: the run continues, and its clients reconnect to another gateway"
    )


async def test_second_signal_skips_the_drain_delay(start: Start) -> None:
    process = start(delay_s=60)
    async with httpx.AsyncClient(base_url=await process.ready()) as http:
        process.signal(signal.SIGTERM)
        await until_equal(lambda: readiness(http), 503)
    process.signal(signal.SIGTERM)

    await process.wait(timeout_s=5)


async def test_plain_uvicorn_ends_streams_at_shutdown(start: Start) -> None:
    process = start("-m", "uvicorn", "stagebus.gateway.app:app", "--port", "0")
    url, *_ = (await process.ready("running on ")).split()
    async with (
        httpx.AsyncClient(base_url=url) as http,
        http.stream("GET", await create(http)) as stream,
    ):
        events = await read_until_end(stream, lambda: process.signal(signal.SIGTERM))
    await process.wait()

    assert events == ["run_queued"]


async def test_unreachable_redis_is_reported_without_a_traceback(start: Start) -> None:
    process = start(url="redis://127.0.0.1:1/0")

    assert await process.wait() == 1
    assert process.log().startswith("stagebus gateway: Redis is unreachable")
    assert "Traceback" not in process.log()


async def test_idle_gateway_exits_immediately(start: Start) -> None:
    process = start(spread_s=30)
    await process.ready()
    signalled = time.monotonic()
    await process.terminate()

    assert time.monotonic() - signalled < 3
