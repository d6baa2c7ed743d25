"""One tool, ready to be called: arguments checked, time limited, and always a reply."""

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from worker.tools.functions import BadArguments, ToolFunction
from worker.tools.results import ToolReply, cut, encode_result

log = logging.getLogger(__name__)

# A tool that is cancelled may tidy up for this long; then it is left alone.
_CANCEL_GRACE_S: Final = 1.0


class ToolError(Exception):
    """What a tool raises to tell the model of a failure in its own words."""


class CallSignature(Protocol):
    """How a tool is described, and how a call's arguments become those of its function."""

    @property
    def description(self) -> str:
        """What the model is told of it."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""

    def bind(self, tool_name: str, arguments: str) -> tuple[list[Any], dict[str, Any]]:
        """The positional and the named arguments; raises BadArguments."""


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """What any tool gets, from the settings."""

    timeout_s: float
    result_max_bytes: int


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call.

    Attributes:
        parameters: the JSON Schema of its arguments.
        idempotent: whether the same call may run again when a worker died in it.
        timeout_s: its own limit, or None for that of all tools.
    """

    name: str
    function: ToolFunction
    signature: CallSignature
    threads: Executor
    limits: ToolLimits
    idempotent: bool = True
    timeout_s: float | None = None

    @property
    def description(self) -> str:
        """What the docstring says before its first section."""
        return self.signature.description

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema of its arguments."""
        return self.signature.parameters

    async def call(self, arguments: str) -> ToolReply:
        """Run it. Whatever goes wrong is a reply that the model can read; only a cancel raises.

        Args:
            arguments: JSON text as the model wrote it.
        """
        try:
            positional, named = self.signature.bind(self.name, arguments)
        except BadArguments as exc:
            return self._failed(str(exc))
        limit_s = self.limits.timeout_s if self.timeout_s is None else self.timeout_s
        running = asyncio.create_task(self._run(partial(self.function, *positional, **named)))
        try:
            done, _ = await asyncio.wait({running}, timeout=limit_s)
        finally:
            if not running.done():
                # Not awaited without a limit: a tool may cling to life, and the run must go on.
                running.cancel()
                await asyncio.wait({running}, timeout=_CANCEL_GRACE_S)
        if not done:
            return self._failed(f"{self.name} gave no result within its limit of {limit_s:g} s.")
        return self._failed(f"{self.name} was cancelled.") if running.cancelled() else running.result()

    async def _run(self, function: Callable[[], Any]) -> ToolReply:
        try:
            if inspect.iscoroutinefunction(self.function):
                return self._reply(await function())
            call = partial(contextvars.copy_context().run, self._run_plain, function)
            outcome = await asyncio.get_running_loop().run_in_executor(self.threads, call)
            return outcome if isinstance(outcome, ToolReply) else self._reply(await outcome)
        except ToolError as exc:
            return self._failed(f"{self.name}: {exc}")
        except (Exception, SystemExit) as exc:
            # SystemExit, too: a tool that calls sys.exit must not end the worker and its other runs.
            log.warning("tool %s failed", self.name, exc_info=exc)
            return self._failed(f"{self.name} failed: {_describe(exc)}")

    def _run_plain(self, function: Callable[[], Any]) -> ToolReply | Awaitable[Any]:
        """In a thread: the reply itself, as a large result takes its time to encode."""
        result = function()
        return result if inspect.isawaitable(result) else self._reply(result)

    def _reply(self, result: Any) -> ToolReply:
        return encode_result(self.name, result, self.limits.result_max_bytes)

    def _failed(self, message: str) -> ToolReply:
        return ToolReply(cut(message, self.limits.result_max_bytes), is_error=True)


def _describe(exc: BaseException) -> str:
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - a stranger's __str__ may raise anything
        text = ""
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
