"""Calls that wait for a person: asked about once and decided once, across any number of attempts."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.events import ApprovalRequired, ToolCall, ToolSummary
from stagebus.shared.domain.stage_results import ToolCallRequest
from stagebus.worker.stages.approval_gate import DENIED, EXPIRED
from stagebus.worker.stages.call_plan import OUTCOME_UNKNOWN
from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.registry import ToolRegistry
from tests.support.fake_approver import FakeApprover
from tests.support.stage_attempts import WAIT_S, Stage
from tests.support.waiting import until

APPROVE, DENY = Decision(decision="approve"), Decision(decision="deny")

ran: list[str] = []
lets_go = asyncio.Event()


@tool(requires_approval=True, idempotent=False)
def pay(amount: int) -> str:
    """Pay."""
    ran.append(f"paid {amount}")
    return f"paid {amount}"


async def slow() -> str:
    """Take as long as the test wants."""
    await lets_go.wait()
    return "slow"


@pytest.fixture
async def registry() -> AsyncIterator[ToolRegistry]:
    ran.clear()
    lets_go.clear()
    registry = ToolRegistry.from_settings(Settings(tools=tuple(f"{__name__}:{f}" for f in ("pay", "slow"))))
    yield registry
    await registry.aclose()


def paying(call_id: str, amount: int = 5) -> ToolCallRequest:
    return ToolCallRequest(id=call_id, name="pay", arguments=f'{{"amount": {amount}}}')


SLOW = ToolCallRequest(id="s", name="slow", arguments="{}")
ASKING = ToolCallRequest(id="q", name="ask_user", arguments='{"question": "Which?"}')


async def test_call_waits_and_runs_after_its_approval(registry: ToolRegistry) -> None:
    person = FakeApprover()
    stage = Stage(registry, [paying("1")], person)
    parked = await stage.attempt()
    assert parked is not None
    assert (parked.due_ms, parked.seen) == (person.now_ms + WAIT_S * 1000, person.seen())
    assert (stage.names(), ran) == (["approval_required"], [])

    person.now_ms += 1
    assert await stage.attempt() is not None, "a claim before the decision parks the run again"
    assert stage.names() == ["approval_required"], "and asks nothing twice"

    person.decide("1", APPROVE)
    assert await stage.attempt() is None
    assert stage.names()[1:] == ["approval_decided", "tool_call", "tool_result", "tool_summary", "stage_completed"]
    assert ran == ["paid 5"]


DECISIONS = {
    "denied": (DENY, DENIED),
    "denied with a reason": (Decision(decision="deny", reason="too much"), "too much"),
    "expired": (None, EXPIRED),
}


@pytest.mark.parametrize(("decision", "told"), DECISIONS.values(), ids=DECISIONS)
async def test_denied_call_never_starts_and_the_model_gets_the_reason(
    registry: ToolRegistry, decision: Decision | None, told: str
) -> None:
    person = FakeApprover()
    stage = Stage(registry, [paying("1")], person)
    parked = await stage.attempt()
    assert parked is not None
    if decision is not None:
        person.decide("1", decision)
    person.now_ms = parked.due_ms
    await stage.attempt()

    assert stage.names() == [
        "approval_required", "approval_decided", "tool_result", "tool_summary", "stage_completed",
    ]  # fmt: skip
    assert (stage.result("1").is_error, ran) == (True, [])
    assert told in stage.result("1").content


async def test_decision_made_as_the_call_expires_counts(registry: ToolRegistry) -> None:
    """The clock and the person use one script, and the first decision counts."""
    person = FakeApprover()
    stage = Stage(registry, [paying("1")], person)
    parked = await stage.attempt()
    assert parked is not None
    person.now_ms = parked.due_ms
    person.expire = lambda _: asyncio.sleep(0, APPROVE)  # type: ignore[method-assign]
    await stage.attempt()

    assert ran == ["paid 5"]


async def test_arguments_changed_by_an_approval_are_used(registry: ToolRegistry) -> None:
    person = FakeApprover()
    stage = Stage(registry, [paying("1")], person)
    person.decide("1", Decision(decision="approve", arguments='{"amount":2}'))
    await stage.attempt()

    (call,) = [event for event in stage.log if isinstance(event, ToolCall)]
    (summary,) = [event for event in stage.log if isinstance(event, ToolSummary)]
    assert call.arguments == summary.tool_summary[0].arguments == '{"amount":2}'
    assert ran == ["paid 2"]


async def test_answer_of_a_person_is_the_result(registry: ToolRegistry) -> None:
    person = FakeApprover()
    stage = Stage(registry, [ASKING], person)
    await stage.attempt()
    person.decide("q", Decision(decision="answer", text="the blue one"))
    await stage.attempt()

    assert stage.names() == ["input_required", "approval_decided", "tool_result", "tool_summary", "stage_completed"]
    assert (stage.result("q").content, stage.result("q").is_error) == ("the blue one", False)


async def test_calls_without_approval_run_before_the_stage_parks(registry: ToolRegistry) -> None:
    lets_go.set()
    stage = Stage(registry, [paying("1", 1), SLOW, paying("2", 2)], FakeApprover())
    parked = await stage.attempt()

    assert parked is not None
    assert stage.result("s").content == "slow"
    assert stage.names() == ["approval_required", "approval_required", "tool_call", "tool_result"]


SAME = {
    "approved": (APPROVE, ["tool_call", "tool_call", "tool_result", "tool_result"], "paid 5"),
    "denied": (DENY, ["tool_result", "tool_result"], DENIED),
}


@pytest.mark.parametrize(("decision", "names", "told"), SAME.values(), ids=SAME)
@pytest.mark.parametrize("dies_after", ["", "approval_decided", "tool_result"])
async def test_identical_calls_are_asked_about_once_and_share_the_outcome(
    registry: ToolRegistry, decision: Decision, names: list[str], told: str, dies_after: str
) -> None:
    stage = Stage(registry, [paying("1"), paying("2")], FakeApprover(**{"1": decision}))
    if dies_after:
        await stage.attempt(dies_after)
    await stage.attempt()

    assert stage.names() == ["approval_required", "approval_decided", *names, "tool_summary", "stage_completed"]
    assert [stage.result(call_id).content for call_id in ("1", "2")] == [told, told]
    assert len(ran) == (decision is APPROVE)


async def test_decided_call_continues_while_others_wait(registry: ToolRegistry) -> None:
    person = FakeApprover()
    stage = Stage(registry, [paying("1", 1), paying("2", 2)], person)
    await stage.attempt()
    person.decide("2", APPROVE)
    parked = await stage.attempt()
    assert (ran, parked is not None) == (["paid 2"], True)

    person.decide("1", DENY)
    assert await stage.attempt() is None
    assert ran == ["paid 2"]
    assert stage.names().count("approval_decided") == 2


async def test_decision_during_another_call_needs_no_parking(registry: ToolRegistry) -> None:
    person = FakeApprover()
    stage = Stage(registry, [paying("1"), SLOW], person)
    working = asyncio.create_task(stage.attempt())
    await until(lambda: "tool_call" in stage.names())
    person.decide("1", APPROVE)
    await until(lambda: ran)
    lets_go.set()

    assert await asyncio.wait_for(working, 5) is None
    assert stage.names()[-1] == "stage_completed"


DEATHS = {
    "after it asked": ("approval_required", ["paid 5"], "paid 5"),
    "after it was decided": ("approval_decided", ["paid 5"], "paid 5"),
    "as the call began": ("tool_call", [], OUTCOME_UNKNOWN),
    "with the result": ("tool_result", ["paid 5"], "paid 5"),
}


@pytest.mark.parametrize(("event", "paid", "told"), DEATHS.values(), ids=DEATHS)
async def test_worker_death_asks_nothing_twice_and_runs_nothing_twice(
    registry: ToolRegistry, event: str, paid: list[str], told: str
) -> None:
    stage = Stage(registry, [paying("1")], FakeApprover(**{"1": APPROVE}))
    await stage.attempt(dies_after=event)
    await stage.attempt()

    assert {stage.names().count(name) for name in ("approval_required", "approval_decided", "tool_call")} == {1}
    assert (ran, stage.result("1").content) == (paid, told)


async def test_denial_survives_a_worker_death(registry: ToolRegistry) -> None:
    stage = Stage(registry, [paying("1")], FakeApprover(**{"1": DENY}))
    await stage.attempt(dies_after="approval_decided")
    await stage.attempt()

    assert (ran, stage.names().count("tool_call"), stage.result("1").content) == ([], 0, DENIED)


async def test_call_with_a_logged_request_waits_although_its_tool_changed(registry: ToolRegistry) -> None:
    stage = Stage(registry, [SLOW], FakeApprover())
    stage.log = [ApprovalRequired(stage_id="tools", call_id="s", name="slow", arguments="{}", expires_at=10**12)]

    assert await stage.attempt() is not None
    assert stage.names() == ["approval_required"]


@pytest.mark.parametrize(
    "call",
    [
        ToolCallRequest(id="1", name="pay", arguments='{"amount": "much"}'),
        ToolCallRequest(id="1", name="pay", arguments=""),
        ToolCallRequest(id="1", name="ask_user", arguments="{}"),
    ],
    ids=["wrong", "none", "no question"],
)
async def test_call_that_cannot_run_needs_no_approval(registry: ToolRegistry, call: ToolCallRequest) -> None:
    stage = Stage(registry, [call], FakeApprover())

    assert await stage.attempt() is None
    assert stage.names()[:2] == ["tool_call", "tool_result"]
    assert stage.result("1").is_error
