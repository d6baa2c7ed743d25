"""The interface of tool sources: MCP servers and OpenAPI documents.

The registry reads a source's tools at each change. The tools of an attempt that already runs do not change.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

from stagebus.worker.tools.call_limiter import CallLimiter
from stagebus.worker.tools.signature import parse_object
from stagebus.worker.tools.tool import PreparedCall
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import Deferred, ToolReply, encode_result


async def _accept(_arguments: dict[str, Any]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class SourcedTool:
    """A tool of a source.

    Attributes:
        name: unique among the tools of the source; 1 to 64 letters, digits, _ and -.
        parameters: the JSON Schema of the arguments, of type object.
        call: executes a call; gets the arguments as an object, and the context.
        check: raises BadArguments if the server is known to reject the arguments.
        idempotent: whether a call may run again if a worker died during it.
        timeout_s: time limit of a call, or None for the general one.
        result_max_bytes: limit of a result, or None for the general one.
        requires_approval: whether a call waits until a person has approved it.
        limiter: limits concurrent calls; tools may share one.
        may_be_task: whether `call` may return a `RemoteTask`.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[[dict[str, Any], ToolContext], Awaitable[Any]]
    idempotent: bool = False
    timeout_s: float | None = None
    result_max_bytes: int | None = None
    requires_approval: bool = False
    limiter: CallLimiter = field(default_factory=CallLimiter)
    check: Callable[[dict[str, Any]], Awaitable[None]] = _accept
    may_be_task: bool = False


class ToolSource(Protocol):
    """A source of tools, which may change over time.

    Attributes:
        name: the name in the tools file.
        on_change: set by the registry; called when the result of `tools` changes, and after the first listing.
        is_known: whether the source has listed its tools at least once.
    """

    name: str
    on_change: Callable[[], None]
    is_known: bool

    def tools(self) -> Sequence[SourcedTool]:
        """Returns the current tools. If the server is unreachable, the tools stay and their calls fail with a message."""

    async def start(self) -> None:
        """Starts the source. Returns when the tools are listed or the first try has failed; does not raise for that."""

    async def aclose(self) -> None:
        """Closes connections and processes."""


class TaskLook(NamedTuple):
    """The state of a task of a server.

    Attributes:
        reply: the call's result; None while the task works.
        poll_s: the interval at which the server wants to be asked, if it says so.
        must_cancel: the task has not ended, but its result is of no use any more.
    """

    reply: ToolReply | None = None
    poll_s: float | None = None
    must_cancel: bool = False


@runtime_checkable
class TaskSource(Protocol):
    """A tool source whose server may run calls as tasks.

    Attributes:
        offers_tasks: whether the server does so, as far as is known.
        result_max_bytes: limit of a result, or None for the general one.
    """

    name: str
    offers_tasks: bool
    result_max_bytes: int | None

    async def look_at_task(self, task_id: str) -> TaskLook:
        """Asks the server for the state of a task.

        Raises:
            ToolError: it cannot be asked, or not now.
        """

    async def cancel_task(self, task_id: str) -> None:
        """Cancels a task at the server.

        Raises:
            ToolError: it cannot be asked, or not now.
        """


@dataclass(frozen=True, slots=True)
class SourcedBody:
    """The body of a tool that a source provides."""

    tool: SourcedTool
    result_max_bytes: int

    @property
    def description(self) -> str:
        """The description of the source."""
        return self.tool.description

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema of the source."""
        return dict(self.tool.parameters)

    async def prepare(self, arguments: str, context: ToolContext) -> PreparedCall:
        """Checks the arguments of a call. The returned callable sends the call to the source.

        Raises:
            BadArguments: the arguments are not a JSON object, or the source rejects them.
        """
        parsed = parse_object(self.tool.name, arguments)
        await self.tool.check(parsed)
        return partial(self._run, parsed, context)

    async def _run(self, arguments: dict[str, Any], context: ToolContext) -> ToolReply | Deferred:
        return encode_result(self.tool.name, await self.tool.call(arguments, context), self.result_max_bytes)
