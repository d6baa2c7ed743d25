"""Runs the tool calls of one round concurrently and yields their events in the order in which they happen."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

from stagebus.shared.domain.events import Event, ToolProgress, ToolResult
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.observability.redaction import MASK
from stagebus.shared.observability.spans import span
from stagebus.worker.stages.call_plan import PlannedCall
from stagebus.worker.stages.deferred_calls import DeferredCalls, WaitingResult
from stagebus.worker.tools.call_progress import CallProgress
from stagebus.worker.tools.tool import Tool
from stagebus.worker.tools.tool_context import Report, ToolContext
from stagebus.worker.tools.tool_results import Deferred, RemoteTask, ToolReply


class RunIdentity(NamedTuple):
    """The run that calls belong to, as far as a tool may know it."""

    run_id: str
    tenant: str
    attempt: int
    user: str = ""
    metadata: Mapping[str, str] = {}

    @classmethod
    def of(cls, run: RunRecord, attempt: int) -> Self:
        """Returns the identity of a run in one attempt."""
        return cls(run.run_id, run.tenant, attempt, run.user, run.request.get("metadata") or {})


class CallRunner:
    """Runs calls and answers refused ones with their refusal; more calls can be started at any time."""

    def __init__(self, stage_id: str, identity: RunIdentity, timeout_s: float, deferred: DeferredCalls) -> None:
        """`timeout_s` limits all calls that start together; a call without a result by then gets an error result."""
        self._deferred = deferred
        self._stage_id = stage_id
        self._identity = identity
        self._timeout_s = timeout_s
        # Calls with an unread event. Bounded: each call reports its end once, and one progress note at a time.
        self._changed: deque[_RunningCall] = deque()
        self._wake = asyncio.Event()
        self._unfinished: set[_RunningCall] = set()
        self._deadlines: list[asyncio.TimerHandle] = []

    def start(self, planned: Sequence[PlannedCall]) -> None:
        """Starts these calls concurrently."""
        if not planned:
            return
        calls = [
            _RunningCall(self._stage_id, call, self._identity, self._deferred, self._on_change) for call in planned
        ]
        self._unfinished.update(calls)
        self._deadlines.append(
            asyncio.get_running_loop().call_later(self._timeout_s, _time_out, calls, self._timeout_s)
        )

    def wake(self) -> None:
        """Makes `next_events` return although no call has an event."""
        self._wake.set()

    async def next_events(self) -> list[Event | WaitingResult]:
        """Waits for progress, results or `wake`. The last of each call is one `ToolResult`, or that it waits for one.

        Returns:
            The events since the last call; none after `wake`.
        """
        await self._wake.wait()
        self._wake.clear()
        events: list[Event | WaitingResult] = []
        while self._changed:
            call = self._changed.popleft()
            events += call.take_events()
            if call.is_finished:
                self._unfinished.discard(call)
        return events

    async def aclose(self) -> None:
        """Cancels the calls that still run."""
        for deadline in self._deadlines:
            deadline.cancel()
        for call in self._unfinished:
            call.task.cancel()
        await asyncio.gather(*(call.task for call in self._unfinished), return_exceptions=True)

    def _on_change(self, call: "_RunningCall") -> None:
        self._changed.append(call)
        self._wake.set()


class _RunningCall:
    """One call: its task and the events that were not read yet."""

    def __init__(
        self,
        stage_id: str,
        planned: PlannedCall,
        identity: RunIdentity,
        deferred: DeferredCalls,
        on_change: "Callable[[_RunningCall], None]",
    ) -> None:
        self._stage_id = stage_id
        self._planned = planned
        self._deferred = deferred
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._progress = CallProgress(lambda _: on_change(self))
        self.is_finished = False  # its result was read
        self.timeout_message = ""  # the result's text if the task was cancelled
        self.is_settling = False  # its tool has returned, and the result is being stored
        self.task = asyncio.create_task(self._run(identity))
        self.task.add_done_callback(lambda _: on_change(self))

    def take_events(self) -> Iterator[Event | WaitingResult]:
        """Yields the unread progress and, once the task has ended, the result."""
        if self.is_finished:
            return
        self.is_finished = self.task.done()
        progress = self._progress.close() if self.is_finished else self._progress.take()
        call = self._planned.request
        if progress is not None:
            yield ToolProgress(
                stage_id=self._stage_id, call_id=call.id, message=progress.message, fraction=progress.fraction
            )
        if self.is_finished:
            reply = ToolReply(self.timeout_message, is_error=True) if self.task.cancelled() else self.task.result()
            if isinstance(reply, Deferred):
                yield WaitingResult(self._planned, reply)
                return
            yield ToolResult(
                stage_id=self._stage_id,
                call_id=call.id,
                name=call.name,
                content=reply.content,
                is_error=reply.is_error,
                duration_ms=round((self._loop.time() - self._began_at) * 1000),
            )

    async def _run(self, identity: RunIdentity) -> ToolReply | Deferred:
        call, tool = self._planned.request, self._planned.tool
        if tool is None:
            return ToolReply(self._planned.refusal, is_error=True)
        gets_token = tool.is_deferred and not tool.may_be_task
        token = self._deferred.terms.token_of(call.id).text if gets_token else ""
        context = ToolContext(
            run_id=identity.run_id,
            call_id=call.id,
            tenant=identity.tenant,
            tool=call.name,
            attempt=identity.attempt,
            call_token=token,
            result_url=self._deferred.terms.result_url_of(call.id, token) if gets_token else "",
            user=identity.user,
            metadata=dict(identity.metadata),
            report=_without(token, self._progress.report),
        )
        if tool.is_deferred:
            return await self._run_deferred(tool, context)
        return await self._call(tool, context)

    async def _call(self, tool: Tool, context: ToolContext) -> ToolReply | Deferred:
        call = self._planned.request
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.name,
            "gen_ai.tool.call.id": call.id,
            "gen_ai.tool.type": "function",
        }
        with span(f"execute_tool {call.name}", attributes=attributes) as opened:
            opened.set_content({"gen_ai.tool.call.arguments": call.arguments})
            reply = await tool.call(call.arguments, context)
            if isinstance(reply, Deferred):
                return reply
            reply = reply._replace(content=_mask(context.call_token, reply.content))
            opened.set_content({"gen_ai.tool.call.result": reply.content})
            if reply.is_error:
                opened.fail("tool_error")
            return reply

    async def _run_deferred(self, tool: Tool, context: ToolContext) -> ToolReply | Deferred:
        """Runs a tool whose result may also come from outside. Its own one, an error included, counts only if it is first."""
        call = self._planned.request
        if (early := await self._deferred.find_early(call.id)) is not None:
            return early
        if tool.may_be_task and (resumed := await self._deferred.resume_task(self._planned)) is not None:
            return resumed
        try:
            reply = await self._call(tool, context)
        except asyncio.CancelledError:
            if not self.timeout_message:
                raise
            reply = ToolReply(self.timeout_message, is_error=True)
        if isinstance(reply, RemoteTask):
            self.is_settling = True
            await self._deferred.keep_task(call.id, reply)
        if isinstance(reply, Deferred):
            return reply
        self.is_settling = True
        return await self._deferred.settle(call.id, reply)


def _mask(token: str, text: str) -> str:
    """Masks a call's token in what clients and models read."""
    return text.replace(token, MASK) if token else text


def _without(token: str, report: Report) -> Report:
    return (lambda message, fraction: report(_mask(token, message), fraction)) if token else report


def _time_out(calls: Sequence[_RunningCall], timeout_s: float) -> None:
    for call in calls:
        if call.is_settling:
            continue
        call.timeout_message = (
            f"no result came before the calls of this round reached their limit of {timeout_s:g} s together"
        )
        call.task.cancel()
