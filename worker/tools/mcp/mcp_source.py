"""The tools of one MCP server, over one connection that all runs of the worker share.

    start ──▶ connect ──▶ list ──▶ offer ──▶ wait: list changed, half a minute over, or the end
                 ▲                   ▲                  │                      │
                 │                   └──────────────────┘                      │
                 └──────────────────────── backoff ◀───────────────────────────┘

One task opens and closes the connection, since the SDK's scopes must be left by the task that entered them. Runs only
send requests over it. Without a connection, the tools of the last listing stay on offer and calls fail with a message.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

from mcp import Client, MCPError
from mcp.client.subscriptions import SubscriptionLost
from mcp_types import CONNECTION_CLOSED, Tool, ToolListChangedNotification
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.worker.tools.call_limiter import CallLimiter
from stagebus.worker.tools.egress import Egress
from stagebus.worker.tools.mcp.mcp_results import description_of, is_idempotent, offerable_tools, reply_of
from stagebus.worker.tools.mcp.mcp_transport import open_transport
from stagebus.worker.tools.sources import SourcedTool
from stagebus.worker.tools.sources_file import McpEntry
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_names import name_tools
from stagebus.worker.tools.tool_results import ToolReply

logger = logging.getLogger(__name__)

# A worker waits this long for its servers before it takes runs without their tools.
START_MAX_S: Final = 10.0
# The interval of tool listings: not every server reports changes, and a listing detects a dead connection.
LIST_S: Final = 30.0
BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
TOOLS_MAX: Final = 500
# A process gets 2 s to end by itself, 2 s after SIGTERM, and 2 s after SIGKILL.
STOP_MAX_S: Final = 8.0


class McpSource:
    """One MCP server and its tools."""

    def __init__(self, name: str, entry: McpEntry, egress: Egress) -> None:
        self.name = name
        self.on_change: Callable[[], None] = lambda: None
        self.is_known = False
        self._entry = entry
        self._egress = egress
        self._limiter = CallLimiter(entry.concurrency)
        self._tools: list[SourcedTool] = []
        self._listed: tuple[list[Tool], set[str]] = [], set()
        self._client: Client | None = None
        self._connection_task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()  # set at a change, at the end of the connection and at a stop
        self._is_lost = False

    def tools(self) -> list[SourcedTool]:
        """Returns the tools of the last listing."""
        return self._tools

    async def start(self) -> None:
        """Starts to connect, and waits up to `START_MAX_S` for the first try."""
        self._start_connection_task(None)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), START_MAX_S)

    async def aclose(self) -> None:
        """Closes the connection and ends the server's process."""
        self._stopping.set()
        self._wake.set()
        if self._connection_task is not None:
            if self._client is None:
                self._connection_task.cancel()  # it is connecting and would not see the event
            await asyncio.wait({self._connection_task}, timeout=STOP_MAX_S)
            await cancel_and_wait(self._connection_task, timeout_s=1.0)

    # --- the connection ------------------------------------------------------

    def _start_connection_task(self, ended: asyncio.Task[None] | None) -> None:
        """Starts the connection task. Starts it again if it ended unexpectedly, by a cancellation inside the SDK."""
        if self._stopping.is_set():
            return
        if ended is not None:
            logger.error("MCP server %s: the connection task was cancelled unexpectedly; starting it again", self.name)
        self._connection_task = asyncio.create_task(
            self._run_connections(0 if ended is None else BACKOFF_S), name=f"mcp {self.name}"
        )
        self._connection_task.add_done_callback(self._start_connection_task)

    async def _run_connections(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        backoff_s = BACKOFF_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                await self._use_connection()
                reason = "the server closed the connection"
            except (Exception, BaseExceptionGroup) as exc:  # noqa: BLE001 - the server, its process or the SDK may raise anything
                reason = _innermost(exc)
            finally:
                self._client = None
                self._tried.set()
            if time.monotonic() - started > BACKOFF_MAX_S:
                backoff_s = BACKOFF_S
            if not self._stopping.is_set():
                logger.warning("MCP server %s: %s; next try in %.1f s", self.name, reason, backoff_s)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), backoff_s * (0.5 + random.random() / 2))  # noqa: S311 - jitter
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _use_connection(self) -> None:
        """Connects and keeps the tools up to date. Returns when the connection or the worker ends."""
        self._is_lost = False
        async with self._connect() as client:
            self._tried.set()
            logger.info("MCP server %s: connected, %d tools", self.name, len(self._tools))
            listening = asyncio.create_task(self._listen(client))
            try:
                await self._refresh_until_lost(client)
            finally:
                self._client = None
                listening.cancel()  # not awaited: on a broken connection it might never end

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Client]:
        transport = open_transport(self.name, self._entry, self._egress, self._on_lost)
        client = Client(transport, message_handler=self._on_message, cache=None)
        async with asyncio.timeout(self._entry.connect_timeout_s) as connecting:
            async with client:
                await self._list(client)
                self._client = client
                connecting.reschedule(None)
                yield client

    async def _refresh_until_lost(self, client: Client) -> None:
        while not (self._stopping.is_set() or self._is_lost):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LIST_S)
            self._wake.clear()  # before the listing, so that a change during it causes another one
            if not (self._stopping.is_set() or self._is_lost):
                async with asyncio.timeout(self._entry.connect_timeout_s):
                    await self._list(client)

    async def _on_message(self, message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._wake.set()

    async def _listen(self, client: Client) -> None:
        """Subscribes to changes if the protocol version needs it; they arrive in `_on_message`."""
        if client.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            return
        try:
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    pass
        except SubscriptionLost:
            if client is self._client:
                self._on_lost()
        except Exception as exc:  # noqa: BLE001 - the tools work without notifications
            logger.info(
                "MCP server %s sends no notifications of changes (%s); it is polled every %g s", self.name, exc, LIST_S
            )

    def _on_lost(self) -> None:
        self._client = None
        self._is_lost = True
        self._wake.set()

    async def _list(self, client: Client) -> None:
        listed: list[Tool] = []
        names: set[str] = set()  # also those of tools that are not offered
        cursor: str | None = None
        while len(listed) < TOOLS_MAX:
            page = await client.list_tools(cursor=cursor)
            names |= {tool.name for tool in page.tools}
            listed += [tool for tool in page.tools if self._entry.offers(tool.name)]
            cursor = page.next_cursor
            if cursor is None or not page.tools:
                break
        else:
            logger.warning("MCP server %s has more than %d tools; the rest are left out", self.name, TOOLS_MAX)
        if (listed[:TOOLS_MAX], names) != self._listed or not self.is_known:
            self.is_known = True
            self._listed = listed[:TOOLS_MAX], names
            self._tools = self._offer(*self._listed)
            self.on_change()

    def _offer(self, listed: list[Tool], names: set[str]) -> list[SourcedTool]:
        offerable = {tool.name: tool for tool in offerable_tools(self.name, listed)}
        entry = self._entry
        if names and (unguarded := entry.unknown(entry.requires_approval, names)):
            # A tool that needs an approval has another name than the operator wrote, and would run without one.
            logger.error(
                "MCP server %s: no tool is offered, since it has no tool %s, which requires_approval names",
                self.name, ", ".join(unguarded),
            )  # fmt: skip
            return []
        if unknown := entry.unknown(entry.idempotent or [], names):
            logger.warning("MCP server %s has no tool %s", self.name, ", ".join(unknown))
        return [
            SourcedTool(
                name=offered,
                description=description_of(offerable[name]),
                parameters=offerable[name].input_schema,
                call=partial(self._call, name),
                idempotent=entry.may_repeat(name, otherwise=is_idempotent(offerable[name])),
                timeout_s=entry.timeout_s,
                result_max_bytes=entry.max_result_bytes,
                requires_approval=entry.needs_approval(name),
                limiter=self._limiter,
            )
            for name, offered in name_tools(self.name, offerable).items()
        ]

    # --- calls (in the tasks of runs) ----------------------------------------

    async def _call(self, tool: str, arguments: dict[str, Any], context: ToolContext) -> ToolReply:
        client = self._client
        if client is None:
            raise ToolError(f"the MCP server {self.name} is not connected at the moment; try again later")

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            context.progress(message or "", progress / total if total else None)

        try:
            return reply_of(await client.call_tool(tool, arguments, progress_callback=on_progress))
        except MCPError as exc:
            if exc.code == CONNECTION_CLOSED or client is not self._client:
                raise ToolError(f"the connection to the MCP server {self.name} was lost during the call") from exc
            self._wake.set()  # the session may have ended: a listing detects it
            raise ToolError(exc.message) from exc
        except Exception as exc:
            if client is not self._client:
                raise ToolError(f"the connection to the MCP server {self.name} was lost during the call") from exc
            raise


def _innermost(exc: BaseException) -> str:
    """Returns the message of the first exception inside nested groups."""
    while isinstance(exc, BaseExceptionGroup) and exc.exceptions:
        exc = exc.exceptions[0]
    text = "the server did not answer in time" if isinstance(exc, TimeoutError) else str(exc)
    return text or type(exc).__name__
