"""The tools stage: run the calls side by side, each result a checkpoint."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from shared.events import (
    Event,
    StageCompleted,
    ToolCall,
    ToolCallRequest,
    ToolOutcome,
    ToolResult,
    ToolStageResult,
    ToolSummary,
)
from worker.stages.calls import Origin, run_calls
from worker.stages.planning import Checkpoints, PlannedCall, plan_calls
from worker.tools.toolset import Toolset


class RoundLimits(NamedTuple):
    """What the calls of one round may be and take together; what is beyond gets an error result."""

    calls_max: int
    timeout_s: float


async def tools_stage(
    stage_id: str,
    calls: Sequence[ToolCallRequest],
    toolset: Toolset,
    *,
    origin: Origin,
    allowed: frozenset[str],
    limits: RoundLimits,
    checkpoints: Checkpoints,
    until_stored: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Event, None]:
    """Run every call that has no result yet and yield each result as it comes.

    A call that is the same as an earlier one of the round does not run: it has a
    `ToolCall` and a `ToolResult` of its own, with the earlier one's content.

    Args:
        allowed: the tools that the request offers; a call of another is an error result.
        until_stored: returns once all that was yielded stands in the log: a tool that is not
            idempotent starts only then.

    Yields:
        `ToolCall` for each call that never started, any number of `ToolProgress`, `ToolResult`
        as each call ends, then one `ToolSummary` and one `StageCompleted`.
    """
    results = dict(checkpoints.results)
    plan = plan_calls(calls, toolset, allowed=allowed, calls_max=limits.calls_max, started=checkpoints.started)
    plan = [planned for planned in plan if planned.request.id not in results]
    for call in (planned.request for planned in plan):
        if call.id not in checkpoints.started:
            yield ToolCall(stage_id=stage_id, call_id=call.id, name=call.name, arguments=call.arguments)
    if any(planned.tool is not None and not planned.tool.idempotent for planned in plan):
        await until_stored()
    for copy in _copies(plan, checkpoints.results.values()):
        results[copy.call_id] = copy
        yield copy
    running = run_calls(stage_id, [planned for planned in plan if planned.same_as is None], origin, limits.timeout_s)
    async with aclosing(running) as events:
        async for event in events:
            yield event
            if isinstance(event, ToolResult):
                results[event.call_id] = event
                for copy in _copies(plan, [event]):
                    results[copy.call_id] = copy
                    yield copy
    outcomes = [_outcome(call, results[call.id]) for call in calls]
    yield ToolSummary(stage_id=stage_id, tool_summary=outcomes)
    yield StageCompleted(stage_id=stage_id, result=ToolStageResult(outcomes=outcomes).model_dump())


def _copies(plan: Sequence[PlannedCall], results: Collection[ToolResult]) -> Iterator[ToolResult]:
    """Yield the results of the calls that share one of these."""
    result_by_id = {result.call_id: result for result in results}
    for planned in plan:
        if planned.same_as in result_by_id:
            shared = result_by_id[planned.same_as]
            yield shared.model_copy(update={"call_id": planned.request.id, "same_as": planned.same_as})


def _outcome(call: ToolCallRequest, result: ToolResult) -> ToolOutcome:
    return ToolOutcome(
        call_id=call.id, name=call.name, arguments=call.arguments, content=result.content, is_error=result.is_error
    )
