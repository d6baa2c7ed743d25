"""Tools made from typed Python functions, and the decorator `tool` for their options.

    @tool(timeout_s=60, idempotent=False)
    async def book_table(restaurant: str, guests: Annotated[int, Field(ge=1)] = 2) -> str:
        ...

The decorator is only needed for options; any function with type hints can be a tool.
"""

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from stagebus.worker.tools.call_limiter import ThreadStillRunning
from stagebus.worker.tools.signature import Signature, ToolFunction
from stagebus.worker.tools.tool import PreparedCall
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import Deferred, ToolReply, encode_result

F = TypeVar("F", bound=ToolFunction)

_OPTIONS: Final = "__stagebus_tool__"


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """The options of a tool.

    Attributes:
        name: default: the name of the function.
        timeout_s: default: `tool_timeout_s`.
        idempotent: whether a call may run again if a worker died during it.
        concurrency: most concurrent calls in one worker; default: no limit.
        max_result_bytes: default: `tool_result_max_bytes`.
        strict: whether the provider enforces the schema (OpenAI's strict mode).
        requires_approval: whether a call waits until a person has approved it.
        deferred: whether the tool may return `Deferred`.
    """

    name: str | None = None
    timeout_s: float | None = None
    idempotent: bool = True
    concurrency: int | None = None
    max_result_bytes: int | None = None
    strict: bool = False
    requires_approval: bool = False
    deferred: bool = False


def tool(
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    idempotent: bool = True,
    concurrency: int | None = None,
    max_result_bytes: int | None = None,
    strict: bool = False,
    requires_approval: bool = False,
    deferred: bool = False,
) -> Callable[[F], F]:
    """Sets the options of a tool. The decorator returns the function unchanged."""
    options = ToolOptions(
        name, timeout_s, idempotent, concurrency, max_result_bytes, strict, requires_approval, deferred
    )

    def mark(function: F) -> F:
        setattr(function, _OPTIONS, options)
        return function

    return mark


def options_of(function: ToolFunction) -> ToolOptions:
    """Returns the options that `tool` set on a function, or the defaults."""
    options = getattr(function, _OPTIONS, None)
    return options if isinstance(options, ToolOptions) else ToolOptions()


@dataclass(frozen=True, slots=True)
class FunctionBody:
    """The body of a tool that is a function. Async functions run in the event loop, others in a thread."""

    name: str
    function: ToolFunction
    signature: Signature
    threads: Executor
    result_max_bytes: int

    @property
    def description(self) -> str:
        """The text of the docstring before its first section."""
        return self.signature.description

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""
        return self.signature.parameters

    async def prepare(self, arguments: str, context: ToolContext) -> PreparedCall:
        """Checks the arguments of a call. The returned callable runs the function.

        Raises:
            BadArguments: the arguments do not fit the signature.
        """
        positional, named = self.signature.bind(self.name, arguments, context)
        return partial(self._run, partial(self.function, *positional, **named))

    async def _run(self, function: Callable[[], Any]) -> ToolReply | Deferred:
        if inspect.iscoroutinefunction(self.function):
            return self._reply(await function())
        future = self.threads.submit(contextvars.copy_context().run, self._run_plain, function)
        try:
            outcome = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.done():
                raise
            raise ThreadStillRunning(future) from None
        return outcome if isinstance(outcome, ToolReply | Deferred) else self._reply(await outcome)

    def _run_plain(self, function: Callable[[], Any]) -> ToolReply | Deferred | Awaitable[Any]:
        """Runs in a thread. Encodes the result here, too, since a large one takes time."""
        try:
            result = function()
        except StopIteration as exc:
            # asyncio's futures do not accept StopIteration, so the caller would wait forever (Python 3.11).
            raise RuntimeError("the function raised StopIteration") from exc
        return result if inspect.isawaitable(result) else self._reply(result)

    def _reply(self, result: Any) -> ToolReply | Deferred:
        return encode_result(self.name, result, self.result_max_bytes)
