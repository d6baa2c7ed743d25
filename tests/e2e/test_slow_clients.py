"""Slow clients: they bound neither the run nor other clients, and the gateway's memory stays bounded."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from stagebus.shared.config.settings import Settings
from tests.support import runs_by_hand
from tests.support.soak import resident_kib
from tests.support.strict_client import StrictClient
from tests.support.system import System

pytestmark = pytest.mark.faults

CLIENTS = 100
# Per client: the page of the log that is being sent, its copy in the server, and buffered live batches.
CLIENT_MAX_KIB = 3 * Settings().stream_buffer_max_bytes // 1024
EVENT_BYTES = 1000


async def test_client_that_stops_reading_has_a_bounded_buffer(start: Callable[..., Any]) -> None:
    system: System = await start(workers=0)
    run = await runs_by_hand.start(system.redis)
    before_kib = resident_kib(system.gateways[0])
    port = int(system.url.rsplit(":", 1)[1])
    path = f"/runs/{run.run_id}/events"
    writers = [await _connect_and_stop_reading(port, path) for _ in range(CLIENTS)]
    reading = StrictClient(system.urls, run.run_id)
    following = asyncio.create_task(reading.follow())
    for _ in range(40):
        await run.say(*["x" * EVENT_BYTES] * 100)
    await run.end()
    await runs_by_hand.stop(run)
    await following
    grown_kib = resident_kib(system.gateways[0]) - before_kib

    assert len(reading.events) == 4002, "the client that reads has every event"
    log_kib = 4000 * EVENT_BYTES // 1024
    assert grown_kib < CLIENTS * CLIENT_MAX_KIB < CLIENTS * log_kib, "less than a copy of the log per client"
    for writer in writers:
        writer.transport.abort()


async def _connect_and_stop_reading(port: int, path: str) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return writer
