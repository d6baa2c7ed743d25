"""Opens the transport to an MCP server: the pipes of a process, or HTTP through the egress guard."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

import anyio
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCResponse

from stagebus.worker.tools.egress import Egress
from stagebus.worker.tools.mcp.mcp_http import SessionTransport
from stagebus.worker.tools.mcp.mcp_messages import ServerMessages, TooManyRequests
from stagebus.worker.tools.mcp.mcp_pipes import open_pipes
from stagebus.worker.tools.sources_file import McpEntry

logger = logging.getLogger(__name__)

# The limit for a write. There is none for the answer, which may take long.
_WRITE_TIMEOUT_S: Final = 30.0
# Further messages other than answers wait: each costs the worker's event loop 0.1 ms.
UNASKED_MAX_PER_S: Final = 1000


@asynccontextmanager
async def open_transport(
    name: str, entry: McpEntry, egress: Egress, messages: ServerMessages, on_end: Callable[[], None]
) -> AsyncIterator[tuple[Any, Any]]:
    """Yields the streams from and to a server. Calls `on_end` when the incoming stream ends.

    Raises:
        KeyMissing: a secret in `env` or `headers` is missing.
        OSError: the command cannot be started.
    """
    if entry.command is not None:
        async with open_pipes(name, entry, egress.response_max_bytes) as (reading, writing):
            yield _IncomingStream(reading, messages, on_end), _OutgoingStream(writing, messages)
        return
    assert entry.url is not None, "an entry has a command or a URL"
    headers = {name: value.read() for name, value in entry.headers.items()}
    async with (
        egress.client(
            [entry.url], timeout_s=_WRITE_TIMEOUT_S, headers=headers, event_streams=True, wrap=SessionTransport
        ) as http,
        streamable_http_client(entry.url, http_client=http, max_sse_event_size=egress.response_max_bytes) as (
            reading,
            writing,
        ),
    ):
        yield _IncomingStream(reading, messages, on_end), _OutgoingStream(writing, messages)


class _Stream:
    """A stream of the SDK that notes or changes what passes."""

    def __init__(self, stream: Any, messages: ServerMessages) -> None:
        self._stream = stream
        self._messages = messages

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        self._stream.close()

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        result: bool | None = await self._stream.__aexit__(kind, exc, traceback)
        return result


class _OutgoingStream(_Stream):
    """Notes the requests to the server, and the answers that it took."""

    async def send(self, item: SessionMessage) -> None:
        is_answer = isinstance(item.message, JSONRPCResponse | JSONRPCError)
        if not is_answer:
            self._messages.sent(item.message)  # before, since the response may be faster than this task
        await self._stream.send(item)
        if is_answer:
            self._messages.sent(item.message)


class _IncomingStream(_Stream):
    """Corrects the messages of the server, limits their rate and reports their end.

    The SDK (2.3) reports the end only to pending requests.
    """

    def __init__(self, stream: Any, messages: ServerMessages, on_end: Callable[[], None]) -> None:
        super().__init__(stream, messages)
        self._on_end = on_end
        self._second = 0.0
        self._unasked = 0

    @property
    def last_context(self) -> Any:
        """The attribute of the SDK's own streams."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        try:
            return await self._correct(await self._stream.receive())
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._on_end()
            raise
        except TooManyRequests as exc:
            raise self._ended(exc) from exc

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def _correct(self, item: SessionMessage | Exception) -> SessionMessage | Exception:
        if isinstance(item, SessionMessage):
            is_answer = self._messages.is_answer(item.message)
            item = SessionMessage(self._messages.received(item.message), item.metadata)
            if is_answer:
                return item
        now = time.monotonic()
        if now - self._second >= 1:
            self._second, self._unasked = now, 0
        self._unasked += 1
        if self._unasked > UNASKED_MAX_PER_S:
            await asyncio.sleep(self._second + 1 - now)
        return item

    def _ended(self, exc: TooManyRequests) -> anyio.EndOfStream:
        logger.warning("an MCP server is disconnected: %s", exc)
        self._on_end()
        return anyio.EndOfStream()
