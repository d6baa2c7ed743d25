"""A tenant's stream slots, through the whole app on a server that has no stream writer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.types import Message

from stagebus.shared.storage import keys
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until_equal

SOON_S = 5.0
RETRY_LATER = b"retry: 5000\n\n"


@asynccontextmanager
async def open_stream(app: Starlette, run: RunByHand) -> AsyncIterator[bytes]:
    """The first part of the body of a stream, whose client disconnects at the end."""
    parts, disconnect = asyncio.Queue[bytes](), asyncio.Event()

    async def receive() -> Message:
        await disconnect.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body"):
            parts.put_nowait(message["body"])

    path = f"/runs/{run.run_id}/events"
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [(b"host", b"localhost"), (b"accept", b"text/event-stream")], "scheme": "http",
             "client": ("127.0.0.1", 1), "http_version": "1.1"}  # fmt: skip
    request = asyncio.create_task(app(scope, receive, send))
    async with asyncio.timeout(SOON_S):
        yield await parts.get()
        disconnect.set()
        await request


async def test_stream_slot_is_released_when_the_client_disconnects(
    app: Starlette, redis: Redis, run: RunByHand
) -> None:
    """The server cancels the response then, again and again until it ends."""
    await redis.hset(keys.LIMITS, "default:streams_open", 1)
    async with open_stream(app, run) as first:
        assert first != RETRY_LATER
        async with open_stream(app, run) as second:
            assert second == RETRY_LATER, "the one slot is taken"
    await until_equal(lambda: redis.exists(keys.streams("default")), 0)
    async with open_stream(app, run) as third:
        assert third != RETRY_LATER
