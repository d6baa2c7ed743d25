"""A callable tool: validates arguments, limits the time, and always returns a reply."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from stagebus.shared.observability.redaction import redact
from stagebus.worker.tools.call_limiter import CallLimiter, ThreadStillRunning
from stagebus.worker.tools.portable_schema import fit_for_providers
from stagebus.worker.tools.signature import BadArguments
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import Deferred, ToolReply, cut

logger = logging.getLogger(__name__)

# A cancelled tool gets this time to clean up; then the run continues without it.
_CANCEL_GRACE_S: Final = 1.0

# A call with validated arguments. It runs when this is called and awaited.
PreparedCall = Callable[[], Awaitable[ToolReply | Deferred]]


class ToolError(Exception):
    """Raised by a tool to give the model an error message of its own."""


class ToolBody(Protocol):
    """The implementation of a tool: a Python function, or a call to a server."""

    @property
    def description(self) -> str:
        """The description for the model."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""

    async def prepare(self, arguments: str, context: ToolContext) -> PreparedCall:
        """Validates the arguments of a call without side effects. The call itself may raise any exception.

        Args:
            arguments: JSON text as the model wrote it.

        Raises:
            BadArguments: the arguments are invalid.
        """


class ClientTerms(NamedTuple):
    """How a client runs the calls of its tool: `once`, only one client may ever run a call; `expires_in_s` or the default."""

    once: bool = False
    expires_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool with its limits.

    Attributes:
        parameters: the JSON Schema of the arguments, in a form that every provider accepts.
        idempotent: whether a call may run again if a worker died during it.
        limiter: limits concurrent calls.
        is_strict: whether `parameters` are in the form of OpenAI's strict mode.
        requires_approval: whether a call waits until a person has approved it.
        asks_user: the tool never runs; the result is a person's answer.
        is_on_request: offered only to runs that name it.
        is_deferred: the tool may return `Deferred`; the result then comes from outside.
        may_be_task: the tool may return `RemoteTask`; this process then asks its source for the result.
        client: set if the tool never runs here: a client runs it and gives the result.
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
    is_deferred: bool = False
    may_be_task: bool = False
    client: ClientTerms | None = None
    parameters: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", fit_for_providers(self.body.parameters))

    @property
    def description(self) -> str:
        """The description for the model."""
        return self.body.description

    @property
    def may_wait(self) -> bool:
        """Returns whether a call's result may come from outside."""
        return self.is_deferred or self.client is not None

    async def check(self, arguments: str) -> str | None:
        """Returns the error in a call's arguments, worded for the model; None if they are valid."""
        try:
            await self.body.prepare(arguments, ToolContext(run_id="", call_id=""))
        except BadArguments as exc:
            return str(exc)
        return None

    async def call(self, arguments: str, context: ToolContext) -> ToolReply | Deferred:
        """Executes a call. Every failure becomes a reply for the model; only a cancellation raises.

        The wait under `limiter` does not count towards the timeout.

        Args:
            arguments: JSON text as the model wrote it.
        """
        try:
            prepared = await self.body.prepare(arguments, context)
        except BadArguments as exc:
            return self._failed(str(exc))
        await self.limiter.acquire()
        running = asyncio.create_task(self._run(prepared))
        self.limiter.release_after(running)
        try:
            done, _ = await asyncio.wait({running}, timeout=self.timeout_s)
        finally:
            if not running.done():
                # Wait with a limit: a tool may ignore its cancellation, and the run must continue.
                running.cancel()
                await asyncio.wait({running}, timeout=_CANCEL_GRACE_S)
        if not done:
            return self._failed(f"{self.name} gave no result within its limit of {self.timeout_s:g} s.")
        return self._failed(f"{self.name} was cancelled.") if running.cancelled() else running.result()

    async def _run(self, prepared: PreparedCall) -> ToolReply | Deferred:
        try:
            reply = await prepared()
            if isinstance(reply, Deferred):
                return reply if self.is_deferred else self._failed(f"{self.name} must be declared with deferred=True.")
            return reply._replace(content=cut(reply.content, self.result_max_bytes))
        except (ThreadStillRunning, asyncio.CancelledError, GeneratorExit):
            raise
        except ToolError as exc:
            return self._failed(f"{self.name}: {exc}")
        except BaseException as exc:
            # Not only Exception: sys.exit must not end the worker, and a panic in Rust must not end the run.
            logger.warning("tool %s failed", self.name, exc_info=exc)
            return self._failed(f"{self.name} failed: {_describe(exc)}")

    def _failed(self, message: str) -> ToolReply:
        # Models and clients read it, and an exception's text may contain the key of a service.
        return ToolReply(cut(redact(message), self.result_max_bytes), is_error=True)


def _describe(exc: BaseException) -> str:
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        text = ""
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
