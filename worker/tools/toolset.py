"""A set of tools by name: what a run may call, and how a model and `GET /tools` are told of it."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from stagebus.shared.errors import UnknownTools
from stagebus.shared.store.tool_catalog import ToolDescription
from stagebus.worker.tools.tool import Tool


class Toolset:
    """Tools by name. One that a run was given stays as it is, whatever comes and goes meanwhile."""

    def __init__(self, tool_by_name: Mapping[str, Tool]) -> None:
        self._tool_by_name = tool_by_name

    def get(self, name: str) -> Tool:
        """The tool of that name.

        Raises:
            UnknownTools: there is none.
        """
        try:
            return self._tool_by_name[name]
        except KeyError:
            raise UnknownTools([name]) from None

    def find(self, name: str) -> Tool | None:
        """The tool of that name, if there is one."""
        return self._tool_by_name.get(name)

    def check(self, name: str, arguments: str, allowed: Collection[str]) -> str | None:
        """What is wrong with a call, in words for the model; None where it can be carried out.

        Args:
            allowed: the tools that the request offers.
        """
        tool = self.find(name) if name in allowed else None
        return no_such_tool(name, allowed) if tool is None else tool.check(arguments)

    def names(self) -> tuple[str, ...]:
        """All tools, the built-in ones first."""
        return tuple(self._tool_by_name)

    def default_names(self) -> tuple[str, ...]:
        """The tools of a run that names none."""
        return tuple(name for name, tool in self._tool_by_name.items() if not tool.is_on_request)

    def definitions(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """The `tools` of a chat completion request.

        Raises:
            UnknownTools: one of the names is no tool's.
        """
        return [_definition(self.get(name)) for name in names]

    def describe(self) -> list[ToolDescription]:
        """All tools as `GET /tools` shows them."""
        return [
            ToolDescription(**_described(tool), requires_approval=tool.requires_approval)
            for tool in self._tool_by_name.values()
        ]


def no_such_tool(name: str, allowed: Collection[str]) -> str:
    """What a model is told that calls a tool which it was not offered."""
    return f"there is no tool {name[:64]!r} here; there are: {', '.join(sorted(allowed)) or 'none'}"


def _definition(tool: Tool) -> dict[str, Any]:
    strict = {"strict": True} if tool.is_strict else {}
    return {"type": "function", "function": {**_described(tool), **strict}}


def _described(tool: Tool) -> Mapping[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
