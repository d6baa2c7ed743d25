"""Requests about tasks over the connection to an MCP server: begin a call as a task, look at it, cancel it."""

from typing import Any, Final

from mcp import Client, MCPError
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    TaskMetadata,
)
from pydantic import TypeAdapter

from stagebus.worker.tools.mcp.mcp_messages import SESSION_LOST
from stagebus.worker.tools.mcp.mcp_results import NO_TEXT, raw_reply_of
from stagebus.worker.tools.mcp.mcp_tasks import Task, TaskMethod, TaskParams, TaskRequest, parse_task
from stagebus.worker.tools.sources import TaskLook
from stagebus.worker.tools.tool_results import ToolReply

# The limit for an answer about a task; it is shorter than the time that one worker has for a look.
ANSWER_MAX_S: Final = 20.0
# The server does not have the task, or has no tasks.
_FINAL_REFUSALS: Final = frozenset({INVALID_PARAMS, METHOD_NOT_FOUND})
_LOST: Final = frozenset({CONNECTION_CLOSED, SESSION_LOST})
_ASKS_FOR_INPUT: Final = "this call was stopped: its server asks for further input, which cannot be given; call the tool with all that it needs"
_ANY: Final[TypeAdapter[Any]] = TypeAdapter(dict[str, Any])


async def call_as_task(
    client: Client, tool: str, arguments: dict[str, Any], ttl_s: float, on_progress: ProgressFnT
) -> CallToolResult:
    """Asks a server of revision 2025-11-25 to run a call as a task that it keeps for `ttl_s`. It may run it at once."""
    task = TaskMetadata(ttl=round(ttl_s * 1000))
    request = CallToolRequest(params=CallToolRequestParams(name=tool, arguments=arguments, task=task))
    return await client.session.send_request(request, CallToolResult, progress_callback=on_progress)


async def look_at(client: Client, task_id: str) -> TaskLook:
    """Asks for a task's state, and for its result if it has ended.

    Raises:
        MCPError: the server cannot be asked, or not now.
    """
    try:
        task = parse_task(await _send(client, "tasks/get", task_id))
    except MCPError as exc:
        if exc.code not in _FINAL_REFUSALS:
            raise
        return _failed(f"the server no longer has the task of this call: {exc.message}")
    if task.status in ("completed", "failed"):
        return _result_in(task) or await _fetch_result(client, task_id, task)
    if task.status == "cancelled":
        return _failed(f"the server cancelled the task of this call: {task.message}")
    if task.status == "input_required":
        return _failed(f"{_ASKS_FOR_INPUT}: {task.message}", must_cancel=True)
    return TaskLook(poll_s=task.poll_s)


async def cancel(client: Client, task_id: str) -> None:
    """Cancels a task. One that has ended, or that the server does not have, needs nothing.

    Raises:
        MCPError: the server cannot be asked, or not now.
    """
    try:
        await _send(client, "tasks/cancel", task_id)
    except MCPError as exc:
        if exc.code not in _FINAL_REFUSALS:
            raise


def _result_in(task: Task) -> TaskLook | None:
    """Returns the result that the state of a task contains, as in the newer form."""
    if task.result is not None:
        return TaskLook(raw_reply_of(task.result))
    return None if task.error is None else _failed(task.error or task.message)


async def _fetch_result(client: Client, task_id: str, task: Task) -> TaskLook:
    """Returns the result of a task that has ended: that of its call, or the error that the call would have got."""
    try:
        result = await _send(client, "tasks/result", task_id)
    except MCPError as exc:
        if exc.code in _LOST or (task.status == "completed" and exc.code not in _FINAL_REFUSALS):
            raise
        return _failed(exc.message or task.message)
    reply = raw_reply_of(result)
    if (
        task.status == "failed"
    ):  # servers made with the Python SDK (1.26) then send an empty result, not marked as an error
        reply = ToolReply(reply.content or task.message or NO_TEXT, is_error=True)
    return TaskLook(reply)


async def _send(client: Client, method: TaskMethod, task_id: str) -> dict[str, Any]:
    request = TaskRequest(method=method, params=TaskParams(task_id=task_id))
    answer: dict[str, Any] = await client.session.send_request(request, _ANY, request_read_timeout_seconds=ANSWER_MAX_S)
    return answer


def _failed(message: str, *, must_cancel: bool = False) -> TaskLook:
    return TaskLook(ToolReply(message.removesuffix(": "), is_error=True), must_cancel=must_cancel)
