"""Runs `stagebus.client` and checks it as strictly as the strict client."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx

from stagebus.client import AsyncStagebus, ClientError
from tests.support.strict_client import StrictClient, Violation


class CutStream(httpx.AsyncByteStream):
    """A body that ends after so many bytes, even within a frame or a character."""

    def __init__(self, body: httpx.AsyncByteStream, bytes_max: int) -> None:
        self._body = body
        self._left = bytes_max

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._body:
            yield piece[: self._left]
            self._left -= len(piece)
            if self._left <= 0:
                return

    async def aclose(self) -> None:
        await self._body.aclose()


class RandomGatewayTransport(httpx.AsyncHTTPTransport):
    """Sends each request to a random gateway and cuts each response at a random byte."""

    def __init__(self, client: "PythonClient", cut_max: int) -> None:
        super().__init__()
        self._client = client
        self._cut_max = cut_max

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = httpx.URL(random.choice(self._client.urls))
        request.url = request.url.copy_with(host=url.host, port=url.port)
        response = await super().handle_async_request(request)
        self._client.connections += response.status_code == 200
        if self._cut_max:
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = CutStream(response.stream, random.randint(1, self._cut_max))
        return response


class PythonClient(StrictClient):
    """Follows one run; its events are checked like events from the gateway."""

    def __init__(self, urls: list[str], run_id: str, cut_max: int = 0) -> None:
        """`cut_max`: cut each connection after at most so many bytes; 0 cuts none."""
        super().__init__(urls, run_id)
        self._cut_max = cut_max

    async def follow(self, timeout_s: float = 60, _cut_after: object = None) -> "PythonClient":
        """Follow to the terminal event."""
        transport = RandomGatewayTransport(self, self._cut_max)
        async with (
            asyncio.timeout(timeout_s),
            AsyncStagebus(self.urls[0], transport=transport, patience_s=timeout_s) as bus,
        ):
            try:
                async with aclosing(bus.runs.resume(self.run_id).events()) as events:
                    async for seen in events:
                        await self._take(*seen)
            except ClientError as exc:
                raise Violation(f"{self.run_id}: the client ended with {exc!r}") from exc
        if not self.is_ended:
            raise Violation(f"{self.run_id}: the client ended before the run")
        return self
