"""A tool out of a typed Python function, and the decorator that gives it options.

    @tool(timeout_s=60, idempotent=False)
    async def book_table(restaurant: str, guests: Annotated[int, Field(ge=1)] = 2) -> str:
        ...

The decorator is only for options; any function with type hints will do.
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
from stagebus.worker.tools.tool_results import ToolReply, encode_result

F = TypeVar("F", bound=ToolFunction)

_OPTIONS: Final = "__stagebus_tool__"


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """What a function's author can say of it beyond its signature.

    Attributes:
        name: the function's own if not set.
        timeout_s: `tool_timeout_s` if not set.
        idempotent: whether the same call may run again when a worker died in it.
        concurrency: calls of it that one worker runs at once; as many as there are if not set.
        max_result_bytes: `tool_result_max_bytes` if not set.
        strict: whether the provider is to hold the model to the schema, by OpenAI's strict mode.
        requires_approval: whether a call waits until a person has approved it.
    """

    name: str | None = None
    timeout_s: float | None = None
    idempotent: bool = True
    concurrency: int | None = None
    max_result_bytes: int | None = None
    strict: bool = False
    requires_approval: bool = False


def tool(
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    idempotent: bool = True,
    concurrency: int | None = None,
    max_result_bytes: int | None = None,
    strict: bool = False,
    requires_approval: bool = False,
) -> Callable[[F], F]:
    """Give a function options as a tool; the function itself stays as it is."""
    options = ToolOptions(name, timeout_s, idempotent, concurrency, max_result_bytes, strict, requires_approval)

    def mark(function: F) -> F:
        setattr(function, _OPTIONS, options)
        return function

    return mark


def options_of(function: ToolFunction) -> ToolOptions:
    """The options that `tool` gave to a function, or else the defaults."""
    options = getattr(function, _OPTIONS, None)
    return options if isinstance(options, ToolOptions) else ToolOptions()


@dataclass(frozen=True, slots=True)
class FunctionBody:
    """A function as a tool's body: awaited in the event loop if it is async, run in a thread if it is plain."""

    name: str
    function: ToolFunction
    signature: Signature
    threads: Executor
    result_max_bytes: int

    @property
    def description(self) -> str:
        """What the docstring says before its first section."""
        return self.signature.description

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema of its arguments."""
        return self.signature.parameters

    def prepare(self, arguments: str, context: ToolContext) -> PreparedCall:
        """Check a call's arguments; awaiting what this returns runs the function.

        Raises:
            BadArguments: they do not fit.
        """
        positional, named = self.signature.bind(self.name, arguments, context)
        return partial(self._run, partial(self.function, *positional, **named))

    async def _run(self, function: Callable[[], Any]) -> ToolReply:
        if inspect.iscoroutinefunction(self.function):
            return self._reply(await function())
        future = self.threads.submit(contextvars.copy_context().run, self._run_plain, function)
        try:
            outcome = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.done():
                raise
            raise ThreadStillRunning(future) from None
        return outcome if isinstance(outcome, ToolReply) else self._reply(await outcome)

    def _run_plain(self, function: Callable[[], Any]) -> ToolReply | Awaitable[Any]:
        """In a thread: the reply itself, as a large result takes its time to encode."""
        try:
            result = function()
        except StopIteration as exc:
            # asyncio's futures take any exception but this one: who waits for it would wait for ever (Python 3.11).
            raise RuntimeError("the function raised StopIteration") from exc
        return result if inspect.isawaitable(result) else self._reply(result)

    def _reply(self, result: Any) -> ToolReply:
        return encode_result(self.name, result, self.result_max_bytes)
