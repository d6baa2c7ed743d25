"""Rival: Starlette and sse-starlette with one `XREAD BLOCK` per client.

    python -m benchmarks.rivals.naive redis://127.0.0.1:6379/0 8000

What one writes first, and what most guides show. It is served by the same uvicorn with uvloop
and httptools, and may open as many connections to Redis as it has clients.
"""

import sys
from collections.abc import AsyncIterator

import uvicorn
from redis.asyncio import ConnectionPool, Redis
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

BLOCK_MS = 5000
PAGE = 500


def create_app(redis_url: str) -> Starlette:
    """Builds an app with one route."""
    redis = Redis(connection_pool=ConnectionPool.from_url(redis_url, max_connections=20_000))

    async def events(request: Request) -> Response:
        return EventSourceResponse(
            _follow(redis, request.path_params["name"], request.headers.get("last-event-id", "0"))
        )

    return Starlette(routes=[Route("/events/{name}", events)])


async def _follow(redis: Redis, name: str, last_id: str) -> AsyncIterator[ServerSentEvent]:
    while True:
        for _, entries in await redis.xread({name: last_id}, count=PAGE, block=BLOCK_MS):
            for entry_id, fields in entries:
                last_id = entry_id.decode()
                yield ServerSentEvent(fields[b"data"].decode(), event=fields[b"event"].decode(), id=last_id)


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
