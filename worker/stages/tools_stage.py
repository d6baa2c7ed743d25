"""The tools stage: run the calls side by side, each result a checkpoint."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from typing import NamedTuple

import orjson

from stagebus.shared.domain.events import (
    Event,
    StageCompleted,
    ToolCall,
    ToolCallRequest,
    ToolOutcome,
    ToolResult,
    ToolStageResult,
    ToolSummary,
)
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.worker.stages.approval_gate import ApprovalGate, WaitingCall
from stagebus.worker.stages.call_plan import Checkpoints, PlannedCall, plan_calls
from stagebus.worker.stages.call_runner import CallRunner, RunIdentity
from stagebus.worker.tools.toolset import Toolset


class RoundLimits(NamedTuple):
    """What the calls of one round may be and take together; what is beyond gets an error result."""

    calls_max: int
    timeout_s: float


async def tools_stage(
    stage_id: str,
    calls: Sequence[ToolCallRequest],
    toolset: Toolset,
    *,
    identity: RunIdentity,
    allowed: frozenset[str],
    limits: RoundLimits,
    checkpoints: Checkpoints,
    gate: ApprovalGate,
    until_stored: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Event, None]:
    """Run every call that has no result yet and yield each result as it comes.

    A call that is the same as an earlier one of the round does not run: it has a
    `ToolCall` and a `ToolResult` of its own, with the earlier one's content. One that a
    person decides upon waits at the gate; if it is denied or answered, it has no `ToolCall`.

    Args:
        allowed: the tools that the request offers; a call of another is an error result.
        until_stored: returns once all that was yielded stands in the log: a tool that is not
            idempotent starts only then.

    Yields:
        `ApprovalRequired` or `InputRequired` for each call that waits and was never asked for,
        `ApprovalDecided` as each is decided, `ToolCall` for each call that never started, any
        number of `ToolProgress`, `ToolResult` as each call ends, then one `ToolSummary` and one
        `StageCompleted`.

    Raises:
        Parked: all that is left to do waits for a person.
    """
    results = dict(checkpoints.results)
    plan = plan_calls(calls, toolset, allowed=allowed, calls_max=limits.calls_max, started=checkpoints.started)
    open_calls = [planned for planned in plan if planned.request.id not in results]
    for ask in await gate.hold([held for planned in open_calls if (held := _waiting(planned, checkpoints))]):
        yield ask
    work = CallRunner(stage_id, identity, limits.timeout_s)
    events = _carry_out(stage_id, open_calls, work, gate, checkpoints, until_stored)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, ToolResult):
                results[event.call_id] = event
            yield event
    outcomes = [_outcome(gate.approved(planned).request, results[planned.request.id]) for planned in plan]
    yield ToolSummary(stage_id=stage_id, tool_summary=outcomes)
    yield StageCompleted(stage_id=stage_id, result=ToolStageResult(outcomes=outcomes).model_dump())


async def _carry_out(
    stage_id: str,
    plan: Sequence[PlannedCall],
    work: CallRunner,
    gate: ApprovalGate,
    checkpoints: Checkpoints,
    until_stored: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Event, None]:
    """Each call's events, to its result."""
    ready = [planned for planned in plan if not gate.holds(planned)]
    ended: Collection[ToolResult] = checkpoints.results.values()
    is_nudged = True
    watching = asyncio.create_task(gate.watch(work.wake))
    try:
        while ready or ended or not work.is_idle or gate.is_waiting:
            runs = [gate.approved(planned) for planned in ready if gate.reply_to(planned) is None]
            for call in (planned.request for planned in runs if planned.request.id not in checkpoints.started):
                yield ToolCall(stage_id=stage_id, call_id=call.id, name=call.name, arguments=call.arguments)
            if any(planned.tool is not None and not planned.tool.idempotent for planned in runs):
                await until_stored()
            work.start([planned for planned in runs if planned.same_as is None])
            for result in (*_rejected(stage_id, ready, gate), *_copies(plan, ended, gate)):
                yield result
            ready, ended = [], []
            if gate.is_waiting and (is_nudged or work.is_idle):
                for decided in await gate.decided():
                    yield decided
                    ready += [planned for planned in plan if decided.call_id in (planned.request.id, planned.same_as)]
                if work.is_idle and not ready:
                    raise gate.park()
            if not ready and not work.is_idle:
                news = await work.next_events()
                for event in news:
                    yield event
                is_nudged, ended = not news, [event for event in news if isinstance(event, ToolResult)]
    finally:
        await cancel_and_wait(watching)
        await work.aclose()


def _waiting(planned: PlannedCall, checkpoints: Checkpoints) -> WaitingCall | None:
    """The call as one that waits for a person; None for one that needs none, or whose arguments do not fit anyway."""
    call, tool = planned.request, planned.tool
    if tool is None or call.id in checkpoints.started:
        return None
    is_asked = call.id in checkpoints.asked.expires_at  # whatever its tool needs by now
    if not (tool.requires_approval or tool.asks_user or is_asked) or tool.check(call.arguments) is not None:
        return None
    return WaitingCall(call, orjson.loads(call.arguments)["question"] if tool.asks_user else None)


def _rejected(stage_id: str, plan: Sequence[PlannedCall], gate: ApprovalGate) -> Iterator[ToolResult]:
    """Yield the results of the calls that do not run, since a person denied or answered them."""
    for planned in plan:
        reply = gate.reply_to(planned)
        if reply is not None:
            yield ToolResult(
                stage_id=stage_id,
                call_id=planned.request.id,
                name=planned.request.name,
                content=reply.content,
                is_error=reply.is_error,
                same_as=planned.same_as,
            )


def _copies(plan: Sequence[PlannedCall], results: Collection[ToolResult], gate: ApprovalGate) -> Iterator[ToolResult]:
    """Yield the results of the calls that share one of these."""
    result_by_id = {result.call_id: result for result in results}
    for planned in plan:
        if planned.same_as in result_by_id and gate.reply_to(planned) is None:
            shared = result_by_id[planned.same_as]
            yield shared.model_copy(update={"call_id": planned.request.id, "same_as": planned.same_as})


def _outcome(call: ToolCallRequest, result: ToolResult) -> ToolOutcome:
    return ToolOutcome(
        call_id=call.id, name=call.name, arguments=call.arguments, content=result.content, is_error=result.is_error
    )
