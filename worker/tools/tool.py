"""One tool, ready to be called: arguments checked, time limited, and always a reply."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from stagebus.worker.tools.call_limiter import CallLimiter, ThreadStillRunning
from stagebus.worker.tools.signature import BadArguments
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import ToolReply, cut

logger = logging.getLogger(__name__)

# A tool that is cancelled may tidy up for this long; then it is left alone.
_CANCEL_GRACE_S: Final = 1.0

# A call whose arguments are checked; nothing runs before it is called and awaited.
PreparedCall = Callable[[], Awaitable[ToolReply]]


class ToolError(Exception):
    """What a tool raises to tell the model of a failure in its own words."""


class ToolBody(Protocol):
    """What a tool does, wherever it does it: a Python function, or something at the end of a connection."""

    @property
    def description(self) -> str:
        """What the model is told of it."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema of its arguments."""

    def prepare(self, arguments: str, context: ToolContext) -> PreparedCall:
        """Check a call's arguments, without any effect. The call itself may raise what it likes.

        Args:
            arguments: JSON text as the model wrote it.

        Raises:
            BadArguments: they do not fit.
        """


@dataclass(frozen=True, slots=True)
class Tool:
    """A body that a model may call, with its limits.

    Attributes:
        idempotent: whether the same call may run again when a worker died in it.
        limiter: how many calls of it may be at work at once.
        is_strict: whether `parameters` are for OpenAI's strict mode.
        requires_approval: whether a call waits until a person has approved it.
        asks_user: it never runs: a person's answer is its result.
        is_on_request: only runs that name it are offered it.
    """

    name: str
    body: ToolBody
    timeout_s: float
    result_max_bytes: int
    limiter: CallLimiter
    idempotent: bool = True
    is_strict: bool = False
    requires_approval: bool = False
    asks_user: bool = False
    is_on_request: bool = False

    @property
    def description(self) -> str:
        """What the model is told of it."""
        return self.body.description

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema of its arguments."""
        return self.body.parameters

    def check(self, arguments: str) -> str | None:
        """What is wrong with a call's arguments, in words for the model; None where they fit."""
        try:
            self.body.prepare(arguments, ToolContext(run_id="", call_id=""))
        except BadArguments as exc:
            return str(exc)
        return None

    async def call(self, arguments: str, context: ToolContext) -> ToolReply:
        """Run it. Whatever goes wrong is a reply that the model can read; only a cancel raises.

        The wait for a slot does not count into the time-out: the tool can do nothing about it.

        Args:
            arguments: JSON text as the model wrote it.
        """
        try:
            prepared = self.body.prepare(arguments, context)
        except BadArguments as exc:
            return self._failed(str(exc))
        await self.limiter.acquire()
        running = asyncio.create_task(self._run(prepared))
        self.limiter.release_after(running)
        try:
            done, _ = await asyncio.wait({running}, timeout=self.timeout_s)
        finally:
            if not running.done():
                # Not awaited without a limit: a tool may cling to life, and the run must go on.
                running.cancel()
                await asyncio.wait({running}, timeout=_CANCEL_GRACE_S)
        if not done:
            return self._failed(f"{self.name} gave no result within its limit of {self.timeout_s:g} s.")
        return self._failed(f"{self.name} was cancelled.") if running.cancelled() else running.result()

    async def _run(self, prepared: PreparedCall) -> ToolReply:
        try:
            reply = await prepared()
            return reply._replace(content=cut(reply.content, self.result_max_bytes))
        except (ThreadStillRunning, asyncio.CancelledError, GeneratorExit):
            raise
        except ToolError as exc:
            return self._failed(f"{self.name}: {exc}")
        except BaseException as exc:
            # Not only an Exception: sys.exit must not end the worker and its other runs, nor a panic in Rust this one.
            logger.warning("tool %s failed", self.name, exc_info=exc)
            return self._failed(f"{self.name} failed: {_describe(exc)}")

    def _failed(self, message: str) -> ToolReply:
        return ToolReply(cut(message, self.result_max_bytes), is_error=True)


def _describe(exc: BaseException) -> str:
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - a stranger's __str__ may raise anything
        text = ""
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
