"""Opens the transport to an MCP server: the pipes of a process, or HTTP through the egress guard."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio
from mcp.client.streamable_http import streamable_http_client

from stagebus.worker.tools.egress import Egress
from stagebus.worker.tools.mcp.mcp_pipes import open_pipes
from stagebus.worker.tools.sources_file import McpEntry

T = TypeVar("T")

# The limit for a write. There is none for the answer, which may take long.
_WRITE_TIMEOUT_S: Final = 30.0


@asynccontextmanager
async def open_transport(
    name: str, entry: McpEntry, egress: Egress, on_end: Callable[[], None]
) -> AsyncIterator[tuple[Any, Any]]:
    """Yields the streams from and to a server. Calls `on_end` when the incoming stream ends.

    Raises:
        KeyMissing: a secret in `env` or `headers` is missing.
        OSError: the command cannot be started.
    """
    if entry.command is not None:
        async with open_pipes(name, entry, egress.response_max_bytes) as (reading, writing):
            yield _WatchedStream(reading, on_end), writing
        return
    assert entry.url is not None, "an entry has a command or a URL"
    headers = {name: value.read() for name, value in entry.headers.items()}
    async with (
        egress.client([entry.url], timeout_s=_WRITE_TIMEOUT_S, headers=headers, event_streams=True) as http,
        streamable_http_client(entry.url, http_client=http) as (reading, writing),
    ):
        yield _WatchedStream(reading, on_end), writing


class _WatchedStream:
    """A receiving stream that reports its end. The SDK (2.3) reports it only to pending requests."""

    def __init__(self, stream: Any, on_end: Callable[[], None]) -> None:
        self._stream = stream
        self._on_end = on_end

    @property
    def last_context(self) -> Any:
        """The attribute of the SDK's own streams."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        try:
            return await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._on_end()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except (StopAsyncIteration, anyio.ClosedResourceError):
            self._on_end()
            raise

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        result: bool | None = await self._stream.__aexit__(kind, exc, traceback)
        return result
