"""The calls of one round at work, side by side, and what comes of them in the order in which it comes."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stagebus.shared.domain.events import Event, ToolProgress, ToolResult
from stagebus.worker.stages.call_plan import PlannedCall
from stagebus.worker.tools.call_progress import CallProgress
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import ToolReply


class RunIdentity(NamedTuple):
    """Whose calls these are; what a tool may know of it."""

    run_id: str
    tenant: str
    attempt: int


class CallRunner:
    """Runs calls, and refuses those that are to be refused; further ones may be started at any time."""

    def __init__(self, stage_id: str, identity: RunIdentity, timeout_s: float) -> None:
        """`timeout_s` is for all calls that start together; one without a result by then gets an error result."""
        self._stage_id = stage_id
        self._identity = identity
        self._timeout_s = timeout_s
        # Bounded: of each call its end, and one note of progress at a time.
        self._inbox: asyncio.Queue[_RunningCall | None] = asyncio.Queue()
        self._unfinished: set[_RunningCall] = set()
        self._deadlines: list[asyncio.TimerHandle] = []

    @property
    def is_idle(self) -> bool:
        """Whether every call that was started has its result."""
        return not self._unfinished

    def start(self, planned: Sequence[PlannedCall]) -> None:
        """Start these side by side."""
        calls = [_RunningCall(self._stage_id, call, self._identity, self._inbox) for call in planned]
        self._unfinished.update(calls)
        self._deadlines.append(asyncio.get_running_loop().call_later(self._timeout_s, _cut, calls, self._timeout_s))

    def wake(self) -> None:
        """Let `news` return, though no call has any."""
        self._inbox.put_nowait(None)

    async def next_events(self) -> list[Event]:
        """Wait for `ToolProgress`, or for a call's `ToolResult`, of which each has one."""
        call = await self._inbox.get()
        if call is None:
            return []
        events = list(call.tell())
        if call.is_told:
            self._unfinished.discard(call)
        return events

    async def aclose(self) -> None:
        """Cancel what still runs."""
        for deadline in self._deadlines:
            deadline.cancel()
        for call in self._unfinished:
            call.task.cancel()
        await asyncio.gather(*(call.task for call in self._unfinished), return_exceptions=True)


class _RunningCall:
    """One call: its task, and what is yet to be told of it."""

    def __init__(
        self, stage_id: str, planned: PlannedCall, identity: RunIdentity, inbox: "asyncio.Queue[_RunningCall | None]"
    ) -> None:
        self._stage_id = stage_id
        self._planned = planned
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._progress = CallProgress(lambda _: inbox.put_nowait(self))
        self.is_told = False
        self.timeout_message = ""  # what the model is told if the task was cancelled
        self.task = asyncio.create_task(self._run(identity))
        self.task.add_done_callback(lambda _: inbox.put_nowait(self))

    def tell(self) -> Iterator[Event]:
        """Yield what there is to tell by now: progress, and at the end the result, once."""
        if self.is_told:
            return
        self.is_told = self.task.done()
        said = self._progress.close() if self.is_told else self._progress.take()
        call = self._planned.request
        if said is not None:
            yield ToolProgress(stage_id=self._stage_id, call_id=call.id, message=said.message, fraction=said.fraction)
        if self.is_told:
            reply = ToolReply(self.timeout_message, is_error=True) if self.task.cancelled() else self.task.result()
            yield ToolResult(
                stage_id=self._stage_id,
                call_id=call.id,
                name=call.name,
                content=reply.content,
                is_error=reply.is_error,
                duration_ms=round((self._loop.time() - self._began_at) * 1000),
            )

    async def _run(self, identity: RunIdentity) -> ToolReply:
        call, tool = self._planned.request, self._planned.tool
        if tool is None:
            return ToolReply(self._planned.refusal, is_error=True)
        context = ToolContext(
            run_id=identity.run_id,
            call_id=call.id,
            tenant=identity.tenant,
            tool=call.name,
            attempt=identity.attempt,
            report=self._progress.report,
        )
        return await tool.call(call.arguments, context)


def _cut(calls: Sequence[_RunningCall], timeout_s: float) -> None:
    for call in calls:
        call.timeout_message = (
            f"no result came before the calls of this round reached their limit of {timeout_s:g} s together"
        )
        call.task.cancel()
