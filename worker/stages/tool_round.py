"""The state of one round of tool calls. Sans-IO: the tools stage carries out each action and reports its outcome.

A call moves through these states; the round's next action follows from the states that are in use:

    waiting ──decided──▶ ready ──start──▶ running ──result──▶ ended
                           │                 └──deferred──▶ open ──result──▶ ended
                           ├── a client runs it ──▶ open
                           └── denied, answered, or identical to an ended call ──▶ ended

    action          when                                           then
    START           calls are ready                                `start_ready`
    READ_ANSWERS    calls wait or are open, and a decision or      `begin_read`, `add_decided`, `add_result`
                    a result may have come
    AWAIT_EVENTS    calls run                                      `add_result` for each result, `add_deferred`
    PARK            calls wait or are open, and nothing else is    the run leaves its worker
                    left to do
    FINISH          every call has its result                      the stage completes
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from stagebus.shared.domain.events import ApprovalDecided, ToolCall, ToolResult
from stagebus.shared.domain.stage_results import ToolCallRequest
from stagebus.worker.stages.approval_gate import ApprovalGate
from stagebus.worker.stages.call_plan import Checkpoints, PlannedCall
from stagebus.worker.stages.deferred_calls import DeferredCalls


class RoundAction(Enum):
    """The next thing that the tools stage does."""

    START = auto()
    READ_ANSWERS = auto()
    AWAIT_EVENTS = auto()
    PARK = auto()
    FINISH = auto()


class StartingCalls(NamedTuple):
    """The calls that leave the ready state.

    Attributes:
        announced: an event for each call that never started before.
        to_run: calls for the runner.
        to_open: calls that wait for a result without running here.
        results: results that are known without running anything.
        must_be_stored_first: one of `to_run` may run only once, or may be answered from outside, so its `ToolCall`
            has to be in the log before.
    """

    announced: list[ToolCall]
    to_run: list[PlannedCall]
    to_open: list[PlannedCall]
    results: list[ToolResult]
    must_be_stored_first: bool


class ToolRound:
    """Tracks the calls of one round that had no result when this attempt began."""

    def __init__(
        self,
        stage_id: str,
        plan: Sequence[PlannedCall],
        gate: ApprovalGate,
        deferred: DeferredCalls,
        checkpoints: Checkpoints,
    ) -> None:
        """`gate` already holds the calls of `plan` that wait for a decision."""
        self._stage_id = stage_id
        self._plan = plan
        self._gate = gate
        self._deferred = deferred
        self._started_before = checkpoints.started
        self._results = dict(checkpoints.results)
        self._ready = [planned for planned in plan if not gate.holds(planned)]
        self._running: set[str] = set()
        self._is_read_due = True

    def next_action(self) -> RoundAction:
        """Returns what to do next; see the table above."""
        if self._ready:
            return RoundAction.START
        is_waiting = self._gate.has_waiting or bool(self._deferred.open_ids)
        if is_waiting and self._is_read_due:
            return RoundAction.READ_ANSWERS
        if self._running:
            return RoundAction.AWAIT_EVENTS
        return RoundAction.PARK if is_waiting else RoundAction.FINISH

    def start_ready(self) -> StartingCalls:
        """Moves the ready calls on: to running, to open, or to ended if no tool has to run for them."""
        ready, self._ready = self._ready, []
        admitted = [self._gate.with_approved_arguments(planned) for planned in ready if not self._is_rejected(planned)]
        requests = [planned.request for planned in admitted]
        firsts = [planned for planned in admitted if planned.same_as is None]
        to_open = [planned for planned in firsts if self._deferred.must_wait(planned)]
        to_run = [planned for planned in firsts if not self._deferred.must_wait(planned)]
        self._running |= {planned.request.id for planned in to_run}
        self._read_before_parking()
        return StartingCalls(
            [self._announcement(call) for call in requests if call.id not in self._started_before],
            to_run,
            to_open,
            [*self._rejections(ready), *self._copies(ready, self._results)],
            any(
                planned.tool is not None and (planned.tool.is_deferred or not planned.tool.idempotent)
                for planned in to_run
            ),
        )

    def add_result(self, result: ToolResult) -> list[ToolResult]:
        """Moves a running or open call to ended; returns the results of the calls that share this one."""
        self._running.discard(result.call_id)
        self._results[result.call_id] = result
        self._read_before_parking()
        return self._copies(self._plan, {result.call_id: result})

    def add_deferred(self, call_id: str) -> None:
        """Notes that a running call waits for a result now, which may be there already."""
        self._running.discard(call_id)
        self._is_read_due = True

    def answers_changed(self) -> None:
        """Notes that a decision or a result may have been stored since the last read."""
        self._is_read_due = True

    def begin_read(self) -> None:
        """Notes that the decisions and results are read now. A change from here on, even during the read, asks for another one."""
        self._is_read_due = False

    def add_decided(self, decided: Sequence[ApprovalDecided]) -> None:
        """Moves the decided calls, and the calls identical to them, to ready."""
        for event in decided:
            self._ready += [planned for planned in self._plan if event.call_id in (planned.request.id, planned.same_as)]

    def _read_before_parking(self) -> None:
        # The last answer may have arrived without a notification. One more read is cheaper than parking in vain.
        self._is_read_due = self._is_read_due or not self._running

    def _announcement(self, call: ToolCallRequest) -> ToolCall:
        return ToolCall(stage_id=self._stage_id, call_id=call.id, name=call.name, arguments=call.arguments)

    def _is_rejected(self, planned: PlannedCall) -> bool:
        return self._gate.reply_to(planned) is not None

    def _rejections(self, ready: Sequence[PlannedCall]) -> list[ToolResult]:
        return [
            ToolResult(
                stage_id=self._stage_id,
                call_id=planned.request.id,
                name=planned.request.name,
                content=reply.content,
                is_error=reply.is_error,
                same_as=planned.same_as,
            )
            for planned in ready
            if (reply := self._gate.reply_to(planned)) is not None
        ]

    def _copies(self, plan: Sequence[PlannedCall], results: dict[str, ToolResult]) -> list[ToolResult]:
        return [
            results[planned.same_as].model_copy(update={"call_id": planned.request.id, "same_as": planned.same_as})
            for planned in plan
            if planned.same_as in results and not self._is_rejected(planned)
        ]
