"""Holds a request until its run has come to a certain point, as one stream of the hub."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from starlette.requests import ClientDisconnect, Request

from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming.client_stream import ClientStream
from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.stream_writer import StreamTorn
from stagebus.shared.errors import Draining, StorageUnavailable
from stagebus.shared.runtime.tasks import cancel_and_wait


def running_hub(request: Request) -> Hub:
    """Returns the hub of the request's gateway.

    Raises:
        Draining: the gateway is shutting down.
    """
    hub = gateway_of(request).hub
    if hub.is_draining:
        raise Draining
    return hub


async def hold(request: Request, stream: ClientStream, timeout_s: float | None = None) -> None:
    """Returns once a strict stream has ended, or after `timeout_s`. Counts as an open stream until then.

    While Redis is down it waits.

    Raises:
        ClientDisconnect: the client has gone. The run continues.
        TooManyStreams, Draining, StorageUnavailable: waiting is not possible here now.
    """
    hub = running_hub(request)
    body = hub.relay(stream, gateway_of(request).admit_stream(principal_of(request), stream.close))
    async with closed_on_disconnect(request, stream) as watching:
        try:
            with suppress(TimeoutError):
                async with aclosing(body), asyncio.timeout(timeout_s):
                    async for _ in body:
                        pass
        except StreamTorn:
            if watching.done():
                raise ClientDisconnect from None
            raise (Draining() if hub.is_draining else StorageUnavailable()) from None


@asynccontextmanager
async def closed_on_disconnect(request: Request, stream: ClientStream) -> AsyncIterator[asyncio.Task[None]]:
    """Within this context, closes the stream when the request's client leaves; the task that watches is done then."""
    watching = asyncio.create_task(_close_on_disconnect(request, stream))
    try:
        yield watching
    finally:
        await cancel_and_wait(watching)


async def _close_on_disconnect(request: Request, stream: ClientStream) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    stream.close()
