"""The tools of this worker: the built-in ones, those of `STAGEBUS_TOOLS`, and those of its sources.

STAGEBUS_TOOLS=mytools:book_table,mytools.search:find
"""

import asyncio
import fnmatch
import importlib
import inspect
import logging
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import BadTool
from stagebus.worker.tools.ask_user import ask_user
from stagebus.worker.tools.call_limiter import CallLimiter
from stagebus.worker.tools.daemon_thread_pool import DaemonThreadPool
from stagebus.worker.tools.egress import Egress
from stagebus.worker.tools.function_tool import FunctionBody, ToolOptions, options_of
from stagebus.worker.tools.signature import ToolFunction, read_signature
from stagebus.worker.tools.source_loader import load_sources
from stagebus.worker.tools.sources import SourcedBody, SourcedTool, ToolSource
from stagebus.worker.tools.tool import Tool
from stagebus.worker.tools.tool_results import RESULT_MIN_BYTES
from stagebus.worker.tools.toolset import Toolset
from stagebus.worker.tools.weather import Weather

__all__ = ["Tool", "ToolRegistry"]

logger = logging.getLogger(__name__)

# What OpenAI takes as a function's name, and so everyone.
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# A run whose tools are not there yet waits for so long for a source that never was.
SOURCES_MAX_S: Final = 60.0


class ToolRegistry(Toolset):
    """The tools of now, and what they share: threads, limits, connections.

    Args:
        functions: each becomes a tool.
        settings: the limits.
        weather: whose `get_weather` is among the functions, if it is; closed with the registry.
        sources: give further tools once they are started; closed with the registry.

    Raises:
        BadTool: a function cannot be a tool, or two have one name.
    """

    def __init__(
        self,
        functions: Iterable[ToolFunction],
        settings: Settings,
        *,
        weather: Weather | None = None,
        sources: Iterable[ToolSource] = (),
    ) -> None:
        self._weather = weather
        self._threads = DaemonThreadPool(settings.tool_threads)
        self._settings = settings
        self._sources = tuple(sources)
        self.changed = asyncio.Event()  # set at each change; who waits for the next clears it
        self._next_change = asyncio.Event()  # set at the next change, when another takes its place
        self._functions: dict[str, Tool] = {}
        for function in functions:
            made = self._make(function)
            if made.name in self._functions:
                raise BadTool(f"two tools are called {made.name!r}; give one another name with @tool(name=…)")
            self._functions[made.name] = made
        super().__init__(self._functions)
        never = [p for p in self._find_unknown_approvals() if not any(_may_name(p, source) for source in self._sources)]
        if never:
            raise BadTool(f"STAGEBUS_APPROVALS: {never[0]!r} is no tool; there are: {', '.join(self._functions)}")

    @classmethod
    def from_settings(cls, settings: Settings) -> "ToolRegistry":
        """The built-in tools, and those that the settings name.

        Raises:
            BadTool: one of them cannot be found or used; the message says what to set right.
        """
        egress = Egress.from_settings(settings)
        weather = Weather.from_settings(settings, egress)
        functions = [weather.get_weather, ask_user, *map(_load, settings.tools)]
        return cls(functions, settings, weather=weather, sources=load_sources(settings, egress))

    async def start(self) -> None:
        """Let the sources begin; return when each has given its tools or has failed to for now."""
        for source in self._sources:
            source.on_change = self._refresh
        await asyncio.gather(*(source.start() for source in self._sources))
        self._refresh()
        if unknown := self._find_unknown_approvals():
            logger.warning("STAGEBUS_APPROVALS: there is no tool yet that is called %s", ", ".join(unknown))

    def snapshot(self) -> Toolset:
        """The tools of this moment; a run's attempt keeps to one snapshot."""
        return Toolset(self._tool_by_name)

    async def wait_for(self, names: Collection[str]) -> None:
        """Wait for tools that a source may yet give: one that was not to be had since this worker began."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SOURCES_MAX_S):
                while not (set(names) <= self._tool_by_name.keys() or all(s.is_known for s in self._sources)):
                    await self._next_change.wait()

    async def aclose(self) -> None:
        """Let go of threads and connections. Calls that still run are left to end with the process."""
        await asyncio.gather(*(source.aclose() for source in self._sources))
        self._threads.shutdown()
        if self._weather is not None:
            await self._weather.aclose()

    def _refresh(self) -> None:
        """Ask the sources anew. A new mapping takes the old one's place, so that snapshots stay as they are."""
        tools = dict(self._functions)
        for source in self._sources:
            for sourced in source.tools():
                if sourced.name in tools:
                    logger.warning("%s: there is a tool %r already; this one is left out", source.name, sourced.name)
                else:
                    tools[sourced.name] = self._adopt(sourced)
        self._tool_by_name = tools
        self.changed.set()
        self._next_change.set()
        self._next_change = asyncio.Event()

    def _adopt(self, sourced: SourcedTool) -> Tool:
        max_bytes = sourced.result_max_bytes or self._settings.tool_result_max_bytes
        return Tool(
            name=sourced.name,
            body=SourcedBody(sourced, max_bytes),
            timeout_s=sourced.timeout_s or self._settings.tool_timeout_s,
            result_max_bytes=max_bytes,
            limiter=sourced.limiter,
            idempotent=sourced.idempotent,
            requires_approval=sourced.requires_approval or self._is_gated(sourced.name),
        )

    def _make(self, function: ToolFunction) -> Tool:
        options = options_of(function)
        name = options.name or str(getattr(function, "__name__", type(function).__name__))
        if not _NAME.fullmatch(name):
            raise BadTool(f"tool {name!r}: a name has 1 to 64 letters, digits, _ and -; set one with @tool(name=…)")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise BadTool(f"tool {name!r}: a tool returns its result; a generator cannot be one")
        _check(name, options)
        signature = read_signature(function, name, is_strict=options.strict)
        max_bytes = options.max_result_bytes or self._settings.tool_result_max_bytes
        return Tool(
            name=name,
            body=FunctionBody(name, function, signature, self._threads, max_bytes),
            timeout_s=options.timeout_s or self._settings.tool_timeout_s,
            result_max_bytes=max_bytes,
            limiter=CallLimiter(options.concurrency),
            idempotent=options.idempotent,
            is_strict=options.strict,
            requires_approval=options.requires_approval or self._is_gated(name),
            asks_user=function is ask_user,
            is_on_request=function is ask_user and not self._settings.ask_user,
        )

    def _is_gated(self, name: str) -> bool:
        """Whether the operator wants calls of it approved."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._settings.approvals)

    def _find_unknown_approvals(self) -> list[str]:
        """What the operator wants approved and is no tool: a name that is written wrong would let all calls through."""
        return [pattern for pattern in self._settings.approvals if not fnmatch.filter(self._tool_by_name, pattern)]


def _may_name(pattern: str, source: ToolSource) -> bool:
    """Whether a tool that the source may yet give could be of that name."""
    literal, prefix = re.split(r"[*?[]", pattern, maxsplit=1)[0], f"{source.name}__"
    return literal.startswith(prefix) or (literal != pattern and prefix.startswith(literal))


def _check(name: str, options: ToolOptions) -> None:
    least = {"timeout_s": (options.timeout_s, 0.001), "concurrency": (options.concurrency, 1),
             "max_result_bytes": (options.max_result_bytes, RESULT_MIN_BYTES)}  # fmt: skip
    for option, (value, minimum) in least.items():
        if value is not None and not value >= minimum:
            raise BadTool(f"tool {name!r}: {option} is {value}; it has to be at least {minimum}")


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
