"""The tools stage: runs the calls of a round concurrently; each result is a checkpoint."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import NamedTuple

import orjson

from stagebus.shared.domain.events import Event, StageCompleted, ToolResult, ToolSummary
from stagebus.shared.domain.stage_results import ToolCallRequest, ToolOutcome, ToolStageResult
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.store.parking import Seen
from stagebus.worker.stages.answer_source import AnswerSnapshot, AnswerSource, Parked
from stagebus.worker.stages.approval_gate import ApprovalGate, WaitingCall
from stagebus.worker.stages.call_plan import Checkpoints, PlannedCall, plan_calls
from stagebus.worker.stages.call_runner import CallRunner, RunIdentity
from stagebus.worker.stages.deferred_calls import CallTerms, DeferredCalls, WaitingResult
from stagebus.worker.stages.tool_round import RoundAction, ToolRound
from stagebus.worker.tools.toolset import Toolset


class RoundLimits(NamedTuple):
    """How many calls a round may have and how long they may take together; calls beyond that get an error result.

    Attributes:
        approval_wait_s: how long a call waits for a person.
    """

    calls_max: int
    timeout_s: float
    approval_wait_s: float


class _Outside(NamedTuple):
    """The parts of a round that wait for decisions and results, both read from `source`."""

    source: AnswerSource
    gate: ApprovalGate
    deferred: DeferredCalls


async def tools_stage(  # noqa: PLR0913 - one for each part of the world that calls touch
    stage_id: str,
    calls: Sequence[ToolCallRequest],
    toolset: Toolset,
    *,
    identity: RunIdentity,
    allowed: frozenset[str],
    limits: RoundLimits,
    checkpoints: Checkpoints,
    source: AnswerSource,
    terms: CallTerms,
    until_stored: Callable[[], Awaitable[None]],
    is_cut_off: bool = False,
) -> AsyncGenerator[Event, None]:
    """Runs every call that has no result yet and yields each result as it arrives.

    A call that is identical to an earlier one of the round does not run: it has a `ToolCall` and a
    `ToolResult` of its own, with the earlier call's content. A call that needs a decision waits at the
    gate; if a person denies or answers it, it has no `ToolCall`.

    Args:
        allowed: the tools that the request offers; a call of any other tool gets an error result.
        source: decisions on calls, and results from outside.
        terms: those of calls that wait for a result.
        until_stored: returns when everything yielded so far is in the log. A tool that is not
            idempotent, or may be answered from outside, starts only after that.
        is_cut_off: whether the answer with the calls ended before the model had finished; every call then gets an
            error result that says so.

    Yields:
        `ApprovalRequired` or `InputRequired` for each waiting call that was not asked about before,
        `ApprovalDecided` for each decision, `ToolCall` for each call that never started, any
        number of `ToolProgress`, `CallDeferred` for each call that waits for a result, `ToolResult` as
        each call ends, then one `ToolSummary` and one `StageCompleted`.

    Raises:
        Parked: every call that is left waits for a decision or a result.
    """
    results = dict(checkpoints.results)
    started, calls_max = checkpoints.started - checkpoints.deferred.keys(), limits.calls_max
    plan = plan_calls(calls, toolset, allowed=allowed, calls_max=calls_max, started=started, is_cut_off=is_cut_off)
    plan = [await _checked(planned, checkpoints) for planned in plan]
    open_calls = [planned for planned in plan if planned.request.id not in results]
    held = [waiting for planned in open_calls if (waiting := await _as_waiting(planned, checkpoints))]
    gate = ApprovalGate(stage_id, source, checkpoints.approvals, limits.approval_wait_s)
    outside = _Outside(source, gate, DeferredCalls(stage_id, source, checkpoints, terms))
    for asked in await gate.hold(held):
        yield asked
    tool_round = ToolRound(stage_id, open_calls, gate, outside.deferred, checkpoints)
    runner = CallRunner(stage_id, identity, limits.timeout_s, outside.deferred)
    events = _run_round(tool_round, runner, outside, until_stored)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, ToolResult):
                results[event.call_id] = event
            yield event
    outcomes = [_outcome(gate.with_approved_arguments(call).request, results[call.request.id]) for call in plan]
    yield ToolSummary(stage_id=stage_id, tool_summary=outcomes)
    yield StageCompleted(stage_id=stage_id, result=ToolStageResult(outcomes=outcomes).model_dump())


async def _run_round(
    tool_round: ToolRound,
    runner: CallRunner,
    outside: _Outside,
    until_stored: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Event, None]:
    """Carries out the round's actions and yields the events of its calls."""

    def on_answer() -> None:
        tool_round.answers_changed()
        runner.wake()

    seen = Seen()
    watching = asyncio.create_task(_watch(outside.source, on_answer))
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
                    opened = await outside.deferred.open([WaitingResult(planned) for planned in starting.to_open])
                    events: Iterable[Event] = [*opened, *starting.results]
                case RoundAction.READ_ANSWERS:
                    tool_round.begin_read()
                    snapshot = await outside.source.read(outside.deferred.open_ids)
                    seen = snapshot.seen
                    events = await _take_answers(snapshot, tool_round, outside)
                case RoundAction.AWAIT_EVENTS:
                    events = await _settle(await runner.next_events(), tool_round, outside.deferred)
                case RoundAction.PARK:
                    raise Parked(min(outside.gate.expiries() + outside.deferred.expiries()), seen)
            for event in events:
                yield event
    finally:
        await cancel_and_wait(watching)
        await runner.aclose()


