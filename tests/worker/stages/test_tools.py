"""The tools stage: checkpoints, once-only tools, refusals."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from shared.events import Event, StageCompleted, ToolCall, ToolCallRequest, ToolResult, ToolSummary
from shared.settings import Settings
from worker.stages.tools import OUTCOME_UNKNOWN, Checkpoints, tools_stage
from worker.tools.functions import tool
from worker.tools.registry import ToolRegistry

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


async def forever() -> str:
    """Never return."""
    await asyncio.Event().wait()
    return ""


@pytest.fixture
async def registry() -> AsyncIterator[ToolRegistry]:
    ran.clear()
    registry = ToolRegistry.from_settings(Settings(tools=tuple(f"{__name__}:{f}" for f in ("echo", "pay", "forever"))))
    yield registry
    await registry.aclose()


def call(call_id: str, name: str, arguments: str) -> ToolCallRequest:
    return ToolCallRequest(id=call_id, name=name, arguments=arguments)


Run = Callable[..., Any]


async def collect(registry: ToolRegistry, calls: Sequence[ToolCallRequest], **options: Any) -> list[Event]:
    async def stored() -> None:
        return None

    stage = tools_stage(
        "tools",
        calls,
        registry,
        allowed=options.pop("allowed", frozenset(registry.names())),
        calls_max=options.pop("calls_max", 10),
        checkpoints=options.pop("checkpoints", Checkpoints()),
        until_stored=options.pop("until_stored", stored),
    )
    return [event async for event in stage]


def results(events: Sequence[Event]) -> dict[str, ToolResult]:
    return {event.call_id: event for event in events if isinstance(event, ToolResult)}


async def test_calls_run_and_are_summed_up_in_the_order_of_asking(registry: ToolRegistry) -> None:
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


async def test_call_with_a_result_is_not_run_again(registry: ToolRegistry) -> None:
    calls = [call("1", "echo", '{"text": "a"}'), call("2", "echo", '{"text": "b"}')]
    done = ToolResult(stage_id="tools", call_id="1", name="echo", content="from before")
    checkpoints = Checkpoints(frozenset({"1", "2"}), {"1": done})

    events = await collect(registry, calls, checkpoints=checkpoints)

    assert ran == ["b"]
    assert not [event for event in events if isinstance(event, ToolCall)], "one tool_call a call, whoever runs it"
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
        (call("1", "nothing", "{}"), "there is no tool 'nothing' here"),
        (call("1", "pay", "{}"), "there is no tool 'pay' here"),
        (call("1", "echo", '{"txet": "a"}'), "text"),
        (call("1", "echo", "not json"), "JSON"),
    ],
    ids=["unknown", "not offered", "wrong argument", "no JSON"],
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
        "tools", [call("1", "forever", "{}")], registry, allowed=frozenset({"forever"}), calls_max=1,
        checkpoints=Checkpoints(), until_stored=stored,
    )  # fmt: skip
    await anext(stage)
    waiting = asyncio.create_task(anext(stage))
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await stage.aclose()

    assert not [task for task in asyncio.all_tasks() if "Tool" in str(task.get_coro())]
