"""A set of tools by name, and their descriptions for the model and for `GET /tools`."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from stagebus.shared.errors import UnknownTools
from stagebus.shared.store.tool_catalog import ToolDescription
from stagebus.worker.tools.tool import Tool


class Toolset:
    """An immutable set of tools by name."""

    def __init__(self, tool_by_name: Mapping[str, Tool]) -> None:
        self._tool_by_name = tool_by_name

    def get(self, name: str) -> Tool:
        """Returns the tool of this name.

        Raises:
            UnknownTools: there is no such tool.
        """
        try:
            return self._tool_by_name[name]
        except KeyError:
            raise UnknownTools([name]) from None

    def find(self, name: str) -> Tool | None:
        """Returns the tool of this name, or None."""
        return self._tool_by_name.get(name)

    async def check(self, name: str, arguments: str, allowed: Collection[str]) -> str | None:
        """Returns what is wrong with a call, as a message for the model; None if it can be executed.

        Args:
            allowed: the tools that the request offers.
        """
        tool = self.find(name) if name in allowed else None
        return no_such_tool(name, allowed) if tool is None else await tool.check(arguments)

    def names(self) -> tuple[str, ...]:
        """Returns the names of all tools, the built-in ones first."""
        return tuple(self._tool_by_name)

    def default_names(self) -> tuple[str, ...]:
        """Returns the tools of a run that names none."""
        return tuple(name for name, tool in self._tool_by_name.items() if not tool.is_on_request)

    def definitions(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Returns the `tools` of a chat completion request.

        Raises:
            UnknownTools: there is no tool of one of the names.
        """
        return [_definition(self.get(name)) for name in names]

    def describe(self) -> list[ToolDescription]:
        """Returns the descriptions of all tools for `GET /tools`."""
        return [
            ToolDescription(
                **_described(tool),
                requires_approval=tool.requires_approval,
                # Gateways keep such tools from older workers. A tool whose source has tasks is there, too, and waits.
                deferred=tool.is_deferred and not tool.may_be_task,
            )
            for tool in self._tool_by_name.values()
        ]


def no_such_tool(name: str, allowed: Collection[str]) -> str:
    """Returns the message for a model that called a tool which it was not offered."""
    return f"there is no tool {name[:64]!r}; available tools: {', '.join(sorted(allowed)) or 'none'}"


def _definition(tool: Tool) -> dict[str, Any]:
    strict = {"strict": True} if tool.is_strict else {}
    return {"type": "function", "function": {**_described(tool), **strict}}


def _described(tool: Tool) -> Mapping[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
