"""The messages of MCP tasks in their two forms; sans-IO.

    revision 2025-11-25: the client asks              extension of 2026-07-28: the server decides
    tools/call {task: {ttl}}                          tools/call
    ◀ {task: {taskId, status, ttl, pollInterval}}     ◀ {resultType: "task", taskId, status, ttlMs, pollIntervalMs}
    tasks/get ◀ {status, …}                           tasks/get ◀ {status, …, result or error}
    tasks/result ◀ the call's result
    tasks/cancel                                      tasks/cancel

Both times are in milliseconds. Values of a form that the protocol does not allow count as absent.
Spec: https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/tasks
Spec: https://modelcontextprotocol.github.io/ext-tasks/specification/2026-07-28/tasks.html
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Final, Literal, NamedTuple

from mcp_types import CallToolResult, Request, RequestParams, ServerCapabilities
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

EXTENSION: Final = "io.modelcontextprotocol/tasks"
# The key of the task in the `_meta` of a result that `plain_created_task` makes.
_RELATED_TASK: Final = "io.modelcontextprotocol/related-task"
TASK_ID_MAX_CHARS: Final = 1024
MESSAGE_MAX_CHARS: Final = 2000
_MS_MAX: Final = 10**15

TaskMethod = Literal["tasks/get", "tasks/result", "tasks/cancel"]


class TaskProtocol(Enum):
    """The form of tasks that a server offers for calls of its tools."""

    AUGMENTED = auto()  # revision 2025-11-25
    EXTENSION = auto()  # 2026-07-28


class TaskParams(RequestParams):
    """The parameters of a request about a task."""

    task_id: str


class TaskRequest(Request[TaskParams, TaskMethod]):
    """A request about a task. Over HTTP the task's id is also in the header `Mcp-Name`, for the server's load balancer."""

    method: TaskMethod
    params: TaskParams
    name_param = "taskId"


class Task(NamedTuple):
    """The state of a task.

    Attributes:
        task_id: empty if the server gave none that can be used.
        ttl_s: how long the server keeps the task from its creation on; None for unlimited.
        poll_s: the interval at which the server wants to be asked, if it says so.
        result: of a `tools/call`, if the state contains it.
        error: the message of the JSON-RPC error that ended the task, if the state contains it.
    """

    task_id: str
    status: str
    message: str
    ttl_s: float | None
    poll_s: float | None
    result: dict[str, Any] | None
    error: str | None


def protocol_of(version: str, capabilities: ServerCapabilities) -> TaskProtocol | None:
    """Returns the form of tasks that a server offers for calls; None if it offers none."""
    if version in MODERN_PROTOCOL_VERSIONS:
        return TaskProtocol.EXTENSION if EXTENSION in (capabilities.extensions or {}) else None
    requests = capabilities.tasks and capabilities.tasks.requests
    return TaskProtocol.AUGMENTED if requests and requests.tools and requests.tools.call is not None else None


def plain_capability(capabilities: Any) -> dict[str, Any]:
    """Returns the capability of tasks for calls in the protocol's form; empty if the server of 2025-11-25 has none."""
    match capabilities:
        # Servers made with the Python SDK (1.26) omit `call`, which is the only request about tools that may be a task.
        case {"tasks": {"requests": {"tools": dict()}}}:
            return {"tasks": {"requests": {"tools": {"call": {}}}}}
    return {}


def plain_support(execution: Any) -> dict[str, Any]:
    """Returns a tool's `execution` if its calls may be tasks; otherwise empty."""
    match execution:
        case {"taskSupport": "optional" | "required" as support}:
            return {"execution": {"taskSupport": support}}
    return {}


def created_task(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the task that is the result of a `tools/call`; None for any other result."""
    if result.get("resultType") == "task":
        return dict(result)
    task = result.get("task")
    return task if isinstance(task, dict) and "content" not in result else None


def plain_created_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a created task as a result of the form that every version of the SDK accepts; see `task_of`."""
    return {"resultType": "complete", "content": [], "isError": False, "_meta": {_RELATED_TASK: dict(task)}}


def task_of(result: CallToolResult) -> Task | None:
    """Returns the task that the call has become; the inverse of `plain_created_task`."""
    task = (result.meta or {}).get(_RELATED_TASK)
    return parse_task(task) if isinstance(task, dict) else None


def parse_task(raw: Mapping[str, Any]) -> Task:
    """Reads a task in either form."""
    task_id, message, error = raw.get("taskId"), raw.get("statusMessage"), raw.get("error")
    is_usable = isinstance(task_id, str) and len(task_id) <= TASK_ID_MAX_CHARS
    result = raw.get("result")
    return Task(
        task_id=str(task_id) if is_usable else "",
        status=str(raw.get("status")),
        message=message[:MESSAGE_MAX_CHARS] if isinstance(message, str) else "",
        ttl_s=_seconds(raw, "ttlMs", "ttl"),
        poll_s=_seconds(raw, "pollIntervalMs", "pollInterval"),
        result=result if isinstance(result, dict) else None,
        error=str(error.get("message") or "")[:MESSAGE_MAX_CHARS] if isinstance(error, dict) else None,
    )


def _seconds(raw: Mapping[str, Any], *names: str) -> float | None:
    for name in names:
        value = raw.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return min(value, _MS_MAX) / 1000  # a larger integer might be no float
    return None
