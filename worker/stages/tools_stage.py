"""The tools stage: runs the calls of a round concurrently; each result is a checkpoint."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import NamedTuple

import orjson

from stagebus.shared.domain.events import ApprovalDecided, Event, StageCompleted, ToolResult, ToolSummary
from stagebus.shared.domain.stage_results import ToolCallRequest, ToolOutcome, ToolStageResult
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.worker.stages.approval_gate import ApprovalGate, WaitingCall
from stagebus.worker.stages.call_plan import Checkpoints, PlannedCall, plan_calls
from stagebus.worker.stages.call_runner import CallRunner, RunIdentity
from stagebus.worker.stages.tool_round import RoundAction, ToolRound
from stagebus.worker.tools.toolset import Toolset


class RoundLimits(NamedTuple):
    """How many calls a round may have and how long they may take together; calls beyond that get an error result."""

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
    is_cut_off: bool = False,
) -> AsyncGenerator[Event, None]:
    """Runs every call that has no result yet and yields each result as it arrives.

    A call that is identical to an earlier one of the round does not run: it has a `ToolCall` and a
    `ToolResult` of its own, with the earlier call's content. A call that needs a decision waits at the
    gate; if a person denies or answers it, it has no `ToolCall`.

    Args:
        allowed: the tools that the request offers; a call of any other tool gets an error result.
        until_stored: returns when everything yielded so far is in the log. A tool that is not
            idempotent starts only after that.
        is_cut_off: whether the answer with the calls ended before the model had finished; every call then gets an
            error result that says so.

    Yields:
        `ApprovalRequired` or `InputRequired` for each waiting call that was not asked about before,
        `ApprovalDecided` for each decision, `ToolCall` for each call that never started, any
        number of `ToolProgress`, `ToolResult` as each call ends, then one `ToolSummary` and one
        `StageCompleted`.

    Raises:
        Parked: every call that is left waits for a decision.
    """
    results = dict(checkpoints.results)
    plan = plan_calls(
        calls,
        toolset,
        allowed=allowed,
        calls_max=limits.calls_max,
        started=checkpoints.started,
        is_cut_off=is_cut_off,
    )
    open_calls = [planned for planned in plan if planned.request.id not in results]
    held = [waiting for planned in open_calls if (waiting := await _as_waiting(planned, checkpoints))]
    for asked in await gate.hold(held):
        yield asked
    tool_round = ToolRound(stage_id, open_calls, gate, checkpoints)
    events = _run_round(tool_round, CallRunner(stage_id, identity, limits.timeout_s), gate, until_stored)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, ToolResult):
                results[event.call_id] = event
            yield event
    outcomes = [
        _outcome(gate.with_approved_arguments(planned).request, results[planned.request.id]) for planned in plan
    ]
    yield ToolSummary(stage_id=stage_id, tool_summary=outcomes)
    yield StageCompleted(stage_id=stage_id, result=ToolStageResult(outcomes=outcomes).model_dump())


async def _run_round(
    tool_round: ToolRound,
    runner: CallRunner,
    gate: ApprovalGate,
    until_stored: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Event, None]:
    """Carries out the round's actions and yields the events of its calls."""

    def on_decision() -> None:
        tool_round.decisions_changed()
        runner.wake()

    watching = asyncio.create_task(gate.watch(on_decision))
    try:
        while (action := tool_round.next_action()) is not RoundAction.FINISH:
            match action:
                case RoundAction.START:
                    starting = tool_round.start_ready()
                    for call in starting.announced:
                        yield call
                    if starting.must_be_stored_first:
                        await until_stored()
                    runner.start(starting.to_run)
                    events: Iterable[Event] = starting.results
                case RoundAction.READ_DECISIONS:
                    events = await _read_decisions(tool_round, gate)
                case RoundAction.AWAIT_EVENTS:
                    events = _with_copies(await runner.next_events(), tool_round)
                case RoundAction.PARK:
                    raise gate.park()
            for event in events:
                yield event
    finally:
        await cancel_and_wait(watching)
        await runner.aclose()


async def _read_decisions(tool_round: ToolRound, gate: ApprovalGate) -> list[ApprovalDecided]:
    tool_round.begin_read()
    decided = await gate.take_decided()
    tool_round.add_decided(decided)
    return decided


def _with_copies(events: Iterable[Event], tool_round: ToolRound) -> Iterator[Event]:
    """Yields the events, and after each result the results of the calls that share it."""
    for event in events:
        yield event
        if isinstance(event, ToolResult):
            yield from tool_round.add_result(event)


async def _as_waiting(planned: PlannedCall, checkpoints: Checkpoints) -> WaitingCall | None:
    """Returns the call as one that waits for a decision; None if it needs none, or if its arguments are invalid."""
    call, tool = planned.request, planned.tool
    if tool is None or call.id in checkpoints.started:
        return None
    is_asked = call.id in checkpoints.approvals.expires_at  # although its tool may need no approval now
    if not (tool.requires_approval or tool.asks_user or is_asked) or await tool.check(call.arguments) is not None:
        return None
    return WaitingCall(call, orjson.loads(call.arguments)["question"] if tool.asks_user else None)


def _outcome(call: ToolCallRequest, result: ToolResult) -> ToolOutcome:
    return ToolOutcome(
        call_id=call.id, name=call.name, arguments=call.arguments, content=result.content, is_error=result.is_error
    )
