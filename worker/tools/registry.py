"""The tools of this worker: the built-in ones, and those of `STAGEBUS_TOOLS`.

STAGEBUS_TOOLS=mytools:book_table,mytools.search:find
"""

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from shared.catalog import ToolDescription
from shared.errors import BadTool, UnknownTools
from shared.settings import Settings
from worker.tools.functions import ToolFunction, options_of, read_signature
from worker.tools.threads import ToolThreads
from worker.tools.tool import Tool, ToolLimits
from worker.tools.weather import Weather

__all__ = ["Tool", "ToolRegistry"]

# What OpenAI takes as a function's name, and so everyone.
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class ToolRegistry:
    """Tools by name, and what they share: threads, limits, connections.

    Args:
        functions: each becomes a tool.
        settings: the limits.
        weather: whose `get_weather` is among the functions, if it is; closed with the registry.

    Raises:
        BadTool: a function cannot be a tool, or two have one name.
    """

    def __init__(
        self, functions: Iterable[ToolFunction], settings: Settings, *, weather: Weather | None = None
    ) -> None:
        self._weather = weather
        self._threads = ToolThreads(settings.tool_threads)
        self._limits = ToolLimits(settings.tool_timeout_s, settings.tool_result_max_bytes)
        self._tool_by_name: dict[str, Tool] = {}
        for function in functions:
            made = self._make(function)
            if made.name in self._tool_by_name:
                raise BadTool(f"two tools are called {made.name!r}; give one another name with @tool(name=…)")
            self._tool_by_name[made.name] = made

    @classmethod
    def from_settings(cls, settings: Settings) -> "ToolRegistry":
        """The built-in tools, and those that the settings name.

        Raises:
            BadTool: one of them cannot be found or used; the message says what to set right.
        """
        weather = Weather.from_settings(settings)
        return cls([weather.get_weather, *map(_load, settings.tools)], settings, weather=weather)

    def get(self, name: str) -> Tool:
        """The tool of that name.

        Raises:
            UnknownTools: there is none.
        """
        try:
            return self._tool_by_name[name]
        except KeyError:
            raise UnknownTools([name]) from None

    def names(self) -> tuple[str, ...]:
        """All tools, the built-in ones first."""
        return tuple(self._tool_by_name)

    def definitions(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """The `tools` of a chat completion request.

        Raises:
            UnknownTools: one of the names is no tool's.
        """
        return [{"type": "function", "function": _described(self.get(name))} for name in names]

    def describe(self) -> list[ToolDescription]:
        """All tools as `GET /tools` shows them."""
        return [ToolDescription(**_described(tool)) for tool in self._tool_by_name.values()]

    async def aclose(self) -> None:
        """Let go of threads and connections. Calls that still run are left to end with the process."""
        self._threads.shutdown()
        if self._weather is not None:
            await self._weather.aclose()

    def _make(self, function: ToolFunction) -> Tool:
        options = options_of(function)
        name = options.name or str(getattr(function, "__name__", type(function).__name__))
        if not _NAME.fullmatch(name):
            raise BadTool(f"tool {name!r}: a name has 1 to 64 letters, digits, _ and -; set one with @tool(name=…)")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise BadTool(f"tool {name!r}: a tool returns its result; a generator cannot be one")
        return Tool(
            name=name,
            function=function,
            signature=read_signature(function, name),
            threads=self._threads,
            limits=self._limits,
            idempotent=options.idempotent,
            timeout_s=options.timeout_s,
        )


def _described(tool: Tool) -> Mapping[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def _load(path: str) -> ToolFunction:
    """The function that `module:function` names."""
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise BadTool(f"STAGEBUS_TOOLS: {path!r} is not of the form module:function")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as exc:
        # A stranger's module may raise anything while it is imported.
        raise BadTool(f"STAGEBUS_TOOLS: {module_name!r} cannot be imported: {type(exc).__name__}: {exc}") from exc
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise BadTool(f"STAGEBUS_TOOLS: {module_name!r} has no function {attribute!r}")
    return found
