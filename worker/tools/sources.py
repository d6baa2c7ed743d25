"""Where tools come from that are no functions of ours: MCP servers, OpenAPI documents.

A source is asked for its tools whenever something may have changed; what a run was given
stays as it is.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from worker.tools.functions import parse_object


@dataclass(frozen=True, slots=True)
class SourcedTool:
    """A tool as its source describes it.

    Attributes:
        name: unique among all tools of its source; 1 to 64 letters, digits, _ and -.
        parameters: the JSON Schema of its arguments, an object's.
        call: carries out a call; gets the arguments as an object, which it checks by itself.
        idempotent: whether the same call may run again when a worker died in it.
        timeout_s: its own limit, or None for that of all tools.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[[dict[str, Any]], Awaitable[Any]]
    idempotent: bool = False
    timeout_s: float | None = None


class ToolSource(Protocol):
    """Gives tools, and more or fewer of them as time goes by.

    Attributes:
        name: what the operator called it.
        on_change: called when `tools` would answer differently; set by who uses the source.
    """

    name: str
    on_change: Callable[[], None]

    def tools(self) -> Sequence[SourcedTool]:
        """The tools of now. One whose server is away for a while stays; its calls say so."""

    async def start(self) -> None:
        """Begin; return when the tools are there or are not to be had at the moment. Never raises for that."""

    async def aclose(self) -> None:
        """Let go of connections and processes."""


class RemoteSignature(NamedTuple):
    """Stands in for a function's signature: any object will do, and the far side checks it."""

    description: str
    parameters: dict[str, Any]

    def bind(self, tool_name: str, arguments: str) -> tuple[list[Any], dict[str, Any]]:
        """The object out of a call's JSON, as the one argument.

        Raises:
            BadArguments: they are no JSON object.
        """
        return [parse_object(tool_name, arguments)], {}
