"""The tools stage: run the calls side by side, each result a checkpoint."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
from worker.tools.tool import Tool
from worker.tools.toolset import Toolset

OUTCOME_UNKNOWN = (
    "the outcome of this call is unknown: its worker died while it ran, and the tool may not run twice; "
    "look at its effects before calling it again"
)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What the log says of a stage that was begun before: calls that started, and results."""

    started: frozenset[str] = frozenset()
    results: Mapping[str, ToolResult] = field(default_factory=dict)


async def tools_stage(
    stage_id: str,
    calls: Sequence[ToolCallRequest],
    registry: Toolset,
    *,
    allowed: frozenset[str],
    calls_max: int,
    checkpoints: Checkpoints,
    until_stored: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Event, None]:
    """Run every call that has no result yet and yield each result as it comes.

    Args:
        allowed: the tools that the request offers; a call of another is an error result.
        calls_max: further calls get an error result.
        until_stored: returns once all that was yielded stands in the log: a tool that is not
            idempotent starts only then.

    Yields:
        `ToolCall` for each call that never started, `ToolResult` as each ends, then one
        `ToolSummary` and one `StageCompleted`.
    """
    results = dict(checkpoints.results)
    open_calls = [call for call in calls if call.id not in results]
    for call in open_calls:
        if call.id not in checkpoints.started:
            yield ToolCall(stage_id=stage_id, call_id=call.id, name=call.name, arguments=call.arguments)
    if any(_is_once(registry, call) for call in open_calls):
        await until_stored()
    refused = frozenset(call.id for call in calls[calls_max:])
    tasks = [
        asyncio.create_task(_run(stage_id, call, registry, _refusal(call, registry, allowed, refused, checkpoints)))
        for call in open_calls
    ]
    try:
        for task in asyncio.as_completed(tasks):
            result = await task
            results[result.call_id] = result
            yield result
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    outcomes = [_outcome(call, results[call.id]) for call in calls]
    yield ToolSummary(stage_id=stage_id, tool_summary=outcomes)
    yield StageCompleted(stage_id=stage_id, result=ToolStageResult(outcomes=outcomes).model_dump())


def _find(registry: Toolset, call: ToolCallRequest) -> Tool | None:
    return registry.get(call.name) if call.name in registry.names() else None


def _is_once(registry: Toolset, call: ToolCallRequest) -> bool:
    tool = _find(registry, call)
    return tool is not None and not tool.idempotent


def _refusal(
    call: ToolCallRequest,
    registry: Toolset,
    allowed: frozenset[str],
    refused: frozenset[str],
    checkpoints: Checkpoints,
) -> str | None:
    """Why a call is not run; what the model is told then."""
    if call.name not in allowed or _find(registry, call) is None:
        return f"there is no tool {call.name[:64]!r} here; there are: {', '.join(sorted(allowed)) or 'none'}"
    if call.id in refused:
        return "too many calls at once; call it again on its own"
    if call.id in checkpoints.started and _is_once(registry, call):
        return OUTCOME_UNKNOWN
    return None


async def _run(stage_id: str, call: ToolCallRequest, registry: Toolset, refusal: str | None) -> ToolResult:
    started = time.monotonic()
    tool = _find(registry, call)
    if refusal is not None or tool is None:
        content, is_error = refusal or "", True
    else:
        reply = await tool.call(call.arguments)
        content, is_error = reply.content, reply.is_error
    return ToolResult(
        stage_id=stage_id,
        call_id=call.id,
        name=call.name,
        content=content,
        is_error=is_error,
        duration_ms=round((time.monotonic() - started) * 1000),
    )


def _outcome(call: ToolCallRequest, result: ToolResult) -> ToolOutcome:
    return ToolOutcome(
        call_id=call.id, name=call.name, arguments=call.arguments, content=result.content, is_error=result.is_error
    )
