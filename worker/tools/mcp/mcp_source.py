"""The tools of one MCP server, over one connection that all runs of this worker share.

    start ──▶ connect ──▶ list ──▶ offer ──▶ wait: list changed, half a minute over, or the end
                 ▲                   ▲                  │                      │
                 │                   └──────────────────┘                      │
                 └──────────────────────── backoff ◀───────────────────────────┘

One task owns the connection from its opening to its closing, since the SDK's scopes must be
left by the task that entered them; runs only send requests over it. While there is none,
the tools last seen stay on offer, and a call says that the server is away.
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
from stagebus.worker.tools.mcp.mcp_results import description_of, fit_tools, is_idempotent, reply_of
from stagebus.worker.tools.mcp.mcp_transport import open_transport
from stagebus.worker.tools.sources import SourcedTool
from stagebus.worker.tools.sources_file import McpEntry
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_names import name_tools
from stagebus.worker.tools.tool_results import ToolReply

logger = logging.getLogger(__name__)

# A worker waits this long for its servers before it takes runs without them.
START_MAX_S: Final = 10.0
# Tools are listed again this often: not every server tells of changes, and a dead connection shows.
LIST_S: Final = 30.0
BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
TOOLS_MAX: Final = 500
# The SDK gives a process 2 s to end by itself, 2 s after SIGTERM, and 2 s after SIGKILL.
STOP_MAX_S: Final = 8.0


class McpSource:
    """One server and its tools."""

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
        self._owner: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()  # something is to be looked at: a change, the end of the connection, a stop
        self._is_lost = False

    def tools(self) -> list[SourcedTool]:
        """What the server listed last."""
        return self._tools

    async def start(self) -> None:
        """Begin to connect, and wait for the first go at it, but not for long."""
        self._take_over(None)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), START_MAX_S)

    async def aclose(self) -> None:
        """Close the connection and end the server's process."""
        self._stopping.set()
        self._wake.set()
        if self._owner is not None:
            if self._client is None:
                self._owner.cancel()  # it is about to connect, and would not see the sign
            await asyncio.wait({self._owner}, timeout=STOP_MAX_S)
            await cancel_and_wait(self._owner, timeout_s=1.0)

    # --- the owner -----------------------------------------------------------

    def _take_over(self, ended: asyncio.Task[None] | None) -> None:
        """Have an owner, and another where the one before ended though nobody here told it to: a cancel of the SDK's own."""
        if self._stopping.is_set():
            return
        if ended is not None:
            logger.error("MCP server %s: its connection's task was cancelled by nobody here; beginning anew", self.name)
        self._owner = asyncio.create_task(self._own(0 if ended is None else BACKOFF_S), name=f"mcp {self.name}")
        self._owner.add_done_callback(self._take_over)

    async def _own(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        backoff_s = BACKOFF_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                await self._hold()
                trouble = "it closed the connection"
            except (Exception, BaseExceptionGroup) as exc:  # noqa: BLE001 - whatever a server, its process or the SDK comes up with
                trouble = _innermost(exc)
            finally:
                self._client = None
                self._tried.set()
            if time.monotonic() - started > BACKOFF_MAX_S:
                backoff_s = BACKOFF_S
            if not self._stopping.is_set():
                logger.warning("MCP server %s: %s; again in %.1f s", self.name, trouble, backoff_s)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), backoff_s * (0.5 + random.random() / 2))  # noqa: S311 - jitter
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _hold(self) -> None:
        """Connect, keep the tools as the server lists them, and return when the connection or the worker ends."""
        self._is_lost = False
        async with self._connected() as client:
            self._tried.set()
            logger.info("MCP server %s: connected, %d tools", self.name, len(self._tools))
            listening = asyncio.create_task(self._listen(client))
            try:
                await self._keep(client)
            finally:
                self._client = None
                listening.cancel()  # not waited for: a connection that broke lets its owner wait for nothing

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        transport = open_transport(self._entry, self._egress, self._lose)
        client = Client(transport, message_handler=self._hear, cache=None)
        async with asyncio.timeout(self._entry.connect_timeout_s) as connecting:
            async with client:
                await self._list(client)
                self._client = client
                connecting.reschedule(None)
                yield client

    async def _keep(self, client: Client) -> None:
        while not (self._stopping.is_set() or self._is_lost):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LIST_S)
            self._wake.clear()  # before the listing: what changes during it is looked at again
            if not (self._stopping.is_set() or self._is_lost):
                async with asyncio.timeout(self._entry.connect_timeout_s):
                    await self._list(client)

    async def _hear(self, message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._wake.set()

    async def _listen(self, client: Client) -> None:
        """Ask for news where the protocol's version wants that; they come through `_hear`."""
        if client.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            return
        try:
            async with client.listen(tools_list_changed=True) as news:
                async for _ in news:
                    pass
        except SubscriptionLost:
            if client is self._client:
                self._lose()
        except Exception as exc:  # noqa: BLE001 - a server that does not know how to tell still has its tools
            logger.info("MCP server %s tells of no changes (%s); it is asked every %g s", self.name, exc, LIST_S)

    def _lose(self) -> None:
        self._client = None
        self._is_lost = True
        self._wake.set()

    async def _list(self, client: Client) -> None:
        listed: list[Tool] = []
        names: set[str] = set()  # of those that are not offered, too
        cursor: str | None = None
        while len(listed) < TOOLS_MAX:
            page = await client.list_tools(cursor=cursor)
            names |= {tool.name for tool in page.tools}
            listed += [tool for tool in page.tools if self._entry.offers(tool.name)]
            cursor = page.next_cursor
            if cursor is None or not page.tools:
                break
        else:
            logger.warning("MCP server %s has more than %d tools; the rest is left out", self.name, TOOLS_MAX)
        if (listed[:TOOLS_MAX], names) != self._listed or not self.is_known:
            self.is_known = True
            self._listed = listed[:TOOLS_MAX], names
            self._tools = self._offer(*self._listed)
            self.on_change()

    def _offer(self, listed: list[Tool], names: set[str]) -> list[SourcedTool]:
        fit = {tool.name: tool for tool in fit_tools(self.name, listed)}
        entry = self._entry
        if names and (unguarded := entry.unknown(entry.requires_approval, names)):
            # One of its tools has another name than was meant, and nobody can tell which: it would run unasked.
            logger.error(
                "MCP server %s: none of its tools is offered, since it has none that is called %s, which requires_approval names",
                self.name, ", ".join(unguarded),
            )  # fmt: skip
            return []
        if unknown := entry.unknown(entry.idempotent or [], names):
            logger.warning("MCP server %s has no tool that is called %s", self.name, ", ".join(unknown))
        return [
            SourcedTool(
                name=ours,
                description=description_of(fit[name]),
                parameters=fit[name].input_schema,
                call=partial(self._call, name),
                idempotent=entry.may_repeat(name, otherwise=is_idempotent(fit[name])),
                timeout_s=entry.timeout_s,
                result_max_bytes=entry.max_result_bytes,
                requires_approval=entry.needs_approval(name),
                limiter=self._limiter,
            )
            for name, ours in name_tools(self.name, fit).items()
        ]

    # --- calls, in the tasks of runs -----------------------------------------

    async def _call(self, tool: str, arguments: dict[str, Any], context: ToolContext) -> ToolReply:
        client = self._client
        if client is None:
            raise ToolError(f"the MCP server {self.name} is not connected at the moment; try again later")

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            context.progress(message or "", progress / total if total else None)

        try:
            return reply_of(await client.call_tool(tool, arguments, progress_callback=tell))
        except MCPError as exc:
            if exc.code == CONNECTION_CLOSED or client is not self._client:
                raise ToolError(f"the connection to the MCP server {self.name} was lost during the call") from exc
            self._wake.set()  # it may be the session that is over: the next listing will tell
            raise ToolError(exc.message) from exc
        except Exception as exc:
            if client is not self._client:
                raise ToolError(f"the connection to the MCP server {self.name} was lost during the call") from exc
            raise


def _innermost(exc: BaseException) -> str:
    """What went wrong, out of the groups that task groups make of it."""
    while isinstance(exc, BaseExceptionGroup) and exc.exceptions:
        exc = exc.exceptions[0]
    text = "it did not answer in time" if isinstance(exc, TimeoutError) else str(exc)
    return text or type(exc).__name__