async def _watch(source: AnswerSource, on_answer: Callable[[], None]) -> None:
    """Calls `on_answer` whenever a decision or a result may have been stored; never returns."""
    while True:
        await source.wait_for_change()
        on_answer()


async def _take_answers(snapshot: AnswerSnapshot, tool_round: ToolRound, outside: _Outside) -> list[Event]:
    """Returns the events of the decisions and results that have come."""
    decided = await outside.gate.take_decided(snapshot)
    tool_round.add_decided(decided)
    results = await outside.deferred.take_results(snapshot)
    return [*decided, *await _settle(results, tool_round, outside.deferred)]


async def _settle(
    events: Iterable[Event | WaitingResult], tool_round: ToolRound, deferred: DeferredCalls
) -> list[Event]:
    """Returns the events, and after each result the results of the calls that share it."""
    settled: list[Event] = []
    for event in events:
        if isinstance(event, WaitingResult):
            settled += await deferred.open([event])
            tool_round.add_deferred(event.planned.request.id)
            continue
        settled.append(event)
        if isinstance(event, ToolResult):
            settled += tool_round.add_result(event)
    return settled


async def _checked(planned: PlannedCall, checkpoints: Checkpoints) -> PlannedCall:
    """Returns a client's call as refused if its arguments are invalid: no client has to check them."""
    call, tool = planned.request, planned.tool
    if tool is None or tool.client is None or call.id in checkpoints.deferred:
        return planned
    error = await tool.check(call.arguments)
    return planned if error is None else PlannedCall(call, refusal=error)


async def _as_waiting(planned: PlannedCall, checkpoints: Checkpoints) -> WaitingCall | None:
    """Returns the call as one that waits for a decision; None if it needs none, or if its arguments are invalid."""
    call, tool = planned.request, planned.tool
    if tool is None or call.id in checkpoints.started:
        return None
    if tool.client is not None:  # the client that runs it may ask its user
        return None
    is_asked = call.id in checkpoints.approvals.expires_at  # although its tool may need no approval now
    if not (tool.requires_approval or tool.asks_user or is_asked) or await tool.check(call.arguments) is not None:
        return None
    return WaitingCall(call, orjson.loads(call.arguments)["question"] if tool.asks_user else None)


def _outcome(call: ToolCallRequest, result: ToolResult) -> ToolOutcome:
    return ToolOutcome(
        call_id=call.id, name=call.name, arguments=call.arguments, content=result.content, is_error=result.is_error
    )
