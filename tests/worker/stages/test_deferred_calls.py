"""Calls that wait for a result from outside: announced once and answered once, across any number of attempts."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.call_results import EXPIRED, LAPSED, CallLease
from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.events import CallDeferred
from stagebus.shared.domain.requests import ClientTool
from stagebus.shared.domain.stage_results import ToolCallRequest
from stagebus.shared.runtime.call_tokens import CallToken
from stagebus.worker.tools.client_tools import build_client_tools
from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import Deferred
from stagebus.worker.tools.toolset import Toolset
from tests.support.fake_approver import FakeApprover
from tests.support.stage_attempts import WAIT_S, Stage
from tests.support.waiting import until

TOKEN = "eyJtoken"
PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}

started: list[ToolContext] = []
released: list[asyncio.Event] = []


@tool(deferred=True)
async def render(context: ToolContext, expires_in: float | None = None) -> Deferred:
    """Start a job."""
    started.append(context)
    context.progress(f"started with {context.call_token}")
    return Deferred(expires_in)


@tool(deferred=True, idempotent=False)
async def order(context: ToolContext) -> Deferred:
    """Start a job that must not start twice."""
    started.append(context)
    return Deferred()


@tool(deferred=True)
async def quick(context: ToolContext) -> str:
    """Need nothing outside this time."""
    started.append(context)
    await released[-1].wait()
    return f"the tool's own {context.call_token}"


@tool(deferred=True, requires_approval=True)
async def guarded(context: ToolContext) -> Deferred:
    """Start a job once a person has approved it."""
    started.append(context)
    return Deferred()


async def undeclared() -> Deferred:
    """Forget the declaration."""
    return Deferred()


TOOLS = ("render", "order", "quick", "guarded", "undeclared")


@pytest.fixture
async def toolset() -> AsyncIterator[Toolset]:
    started.clear()
    released[:] = [asyncio.Event()]
    registry = ToolRegistry.from_settings(Settings(tools=tuple(f"{__name__}:{name}" for name in TOOLS)))
    definitions = [
        ClientTool(name="read_file", parameters=PARAMETERS),
        ClientTool(name="pay_once", once=True, expires_in=5),
    ]
    yield registry.snapshot(build_client_tools(definitions, 1000))
    await registry.aclose()


def calling(name: str, arguments: str = "{}", call_id: str = "1") -> ToolCallRequest:
    return ToolCallRequest(id=call_id, name=name, arguments=arguments)


READ = calling("read_file", '{"path": "a"}')


def deferred_of(stage: Stage) -> list[CallDeferred]:
    return [event for event in stage.log if isinstance(event, CallDeferred)]


async def test_call_of_a_client_tool_waits_for_its_result(toolset: Toolset) -> None:
    world = FakeApprover()
    stage = Stage(toolset, [READ], world, ref="7-4")
    parked = await stage.attempt()
    assert parked is not None
    assert (parked.due_ms, parked.seen) == (world.now_ms + WAIT_S * 1000, world.seen())
    assert stage.names() == ["tool_call", "call_deferred"]
    assert deferred_of(stage) == [
        CallDeferred(
            stage_id="tools", call_id="1", name="read_file", arguments='{"path": "a"}', kind="client",
            expires_at=parked.due_ms, ref="7-4",
        )
    ]  # fmt: skip
    world.now_ms += 1
    assert await stage.attempt() is not None
    assert len(stage.names()) == 2, "it is announced once"

    world.answer("1", "the file")
    assert await stage.attempt() is None
    assert stage.names()[2:] == ["tool_result", "tool_summary", "stage_completed"]
    assert stage.result("1").content == "the file"


async def test_worker_that_dies_between_the_two_events_announces_the_call_again(toolset: Toolset) -> None:
    stage = Stage(toolset, [READ], FakeApprover())
    await stage.attempt(dies_after="tool_call")

    assert await stage.attempt() is not None
    assert stage.names() == ["tool_call", "call_deferred"]


async def test_client_is_not_asked_about_invalid_arguments(toolset: Toolset) -> None:
    stage = Stage(toolset, [calling("read_file", '{"path": 1}')], FakeApprover())

    assert await stage.attempt() is None
    assert "do not fit read_file" in stage.result("1").content
    assert deferred_of(stage) == []


@pytest.mark.parametrize(("name", "waits_s"), [("read_file", WAIT_S), ("pay_once", 5)])
async def test_call_expires(toolset: Toolset, name: str, waits_s: float) -> None:
    world = FakeApprover()
    stage = Stage(toolset, [calling(name, '{"path": "a"}')], world)
    await stage.attempt()
    world.now_ms += waits_s * 1000
    assert await stage.attempt() is None

    assert stage.result("1").content == EXPIRED.content
    assert world.results == {"1": EXPIRED}, "so that a late result finds it"


async def test_call_that_runs_once_fails_when_its_client_goes_away(toolset: Toolset) -> None:
    world = FakeApprover()
    stage = Stage(toolset, [calling("pay_once"), calling("read_file", '{"path": "a"}', "2")], world)
    await stage.attempt()
    assert deferred_of(stage)[0].once
    world.leases = {
        "1": CallLease(world.now_ms + 1000, is_once=True, holder="tab"),
        "2": CallLease(world.now_ms + 10, is_once=False, holder="tab"),
    }
    parked = await stage.attempt()
    assert parked is not None
    assert parked.due_ms == world.now_ms + 1000

    world.now_ms += 1000
    assert await stage.attempt() is not None, "the other call goes on waiting, whoever ran it"
    assert stage.result("1").content == LAPSED.content


async def test_identical_calls_ask_the_client_once(toolset: Toolset) -> None:
    world = FakeApprover()
    stage = Stage(toolset, [READ, calling("read_file", '{"path":"a"}', "2")], world)
    await stage.attempt()
    world.answer("1", "the file")
    assert await stage.attempt() is None

    assert [event.call_id for event in deferred_of(stage)] == ["1"]
    assert stage.result("2").content == "the file"


async def test_too_many_waiting_calls_are_refused(toolset: Toolset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagebus.worker.stages.call_plan.OPEN_CALLS_MAX", 2)
    calls = [calling("read_file", f'{{"path": "{at}"}}', str(at)) for at in range(3)]
    stage = Stage(toolset, calls, FakeApprover())
    await stage.attempt()

    assert [event.call_id for event in deferred_of(stage)] == ["0", "1"]
    assert "too many calls wait" in stage.result("2").content


def terms() -> Mapping[str, Any]:
    return {
        "ref": "7-4",
        "token_of": lambda call_id: CallToken(TOKEN, f"id of {call_id}"),
        "result_url_of": lambda call_id, token: f"https://bus.example/{call_id}?{token}",
    }


@pytest.mark.parametrize(("asked", "waits_s"), [("{}", WAIT_S), ('{"expires_in": 3}', 3), ('{"expires_in": 1e9}', 100)])
async def test_deferred_tool_gets_its_token_and_waits(toolset: Toolset, asked: str, waits_s: float) -> None:
    world = FakeApprover()
    stage = Stage(toolset, [calling("render", asked)], world, wait_max_s=100, **terms())
    parked = await stage.attempt()
    assert parked is not None
    assert parked.due_ms == world.now_ms + waits_s * 1000
    assert (started[0].call_token, started[0].result_url) == (TOKEN, f"https://bus.example/1?{TOKEN}")
    assert TOKEN not in repr(started[0])
    (event,) = deferred_of(stage)
    assert (event.kind, event.token_id, event.ref) == ("deferred", "id of 1", "7-4")
    assert not [event for event in stage.log if TOKEN.encode() in event.data()], "no event has the token"

    world.answer("1", "rendered")
    assert await stage.attempt() is None
    assert stage.result("1").content == "rendered"
    assert len(started) == 1


@pytest.mark.parametrize(("name", "starts"), [("render", 2), ("order", 1)])
async def test_worker_dies_after_the_tool_started_something(toolset: Toolset, name: str, starts: int) -> None:
    """A tool that may run twice runs again with the same token; the result of another one may still come."""
    world = FakeApprover()
    stage = Stage(toolset, [calling(name)], world, **terms())
    await stage.attempt(dies_after="tool_call")
    started.append(ToolContext("", ""))  # by the worker that died
    parked = await stage.attempt()

    assert parked is not None
    assert parked.due_ms == world.now_ms + WAIT_S * 1000
    assert stage.names().count("call_deferred") == 1
    assert len(started) == starts
    world.answer("1", "it came")
    assert await stage.attempt() is None
    assert (stage.result("1").content, len(started)) == ("it came", starts)


@pytest.mark.parametrize("name", ["render", "order"])
async def test_early_result_of_a_dead_workers_call_counts(toolset: Toolset, name: str) -> None:
    world = FakeApprover()
    stage = Stage(toolset, [calling(name)], world)
    await stage.attempt(dies_after="tool_call")
    world.answer("1", "early")
    assert await stage.attempt() is None

    assert stage.result("1").content == "early"
    assert started == []


@pytest.mark.parametrize("is_early", [True, False])
async def test_own_result_of_a_deferred_tool_counts_if_it_is_first(toolset: Toolset, is_early: bool) -> None:
    world = FakeApprover()
    stage = Stage(toolset, [calling("quick")], world, **terms())
    attempt = asyncio.create_task(stage.attempt())
    await until(lambda: bool(started))
    if is_early:
        world.answer("1", "from outside")
    released[-1].set()
    assert await attempt is None

    told = "from outside" if is_early else "the tool's own ***"
    assert stage.result("1").content == world.results["1"].content == told


async def test_time_limit_of_a_round_is_a_result_like_any_other(toolset: Toolset) -> None:
    world = FakeApprover()
    stage = Stage(toolset, [calling("quick")], world)
    stage.timeout_s = 0.05
    attempt = asyncio.create_task(stage.attempt())
    await until(lambda: bool(started))
    world.answer("1", "from outside")
    assert await attempt is None

    assert stage.result("1").content == "from outside", "it was accepted, so the model gets it"


async def test_deferred_tool_may_need_an_approval_first(toolset: Toolset) -> None:
    world = FakeApprover()
    stage = Stage(toolset, [calling("guarded")], world)
    await stage.attempt()
    assert (stage.names(), started) == (["approval_required"], [])
    world.decide("1", Decision(decision="approve"))
    assert await stage.attempt() is not None
    world.answer("1", "done")
    assert await stage.attempt() is None

    assert stage.result("1").content == "done"


async def test_deferred_needs_its_declaration(toolset: Toolset) -> None:
    stage = Stage(toolset, [calling("undeclared")], FakeApprover())

    assert await stage.attempt() is None
    assert "deferred=True" in stage.result("1").content
