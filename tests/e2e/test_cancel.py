"""Latency of a cancel: until the provider's connection is closed, since tokens cost money, and until the client knows."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from statistics import median
from typing import Any

import httpx
import orjson
import pytest

from tests.support.strict_client import StrictClient, post_run
from tests.support.system import System

pytestmark = pytest.mark.faults

CANCEL_MAX_S = 0.2
RUNS = 9
CHUNK = orjson.dumps({"choices": [{"index": 0, "delta": {"content": "on and "}}]})


class EndlessProvider:
    """Answers every request with endless tokens and records when the client disconnects."""

    def __init__(self) -> None:
        self.disconnected_at: asyncio.Queue[float] = asyncio.Queue()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        talking = asyncio.create_task(self._talk(writer))
        with suppress(ConnectionResetError):  # closed with tokens unread
            while await reader.read(65536):
                pass  # the rest of the request
        self.disconnected_at.put_nowait(asyncio.get_running_loop().time())
        talking.cancel()
        writer.close()

    async def _talk(self, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"data: " + CHUNK + b"\n\n")
            await writer.drain()
            await asyncio.sleep(0.01)  # the pace of a model


async def test_cancel_reaches_provider_and_client_within_200_ms(start: Callable[..., Any]) -> None:
    """Compares the median, since a busy machine is late now and then."""
    provider = EndlessProvider()
    async with await asyncio.start_server(provider.answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        system: System = await start(workers=0)
        await system.add_worker({"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1"}).ready("is ready for")
        delays = [await _cancel_one(system, provider) for _ in range(RUNS)]

    assert median(delay for delay, _ in delays) < CANCEL_MAX_S, "time until the provider's connection was closed"
    assert median(delay for _, delay in delays) < CANCEL_MAX_S, "time until the client had `cancel`"


async def _cancel_one(system: System, provider: EndlessProvider) -> tuple[float, float]:
    """Cancels a run; returns the seconds until the provider's connection closed and until the client had `cancel`."""
    client = StrictClient(system.urls, await post_run(system.url, {"user_prompt": "talk"}))
    following = asyncio.create_task(client.follow())
    await client.until(lambda c: c.names().count("tool_completion_chunk") >= 3)
    loop = asyncio.get_running_loop()
    async with httpx.AsyncClient(base_url=system.url) as http:
        asked_at = loop.time()
        asked = asyncio.create_task(http.post(f"/runs/{client.run_id}/cancel"))
        await client.until(lambda c: c.names()[-1] == "cancel")
        known_at = loop.time()
        await asked
    await following
    async with asyncio.timeout(5):
        return await provider.disconnected_at.get() - asked_at, known_at - asked_at
