"""The tools stage: checkpoints, once-only tools, refusals."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import (
    Event,
    StageCompleted,
    ToolCall,
    ToolProgress,
    ToolResult,
    ToolSummary,
)
from stagebus.shared.domain.stage_results import ToolCallRequest
from stagebus.worker.stages.call_plan import OUTCOME_UNKNOWN, Checkpoints
from stagebus.worker.stages.call_runner import RunIdentity
from stagebus.worker.stages.deferred_calls import CallTerms
from stagebus.worker.stages.tools_stage import RoundLimits, tools_stage
from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.tool_context import ToolContext
from tests.support.fake_approver import FakeApprover

IDENTITY = RunIdentity("01RUN", "acme", 7, "ada", {"team": "x"})

ran: list[str] = []


def echo(text: str) -> str:
    """Say it again."""
    ran.append(text)
    return text


@tool(idempotent=False)
def pay(amount: int) -> str:
    """Pay, which must not happen twice."""
    ran.append(f"paid {amount}")
    return "paid"


async def tell(context: ToolContext) -> str:
    """Tell of its progress, and of itself."""
    for place in range(1000):
        context.progress(f"step {place}", place / 999)
    return f"{context.run_id} {context.tenant} {context.tool} {context.attempt} {context.idempotency_key} {context.user} {dict(context.metadata)}"


def tell_from_a_thread(context: ToolContext) -> str:
    """The same from a thread, and on after its result."""
    for place in range(1000):
        context.progress(f"step {place}")
    contexts.append(context)
    return "done"


contexts: list[ToolContext] = []


async def forever() -> str:
    """Never return."""
    await asyncio.Event().wait()
    return ""


TOOLS = ("echo", "pay", "tell", "tell_from_a_thread", "forever")


@pytest.fixture
async def registry() -> AsyncIterator[ToolRegistry]:
    ran.clear()
    registry = ToolRegistry.from_settings(Settings(tools=tuple(f"{__name__}:{f}" for f in TOOLS)))
    yield registry
    await registry.aclose()


def call(call_id: str, name: str, arguments: str) -> ToolCallRequest:
    return ToolCallRequest(id=call_id, name=name, arguments=arguments)


Run = Callable[..., Any]


async def collect(registry: ToolRegistry, calls: Sequence[ToolCallRequest], **options: Any) -> list[Event]:
    async def stored() -> None:
        return None

    checkpoints = options.pop("checkpoints", Checkpoints())
    stage = tools_stage(
        "tools",
        calls,
        registry,
        identity=IDENTITY,
        allowed=options.pop("allowed", frozenset(registry.names())),
        limits=RoundLimits(options.pop("calls_max", 10), options.pop("timeout_s", 10), 60),
        checkpoints=checkpoints,
        source=FakeApprover(),
        terms=CallTerms(),
        until_stored=options.pop("until_stored", stored),
        is_cut_off=options.pop("is_cut_off", False),
    )
    return [event async for event in stage]


def results(events: Sequence[Event]) -> dict[str, ToolResult]:
    return {event.call_id: event for event in events if isinstance(event, ToolResult)}


async def test_calls_of_a_cut_off_answer_do_not_run(registry: ToolRegistry) -> None:
    calls = [call("1", "echo", '{"text": "half of a lon"}'), call("2", "pay", '{"amount": 1}')]
    events = await collect(registry, calls, is_cut_off=True)

    assert {result.is_error for result in results(events).values()} == {True}
    assert all("cut off" in result.content for result in results(events).values())
    assert ran == []
    assert isinstance(events[-1], StageCompleted)


async def test_tool_calls_run_and_are_summarised_in_order(registry: ToolRegistry) -> None:
    calls = [call("1", "echo", '{"text": "a"}'), call("2", "echo", '{"text": "b"}')]

    events = await collect(registry, calls)

    assert [type(event) for event in events] == [
        ToolCall,
        ToolCall,
        ToolResult,
        ToolResult,
        ToolSummary,
        StageCompleted,
    ]
    summary = events[-2]
    assert isinstance(summary, ToolSummary)
    assert [(outcome.call_id, outcome.content) for outcome in summary.tool_summary] == [("1", "a"), ("2", "b")]


async def test_tool_call_with_a_result_is_not_run_again(registry: ToolRegistry) -> None:
    calls = [call("1", "echo", '{"text": "a"}'), call("2", "echo", '{"text": "b"}')]
    done = ToolResult(stage_id="tools", call_id="1", name="echo", content="from before")
    checkpoints = Checkpoints(frozenset({"1", "2"}), {"1": done})

    events = await collect(registry, calls, checkpoints=checkpoints)

    assert ran == ["b"]
    assert not [event for event in events if isinstance(event, ToolCall)], (
        "one tool_call per call, in whatever attempt it runs"
    )
    assert isinstance(events[-2], ToolSummary)
    assert [outcome.content for outcome in events[-2].tool_summary] == ["from before", "b"]


async def test_once_only_tool_that_may_have_run_is_not_run_again(registry: ToolRegistry) -> None:
    calls = [call("1", "pay", '{"amount": 5}')]

    events = await collect(registry, calls, checkpoints=Checkpoints(frozenset({"1"})))

    assert ran == []
    assert results(events)["1"].content == OUTCOME_UNKNOWN
    assert results(events)["1"].is_error


async def test_once_only_tool_starts_after_its_call_is_stored(registry: ToolRegistry) -> None:
    seen: list[list[str]] = []

    async def until_stored() -> None:
        seen.append(list(ran))

    await collect(registry, [call("1", "pay", '{"amount": 5}')], until_stored=until_stored)

    assert seen == [[]], "nothing had run when the call was stored"
    assert ran == ["paid 5"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (call("1", "nothing", "{}"), "there is no tool 'nothing'"),
        (call("1", "pay", "{}"), "there is no tool 'pay'"),
        (call("1", "echo", '{"txet": "a"}'), "text"),
        (call("1", "echo", "not json"), "JSON"),
        (call("1", "echo", f'{{"text": {"[" * 600}{"]" * 600}}}'), "nested too deeply"),
        (call("1", "echo", f'{{"text": "{"x" * 2**20}"}}'), "too many, the limit is 1048576"),
    ],
    ids=["unknown", "not offered", "wrong argument", "no JSON", "deep", "long"],
)
async def test_bad_call_is_an_error_that_the_model_can_read(
    registry: ToolRegistry, asked: ToolCallRequest, told: str
) -> None:
    events = await collect(registry, [asked], allowed=frozenset({"echo"}))

    assert results(events)["1"].is_error
    assert told in results(events)["1"].content


async def test_calls_over_the_limit_are_refused(registry: ToolRegistry) -> None:
    calls = [call(str(i), "echo", f'{{"text": "{i}"}}') for i in range(4)]

    events = await collect(registry, calls, calls_max=2)

    assert sorted(ran) == ["0", "1"]
    assert [results(events)[str(i)].is_error for i in range(4)] == [False, False, True, True]


async def test_closing_the_stage_cancels_its_tools(registry: ToolRegistry) -> None:
    async def stored() -> None:
        return None

    stage = tools_stage(
        "tools", [call("1", "forever", "{}")], registry, identity=IDENTITY, allowed=frozenset({"forever"}),
        limits=RoundLimits(1, 10, 60), checkpoints=Checkpoints(), source=FakeApprover(), terms=CallTerms(),
        until_stored=stored,
    )  # fmt: skip
    await anext(stage)
    waiting = asyncio.create_task(anext(stage))
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await stage.aclose()

    assert not [task for task in asyncio.all_tasks() if "Tool" in str(task.get_coro())]


# --- identical calls ---------------------------------------------------------

SAME = [
    call("1", "echo", '{"text": "a"}'),
    call("2", "echo", '{ "text":"\\u0061" }'),
    call("3", "echo", '{"text": "b"}'),
]


async def test_identical_calls_run_once_and_have_two_results(registry: ToolRegistry) -> None:
    events = await collect(registry, SAME)

    assert sorted(ran) == ["a", "b"]
    assert [event.call_id for event in events if isinstance(event, ToolCall)] == ["1", "2", "3"]
    told = results(events)
    assert [told[i].content for i in "123"] == ["a", "a", "b"]
    assert [told[i].same_as for i in "123"] == [None, "1", None]
    assert isinstance(events[-2], ToolSummary)
    assert [outcome.content for outcome in events[-2].tool_summary] == ["a", "a", "b"]


async def test_calls_that_differ_in_a_large_integer_are_not_identical(registry: ToolRegistry) -> None:
    """As floating-point numbers the two are equal."""
    near = [call("1", "echo", '{"n": 18446744073709551617}'), call("2", "echo", '{"n": 18446744073709551618}')]

    assert [result.same_as for result in results(await collect(registry, near)).values()] == [None, None]


@pytest.mark.parametrize("stored", range(4))
async def test_identical_calls_share_their_result_after_a_crash(registry: ToolRegistry, stored: int) -> None:
    """The crash comes after any result: the next attempt continues from the log and runs nothing twice."""
    first = [event for event in await collect(registry, SAME) if isinstance(event, ToolResult)][:stored]
    ran.clear()
    checkpoints = Checkpoints(frozenset("123"), {result.call_id: result for result in first})

    events = await collect(registry, SAME, checkpoints=checkpoints)

    told = {**checkpoints.results, **results(events)}
    assert [told[i].content for i in "123"] == ["a", "a", "b"]
    assert sorted(ran) == sorted({"a", "b"} - {result.content for result in first})


async def test_identical_once_only_calls_run_once_and_never_after_a_crash(registry: ToolRegistry) -> None:
    twice = [call("1", "pay", '{"amount": 5}'), call("2", "pay", '{"amount":5}')]

    await collect(registry, twice)
    after_crash = results(await collect(registry, twice, checkpoints=Checkpoints(frozenset({"1"}))))
    assert ran == ["paid 5"]
    assert {result.content for result in after_crash.values()} == {OUTCOME_UNKNOWN}


@pytest.mark.parametrize(
    "others",
    [('{"text": 1}', '{"text": "1"}'), ("{", "{}"), ('{"text": "a"}', '{"text": "a", "more": 1}')],
    ids=["types", "no JSON", "more"],
)
async def test_calls_with_different_arguments_are_not_identical(
    registry: ToolRegistry, others: tuple[str, str]
) -> None:
    told = results(await collect(registry, [call(str(i), "echo", text) for i, text in enumerate(others)]))

    assert {result.same_as for result in told.values()} == {None}


# --- the round's limits ------------------------------------------------------


async def test_round_beyond_its_time_limit_has_error_results(registry: ToolRegistry) -> None:
    calls = [call("1", "echo", '{"text": "a"}'), call("2", "forever", "{}")]

    told = results(await collect(registry, calls, timeout_s=0.05))
    assert told["1"].content == "a"
    assert told["2"].is_error
    assert told["2"].content == "no result came before the calls of this round reached their limit of 0.05 s together"


# --- progress and context ----------------------------------------------------


@pytest.mark.parametrize("name", ["tell", "tell_from_a_thread"])
async def test_progress_is_throttled_and_keeps_the_last_message(registry: ToolRegistry, name: str) -> None:
    events = await collect(registry, [call("1", name, "{}")])

    told = [event for event in events if isinstance(event, ToolProgress)]
    assert told[-1].message == "step 999"
    assert told[-1].fraction == (1.0 if name == "tell" else None)
    assert len(told) < 10, "a thousand messages in quick succession"
    kinds = [type(event) for event in events]
    assert kinds.index(ToolCall) < kinds.index(ToolProgress)
    assert ToolProgress not in kinds[kinds.index(ToolResult) :]


async def test_progress_after_the_result_is_dropped(registry: ToolRegistry) -> None:
    contexts.clear()
    await collect(registry, [call("1", "tell_from_a_thread", "{}")])

    contexts[0].progress("too late")
    await asyncio.sleep(0)


async def test_tool_context_identifies_the_call(registry: ToolRegistry) -> None:
    told = results(await collect(registry, [call("c1", "tell", "{}")]))

    assert told["c1"].content == "01RUN acme tell 7 01RUN:c1 ada {'team': 'x'}"
