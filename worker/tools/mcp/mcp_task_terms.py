"""Decides which calls of an MCP server run as tasks, and for how long a task is waited for; sans-IO."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from mcp_types import Tool

from stagebus.worker.tools.mcp.mcp_tasks import Task, TaskProtocol
from stagebus.worker.tools.sources_file import McpEntry
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_results import RemoteTask

# A task that the server keeps for a shorter time than this is waited for as long nevertheless.
TTL_MIN_S: Final = 1.0
NEEDS_URL: Final = "it only runs as a task, which needs a server with a url: the tasks of a process end with the worker"


class TaskTerms(NamedTuple):
    """The terms of tasks at one server.

    Attributes:
        wait_s: how long a call that runs as a task may take; the server is asked to keep the task as long.
        protocol: the form of tasks that the server offers; None if it offers none, or has not been reached yet.
    """

    entry: McpEntry
    wait_s: float
    protocol: TaskProtocol | None = None

    @property
    def are_used(self) -> bool:
        """Returns whether calls may become tasks. Those of a process do not, since it ends with the worker."""
        return self.protocol is not None and self.entry.url is not None

    def may_become_task(self, tool: Tool) -> bool:
        """Returns whether a call of the tool may become a task."""
        return self.are_used and (self.protocol is TaskProtocol.EXTENSION or self.must_ask(tool))

    def must_ask(self, tool: Tool) -> bool:
        """Returns whether the client asks for a task, because the server leaves that to clients."""
        if self.protocol is not TaskProtocol.AUGMENTED or not self.are_used:
            return False
        support = _support_of(tool)
        return support == "required" or (support == "optional" and self.entry.takes_task(tool.name))

    def find_impossible(self, tools: Iterable[Tool]) -> dict[str, str]:
        """Returns the tools that cannot be called, and the reason for each."""
        if self.protocol is not TaskProtocol.AUGMENTED or self.are_used:
            return {}
        return {tool.name: NEEDS_URL for tool in tools if _support_of(tool) == "required"}

    def reply_of(self, source: str, task: Task) -> RemoteTask:
        """Returns the task that a call has become.

        Raises:
            ToolError: the task has no id that can be used.
        """
        if not task.task_id:
            raise ToolError("the server answered with a task without a usable id")
        wait_s = self.wait_s if task.ttl_s is None else min(self.wait_s, max(task.ttl_s, TTL_MIN_S))
        return RemoteTask(source=source, task_id=task.task_id, poll_s=task.poll_s, expires_in=wait_s)


def _support_of(tool: Tool) -> str:
    return (tool.execution and tool.execution.task_support) or "forbidden"
