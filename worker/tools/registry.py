"""The tools of a worker: the built-in ones, those of `STAGEBUS_TOOLS`, and those of its sources.

STAGEBUS_TOOLS=mytools:book_table,mytools.search:find
"""

import asyncio
import fnmatch
import importlib
import inspect
import logging
import re
from collections.abc import Collection, Iterable, Mapping
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
from stagebus.worker.tools.sources import SourcedBody, SourcedTool, TaskSource, ToolSource
from stagebus.worker.tools.tool import Tool
from stagebus.worker.tools.tool_results import RESULT_MIN_BYTES
from stagebus.worker.tools.toolset import Toolset
from stagebus.worker.tools.weather import Weather

__all__ = ["Tool", "ToolRegistry"]

logger = logging.getLogger(__name__)

# Modules of the built-in tools, the demo's among them.
_OWN_MODULES: Final = "stagebus.worker."
# OpenAI accepts these function names, so every provider does.
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# A run that names missing tools waits this long for sources that have not connected since the worker started.
SOURCES_MAX_S: Final = 60.0


class ToolRegistry(Toolset):
    """The current tools and what they share: threads, limits and connections.

    Args:
        functions: each becomes a tool; a later one replaces a built-in one of its name.
        settings: the default limits.
        weather: the owner of `get_weather` if that is among the functions; closed with the registry.
        sources: provide further tools once they are started; closed with the registry.

    Raises:
        BadTool: a function cannot be a tool, or two of the operator's functions have the same name.
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
        self.changed = asyncio.Event()  # set at each change; the catalog publisher clears it
        self._next_change = asyncio.Event()  # set at the next change, then replaced by a new one
        self._functions: dict[str, Tool] = {}
        for function in functions:
            self._add_function(function)
        super().__init__(self._functions)
        wrong = [
            p for p in self._find_unknown_approvals() if not any(_may_match(p, source) for source in self._sources)
        ]
        if wrong:
            raise BadTool(f"STAGEBUS_APPROVALS: {wrong[0]!r} is no tool; available tools: {', '.join(self._functions)}")

    @classmethod
    def from_settings(cls, settings: Settings) -> "ToolRegistry":
        """Creates the registry of the built-in tools and those named in the settings.

        Raises:
            BadTool: a tool cannot be found or used; the message says what to correct.
        """
        egress = Egress.from_settings(settings)
        weather = Weather.from_settings(settings, egress)
        functions = [weather.get_weather, ask_user, *map(_load, settings.tools)]
        return cls(functions, settings, weather=weather, sources=load_sources(settings, egress))

    async def start(self) -> None:
        """Starts the sources. Returns when each has listed its tools or its first try has failed."""
        for source in self._sources:
            source.on_change = self._refresh
        await asyncio.gather(*(source.start() for source in self._sources))
        self._refresh()
        if unknown := self._find_unknown_approvals():
            logger.warning("STAGEBUS_APPROVALS: no tool is called %s yet", ", ".join(unknown))

    def snapshot(self, client_tools: Mapping[str, Tool] | None = None) -> Toolset:
        """Returns the current tools and those that a run's request defines; an attempt uses one snapshot throughout."""
        return Toolset({**self._tool_by_name, **client_tools} if client_tools else self._tool_by_name)

    async def wait_for(self, names: Collection[str]) -> None:
        """Waits for tools of these names while a source has not listed its tools since the worker started."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SOURCES_MAX_S):
                while not (set(names) <= self._tool_by_name.keys() or all(s.is_known for s in self._sources)):
                    await self._next_change.wait()

    def task_sources(self) -> list[TaskSource]:
        """Returns the sources whose servers may run calls as tasks."""
        return [source for source in self._sources if isinstance(source, TaskSource)]

    async def aclose(self) -> None:
        """Closes threads and connections. Calls that still run end with the process."""
        await asyncio.gather(*(source.aclose() for source in self._sources))
        self._threads.shutdown()
        if self._weather is not None:
            await self._weather.aclose()

    def _add_function(self, function: ToolFunction) -> None:
        added = self._make(function)
        existing = self._functions.get(added.name)
        if existing is not None:
            if not _is_built_in(existing):
                raise BadTool(f"two tools are called {added.name!r}; rename one of them with @tool(name=…)")
            where = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', added.name)}"
            logger.info("%s replaces the built-in tool %r", where, added.name)
        self._functions[added.name] = added

    def _refresh(self) -> None:
        """Collects the tools of all sources. Replaces the mapping, so that snapshots do not change."""
        tools = dict(self._functions)
        for source in self._sources:
            for sourced in source.tools():
                if sourced.name in tools:
                    logger.warning("%s: tool %r is left out: another tool has this name", source.name, sourced.name)
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
            is_deferred=sourced.may_be_task,
            may_be_task=sourced.may_be_task,
        )

    def _make(self, function: ToolFunction) -> Tool:
        options = options_of(function)
        name = options.name or str(getattr(function, "__name__", type(function).__name__))
        if not _NAME.fullmatch(name):
            raise BadTool(f"tool {name!r}: a name has 1 to 64 letters, digits, _ and -; set one with @tool(name=…)")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise BadTool(f"tool {name!r}: a generator cannot be a tool; return the result")
        _check(name, options)
        if options.deferred and self._settings.auth != "open" and not self._settings.secrets:
            raise BadTool(f"tool {name!r}: deferred=True needs STAGEBUS_SECRET, the same as for the gateways")
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
            is_deferred=options.deferred,
            asks_user=function is ask_user,
            is_on_request=function is ask_user and not self._settings.ask_user,
        )

    def _is_gated(self, name: str) -> bool:
        """Returns whether `STAGEBUS_APPROVALS` matches the tool's name."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._settings.approvals)

    def _find_unknown_approvals(self) -> list[str]:
        """Returns the entries of `STAGEBUS_APPROVALS` that match no tool.

        A misspelt name would let all calls run without an approval.
        """
        return [pattern for pattern in self._settings.approvals if not fnmatch.filter(self._tool_by_name, pattern)]


def _is_built_in(tool: Tool) -> bool:
    body = tool.body
    return isinstance(body, FunctionBody) and str(getattr(body.function, "__module__", "")).startswith(_OWN_MODULES)


def _may_match(pattern: str, source: ToolSource) -> bool:
    """Returns whether the pattern could match a tool that the source has not listed yet."""
    literal, prefix = re.split(r"[*?[]", pattern, maxsplit=1)[0], f"{source.name}__"
    return literal.startswith(prefix) or (literal != pattern and prefix.startswith(literal))


def _check(name: str, options: ToolOptions) -> None:
    least = {"timeout_s": (options.timeout_s, 0.001), "concurrency": (options.concurrency, 1),
             "max_result_bytes": (options.max_result_bytes, RESULT_MIN_BYTES)}  # fmt: skip
    for option, (value, minimum) in least.items():
        if value is not None and not value >= minimum:
            raise BadTool(f"tool {name!r}: {option} is {value}; it must be at least {minimum}")


def _load(path: str) -> ToolFunction:
    """Imports the function named by `module:function`."""
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise BadTool(f"STAGEBUS_TOOLS: {path!r} is not of the form module:function")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as exc:
        # The import of a user's module can raise any exception.
        raise BadTool(f"STAGEBUS_TOOLS: {module_name!r} cannot be imported: {type(exc).__name__}: {exc}") from exc
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise BadTool(f"STAGEBUS_TOOLS: {module_name!r} has no function {attribute!r}")
    return found
