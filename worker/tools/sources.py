"""Where tools come from that are no functions of ours: MCP servers, OpenAPI documents.

A source is asked for its tools whenever something may have changed; what a run was given
stays as it is.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from stagebus.worker.tools.call_limiter import CallLimiter
from stagebus.worker.tools.signature import parse_object
from stagebus.worker.tools.tool import PreparedCall
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import ToolReply, encode_result

# A model pays for every token of them in every request.
DESCRIPTION_MAX_BYTES: Final = 8 * 2**10
SCHEMA_MAX_BYTES: Final = 64 * 2**10


def _accept(_arguments: dict[str, Any]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class SourcedTool:
    """A tool as its source describes it.

    Attributes:
        name: unique among all tools of its source; 1 to 64 letters, digits, _ and -.
        parameters: the JSON Schema of its arguments, an object's.
        call: carries out a call; gets the arguments as an object, and the context.
        check: raises BadArguments where the far side would not take them, if that can be known here.
        idempotent: whether the same call may run again when a worker died in it.
        timeout_s: its own limit, or None for that of all tools.
        result_max_bytes: likewise.
        requires_approval: whether a call waits until a person has approved it.
        limiter: how many calls may be at work at once; one for all tools of the source that share a limit.
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
    check: Callable[[dict[str, Any]], None] = _accept


class ToolSource(Protocol):
    """Gives tools, and more or fewer of them as time goes by.

    Attributes:
        name: what the operator called it.
        on_change: called when `tools` would answer differently, and when it gave them for the first time; set by
            who uses the source.
        is_known: whether it ever gave its tools: before that nobody can say what is none of them.
    """

    name: str
    on_change: Callable[[], None]
    is_known: bool

    def tools(self) -> Sequence[SourcedTool]:
        """The tools of now. One whose server is away for a while stays; its calls say so."""

    async def start(self) -> None:
        """Begin; return when the tools are there or are not to be had at the moment. Never raises for that."""

    async def aclose(self) -> None:
        """Let go of connections and processes."""


@dataclass(frozen=True, slots=True)
class SourcedBody:
    """A source's tool as a tool's body."""

    tool: SourcedTool
    result_max_bytes: int

    @property
    def description(self) -> str:
        """As the source has it."""
        return self.tool.description

    @property
    def parameters(self) -> dict[str, Any]:
        """As the source has them."""
        return dict(self.tool.parameters)

    def prepare(self, arguments: str, context: ToolContext) -> PreparedCall:
        """Take a call's arguments; awaiting what this returns asks the far side.

        Raises:
            BadArguments: they are no JSON object, or the source knows that they do not fit.
        """
        parsed = parse_object(self.tool.name, arguments)
        self.tool.check(parsed)
        return partial(self._run, parsed, context)

    async def _run(self, arguments: dict[str, Any], context: ToolContext) -> ToolReply:
        return encode_result(self.tool.name, await self.tool.call(arguments, context), self.result_max_bytes)
