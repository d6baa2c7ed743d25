"""The state of a round of tool calls: which action follows from the states of its calls."""

from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.events import ToolResult
from stagebus.shared.domain.stage_results import ToolCallRequest
from stagebus.worker.stages.approval_gate import ApprovalGate, WaitingCall
from stagebus.worker.stages.call_plan import Checkpoints, LoggedApprovals, PlannedCall
from stagebus.worker.stages.deferred_calls import CallTerms, DeferredCalls
from stagebus.worker.stages.tool_round import RoundAction, ToolRound
from tests.support.fake_approver import FakeApprover


def planned(call_id: str, same_as: str | None = None) -> PlannedCall:
    return PlannedCall(ToolCallRequest(id=call_id, name="echo", arguments="{}"), same_as=same_as)


def result(call_id: str) -> ToolResult:
    return ToolResult(stage_id="tools", call_id=call_id, name="echo", content="said")


def gate_of(person: FakeApprover) -> ApprovalGate:
    return ApprovalGate("tools", person, LoggedApprovals(), wait_s=60)


def round_of(plan: list[PlannedCall], gate: ApprovalGate, checkpoints: Checkpoints | None = None) -> ToolRound:
    found = checkpoints or Checkpoints()
    deferred = DeferredCalls("tools", FakeApprover(), found, CallTerms())
    return ToolRound("tools", plan, gate, deferred, found)


async def test_round_starts_its_calls_awaits_them_and_finishes() -> None:
    calls = round_of([planned("1"), planned("2")], gate_of(FakeApprover()))
    assert calls.next_action() is RoundAction.START
    assert [call.request.id for call in calls.start_ready().to_run] == ["1", "2"]

    assert calls.next_action() is RoundAction.AWAIT_EVENTS
    calls.add_result(result("1"))
    assert calls.next_action() is RoundAction.AWAIT_EVENTS
    calls.add_result(result("2"))
    assert calls.next_action() is RoundAction.FINISH


async def test_round_without_calls_finishes() -> None:
    assert round_of([], gate_of(FakeApprover())).next_action() is RoundAction.FINISH


async def test_identical_call_shares_the_result_of_a_running_call() -> None:
    calls = round_of([planned("1"), planned("2", same_as="1")], gate_of(FakeApprover()))
    starting = calls.start_ready()

    assert [call.call_id for call in starting.announced] == ["1", "2"]
    assert [call.request.id for call in starting.to_run] == ["1"]
    assert [(copy.call_id, copy.same_as) for copy in calls.add_result(result("1"))] == [("2", "1")]


async def test_identical_call_shares_the_result_of_an_earlier_attempt() -> None:
    checkpoints = Checkpoints(frozenset("12"), {"1": result("1")})
    starting = round_of([planned("2", same_as="1")], gate_of(FakeApprover()), checkpoints).start_ready()

    assert (starting.announced, starting.to_run) == ([], [])
    assert [(copy.call_id, copy.content) for copy in starting.results] == [("2", "said")]


async def test_round_reads_decisions_once_more_before_it_parks() -> None:
    gate = gate_of(FakeApprover())
    await gate.hold([WaitingCall(planned("1").request)])
    calls = round_of([planned("1"), planned("2")], gate)
    calls.start_ready()
    assert calls.next_action() is RoundAction.READ_ANSWERS
    calls.begin_read()
    assert calls.next_action() is RoundAction.AWAIT_EVENTS
    calls.add_result(result("2"))

    assert calls.next_action() is RoundAction.READ_ANSWERS
    calls.begin_read()
    assert calls.next_action() is RoundAction.PARK


async def test_decision_that_changes_during_a_read_is_read_again() -> None:
    gate = gate_of(FakeApprover())
    await gate.hold([WaitingCall(planned("1").request)])
    calls = round_of([planned("1")], gate)
    calls.begin_read()
    calls.answers_changed()
    calls.add_decided([])

    assert calls.next_action() is RoundAction.READ_ANSWERS


async def test_denied_call_ends_without_being_started() -> None:
    person = FakeApprover(**{"1": Decision(decision="deny")})
    gate = gate_of(person)
    await gate.hold([WaitingCall(planned("1").request)])
    calls = round_of([planned("1")], gate)
    calls.begin_read()
    calls.add_decided(await gate.take_decided(await person.read()))
    starting = calls.start_ready()

    assert (starting.announced, starting.to_run) == ([], [])
    assert [denied.is_error for denied in starting.results] == [True]
    assert calls.next_action() is RoundAction.FINISH
