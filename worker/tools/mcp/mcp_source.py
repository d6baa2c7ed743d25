"""The tools of one MCP server, over one connection that all runs of the worker share.

    start ──▶ connect ──▶ list ──▶ offer ──▶ wait: list changed, half a minute over, or the end
                 ▲                   ▲                  │                      │
                 │                   └──────────────────┘                      │
                 └──────────────────────── backoff ◀───────────────────────────┘

One task opens and closes the connection, since the SDK's scopes must be left by the task that entered them. Runs only
send requests over it. Without a connection, the tools of the last listing stay on offer: calls wait for the first try to
connect again, and fail with a message if it fails. A call that a lost connection or session cut is made again, once, if
the server refused it or it is idempotent.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar

from mcp import Client, MCPError
from mcp.client.extension import advertise
from mcp.client.subscriptions import SubscriptionLost
from mcp_types import CONNECTION_CLOSED, CallToolResult, Tool, ToolListChangedNotification
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.worker.tools.call_limiter import CallLimiter
from stagebus.worker.tools.egress import Egress
from stagebus.worker.tools.mcp.mcp_listing import is_idempotent
from stagebus.worker.tools.mcp.mcp_messages import SESSION_LOST, CallLost, ServerMessages, is_end_of_session
from stagebus.worker.tools.mcp.mcp_pages import TOOLS_MAX, list_tools
from stagebus.worker.tools.mcp.mcp_results import reply_of
from stagebus.worker.tools.mcp.mcp_task_calls import call_as_task, cancel, look_at
from stagebus.worker.tools.mcp.mcp_task_terms import TaskTerms
from stagebus.worker.tools.mcp.mcp_tasks import EXTENSION, protocol_of, task_of
from stagebus.worker.tools.mcp.mcp_transport import open_transport
from stagebus.worker.tools.sources import SourcedTool, TaskLook
from stagebus.worker.tools.sources_file import McpEntry
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_names import name_tools
from stagebus.worker.tools.tool_results import RemoteTask, ToolReply

T = TypeVar("T")

logger = logging.getLogger(__name__)

# A worker waits this long for its servers before it takes runs without their tools.
START_MAX_S: Final = 10.0
# The interval of tool listings: not every server reports changes, and a listing detects a dead connection.
LIST_S: Final = 30.0
# The least interval, however often a server reports changes.
LIST_MIN_S: Final = 0.5
BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
LEFT_OUT_SHOWN_MAX: Final = 20
# A call waits this long for a try to connect that is under way.
RECONNECT_MAX_S: Final = 10.0
# Other calls of an ended session get this time to learn from the server that it refuses them.
SETTLE_MAX_S: Final = 1.0
# A process gets 2 s to end by itself, 2 s after SIGTERM, and 2 s after SIGKILL.
STOP_MAX_S: Final = 8.0


class McpSource:
    """One MCP server and its tools."""

    def __init__(
        self, name: str, entry: McpEntry, egress: Egress, schema_max_bytes: int, task_wait_s: float = 86400.0
    ) -> None:
        """`task_wait_s`: how long a call that runs as a task may take if the entry does not say."""
        self.name = name
        self.on_change: Callable[[], None] = lambda: None
        self.is_known = False
        self.result_max_bytes = entry.max_result_bytes
        self._entry = entry
        self._egress = egress
        self._schema_max_bytes = schema_max_bytes
        self._terms = TaskTerms(entry, entry.task_timeout_s or task_wait_s)
        self._limiter = CallLimiter(entry.concurrency)
        self._tools: list[SourcedTool] = []
        self._found: tuple[object, ...] = ()  # all of the last listing
        self._client: Client | None = None
        self._connection_task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()  # cleared at the loss of a connection, set when the next try has ended
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()  # set at a change, at the end of the connection and at a stop
        self._lost = asyncio.Event()  # set at the end of the connection and at a stop
        self._is_usable = False  # whether the connection of this try has listed its tools
        self._is_session_lost = False
        self._calls = 0  # under way
        self._idle = asyncio.Event()  # set when no call is under way

    def tools(self) -> list[SourcedTool]:
        """Returns the tools of the last listing."""
        return self._tools

    async def start(self) -> None:
        """Starts to connect, and waits up to `START_MAX_S` for the first try."""
        self._start_connection_task(None)
        with suppress(TimeoutError):
            async with asyncio.timeout(START_MAX_S):
                await self._tried.wait()

    async def aclose(self) -> None:
        """Closes the connection and ends the server's process."""
        self._stopping.set()
        self._lost.set()
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
            self._lost.clear()
            self._is_usable = self._is_session_lost = False
            try:
                await self._use_connection()
                reason = "the server closed the connection"
            except (Exception, BaseExceptionGroup) as exc:  # noqa: BLE001 - the server, its process or the SDK may raise anything
                reason = _innermost(exc)
            finally:
                self._client = None
                if not self._is_usable:
                    self._tried.set()
            if self._is_session_lost and self._is_usable:
                reason = "the server ended the session"
                if time.monotonic() - started > BACKOFF_S:
                    logger.info("MCP server %s: %s; starting a new one", self.name, reason)
                    continue
            if time.monotonic() - started > BACKOFF_MAX_S:
                backoff_s = BACKOFF_S
            if not self._stopping.is_set():
                logger.warning("MCP server %s: %s; next try in %.1f s", self.name, reason, backoff_s)
                with suppress(TimeoutError):
                    async with asyncio.timeout(backoff_s * (0.5 + random.random() / 2)):  # noqa: S311 - jitter
                        await self._stopping.wait()
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _use_connection(self) -> None:
        """Connects and keeps the tools up to date. Returns when the connection or the worker ends."""
        messages = ServerMessages(self._schema_max_bytes)
        async with self._connect(messages) as client:
            self._tried.set()
            logger.info("MCP server %s: connected, %d tools", self.name, len(self._tools))
            listening = asyncio.create_task(self._listen(client))
            try:
                await self._refresh_until_lost(client, messages)
            except MCPError as exc:
                if exc.code != SESSION_LOST:
                    raise
                self._is_session_lost = True
            finally:
                self._on_lost()
                if self._is_session_lost and self._calls:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(SETTLE_MAX_S):
                            await self._idle.wait()
                listening.cancel()  # not awaited: on a broken connection it might never end

    @asynccontextmanager
    async def _connect(self, messages: ServerMessages) -> AsyncIterator[Client]:
        transport = open_transport(self.name, self._entry, self._egress, messages, self._on_lost)
        extensions = [advertise(EXTENSION)] if self._entry.url and self._entry.tasks else None
        client = Client(transport, message_handler=self._on_message, cache=None, extensions=extensions)
        async with asyncio.timeout(self._entry.connect_timeout_s) as connecting:
            async with client:
                await self._list(client, messages)
                self._client = client
                self._is_usable = True
                connecting.reschedule(None)
                yield client

    async def _refresh_until_lost(self, client: Client, messages: ServerMessages) -> None:
        while not self._lost.is_set():
            earliest = time.monotonic() + LIST_MIN_S
            with suppress(TimeoutError):
                async with asyncio.timeout(LIST_S):
                    await self._wake.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(earliest - time.monotonic()):
                    await self._lost.wait()
            self._wake.clear()  # before the listing, so that a change during it causes another one
            if not self._lost.is_set():
                async with asyncio.timeout(self._entry.connect_timeout_s):
                    await self._list(client, messages)

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
        self._lost.set()
        if self._is_usable:
            self._tried.clear()
        self._wake.set()

    async def _list(self, client: Client, messages: ServerMessages) -> None:
        listed, names = await list_tools(client, self.name, self._entry, warns=not self.is_known)
        terms = self._terms._replace(protocol=protocol_of(client.protocol_version, client.server_capabilities))
        left_out = messages.left_out | terms.find_impossible(listed)
        listed = [tool for tool in listed if tool.name not in left_out]
        names |= left_out.keys()
        found = (listed, names, left_out, terms)
        if found != self._found:
            self.is_known, self._found, self._terms = True, found, terms
            for name, reason in islice(left_out.items(), LEFT_OUT_SHOWN_MAX):
                logger.warning("MCP server %s: tool %s is left out: %s", self.name, name, reason)
            if len(left_out) > LEFT_OUT_SHOWN_MAX:
                logger.warning("MCP server %s: %d tools are left out", self.name, len(left_out))
            if len(listed) == TOOLS_MAX:
                logger.warning("MCP server %s: at most %d tools are offered; others are left out", self.name, TOOLS_MAX)
            self._tools = self._offer(listed, names)
            self.on_change()

    def _offer(self, listed: list[Tool], names: set[str]) -> list[SourcedTool]:
        tool_by_name = {tool.name: tool for tool in listed}
        entry = self._entry
        if names and (unguarded := entry.unknown(entry.requires_approval, names)):
            # A tool that needs an approval has another name than the operator wrote, and would run without one.
            logger.error(
                "MCP server %s: no tool is offered, since it has no tool %s, which requires_approval names",
                self.name, ", ".join(unguarded),
            )  # fmt: skip
            return []
        if names and (unknown := entry.unknown([*(entry.idempotent or []), *entry.tasks], names)):
            logger.warning("MCP server %s has no tool %s", self.name, ", ".join(unknown))
        return [
            SourcedTool(
                name=offered,
                description=tool_by_name[name].description or "",
                parameters=tool_by_name[name].input_schema,
                call=partial(self._call, tool_by_name[name]),
                idempotent=self._may_repeat(tool_by_name[name]),
                timeout_s=entry.timeout_s,
                result_max_bytes=entry.max_result_bytes,
                requires_approval=entry.needs_approval(name),
                limiter=self._limiter,
                may_be_task=self._terms.may_become_task(tool_by_name[name]),
            )
            for name, offered in name_tools(self.name, tool_by_name).items()
        ]

    def _may_repeat(self, tool: Tool) -> bool:
        return self._entry.may_repeat(tool.name, otherwise=is_idempotent(tool))

    # --- tasks ---------------------------------------------------------------

    @property
    def offers_tasks(self) -> bool:
        """Returns whether the server runs calls as tasks."""
        return self._terms.are_used

    async def look_at_task(self, task_id: str) -> TaskLook:
        """Asks the server for the state of a task."""
        return await self._ask_about(partial(look_at, task_id=task_id))

    async def cancel_task(self, task_id: str) -> None:
        """Cancels a task at the server."""
        await self._ask_about(partial(cancel, task_id=task_id))

    async def _ask_about(self, ask: Callable[[Client], Awaitable[T]]) -> T:
        """Sends a request that may be repeated; over a new connection or session if that of the first one is lost."""
        try:
            with suppress(CallLost):
                return await self._request(ask)
            return await self._request(ask)
        except CallLost as exc:
            raise ToolError(str(exc)) from exc

    # --- calls (in the tasks of runs) ----------------------------------------

    async def _call(self, tool: Tool, arguments: dict[str, Any], context: ToolContext) -> ToolReply | RemoteTask:
        try:
            try:
                return await self._call_once(tool, arguments, context)
            except CallLost as exc:
                if not (exc.is_refused or self._may_repeat(tool)):
                    raise
                return await self._call_once(tool, arguments, context)
        except CallLost as exc:
            raise ToolError(str(exc)) from exc

    async def _call_once(self, tool: Tool, arguments: dict[str, Any], context: ToolContext) -> ToolReply | RemoteTask:
        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            context.progress(message or "", progress / total if total else None)

        async def call(client: Client) -> CallToolResult:
            if self._terms.must_ask(tool):
                return await call_as_task(client, tool.name, arguments, self._terms.wait_s, on_progress)
            return await client.call_tool(tool.name, arguments, progress_callback=on_progress)

        result = await self._request(call)
        task = task_of(result)
        return reply_of(result) if task is None else self._terms.reply_of(self.name, task)

    async def _request(self, ask: Callable[[Client], Awaitable[T]]) -> T:
        """Sends a request over the connection.

        Raises:
            ToolError: there is no connection, or the server's error.
            CallLost: the connection or the session ended.
        """
        client = await self._connected()
        lost = f"the connection to the MCP server {self.name} was lost during the call"
        self._calls += 1
        self._idle.clear()
        try:
            return await ask(client)
        except MCPError as exc:
            if exc.code == CONNECTION_CLOSED:
                raise CallLost(lost) from exc
            if exc.code == SESSION_LOST or (self._entry.url and is_end_of_session(exc.message)):
                if client is self._client:
                    self._is_session_lost = True
                    self._on_lost()
                raise CallLost(exc.message, is_refused=exc.code == SESSION_LOST) from exc
            self._wake.set()  # the session may have ended: a listing detects it
            raise ToolError(exc.message or f"the server answered with error {exc.code}") from exc
        except Exception as exc:
            if client is not self._client:
                raise CallLost(lost) from exc
            raise
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _connected(self) -> Client:
        """Returns the connected client. Waits for a try to connect that is under way.

        Raises:
            ToolError: there is no connection.
        """
        if self._client is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(RECONNECT_MAX_S):
                    await self._tried.wait()
        if self._client is None:
            raise ToolError(f"the MCP server {self.name} is not connected at the moment; try again later")
        return self._client


def _innermost(exc: BaseException) -> str:
    """Returns the message of the first exception inside nested groups."""
    while isinstance(exc, BaseExceptionGroup) and exc.exceptions:
        exc = exc.exceptions[0]
    text = "the server did not answer in time" if isinstance(exc, TimeoutError) else str(exc)
    return text or type(exc).__name__
