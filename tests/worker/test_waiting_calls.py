"""Runs with calls that wait for a result, with the runner and its scripts."""

from typing import Any

import orjson
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import call_results
from stagebus.shared.domain.call_results import LAPSED, CallResult
from stagebus.shared.domain.cursor import START
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.log import log_reader
from stagebus.shared.runtime.call_tokens import CallTokens
from stagebus.shared.storage import keys
from stagebus.shared.store import parking, run_store, waiting_calls
from stagebus.worker.execution.outcome import Disposition, Outcome
from stagebus.worker.execution.runner import Runner
from stagebus.worker.model.model_client import ModelClient
from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import Deferred
from tests.support.waiting_runs import CallingModel, is_due, park, resume, text

SECRET = "a secret of these tests, and no other"
CLIENT_TOOL = {"name": "read_file", "once": True}
contexts: list[ToolContext] = []


@tool(deferred=True)
async def render(context: ToolContext) -> Deferred:
    """Start a job."""
    contexts.append(context)
    return Deferred(expires_in=60)


@pytest.fixture
def model() -> ModelClient:
    return CallingModel()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    update = {"secret": SecretStr(SECRET), "public_url": "https://bus.example/"}
    return settings.model_copy(update=update)


@pytest.fixture
def runner(runner: Runner, settings: Settings) -> Runner:
    contexts.clear()
    runner._tools = ToolRegistry([render], settings)
    return runner


@pytest.mark.parametrize(
    "request_",
    [{"tools": ["read_file"], "client_tools": [CLIENT_TOOL]}, {"tools": ["render"]}],
    ids=["client", "deferred"],
)
async def test_result_from_outside_continues_the_run(
    redis: Redis, settings: Settings, runner: Runner, request_: dict[str, Any]
) -> None:
    run_id = await park(redis, settings, runner, **request_)
    assert (await run_store.get_run(redis, run_id)).status is RunStatus.PARKED
    call = await waiting_calls.find(redis, run_id, "c", None)
    assert not await is_due(redis, run_id)
    await waiting_calls.give_result(redis, run_id, call.ref, "c", CallResult(content="from outside"))

    assert await is_due(redis, run_id)
    assert await resume(redis, settings, runner, run_id) == Outcome(Disposition.FINISH)
    assert await text(redis, run_id) == "from outside"
    assert await redis.ttl(keys.results(run_id)) > 0


async def test_tokens_call_is_the_one_in_the_log(redis: Redis, settings: Settings, runner: Runner) -> None:
    run_id = await park(redis, settings, runner, tools=["render"])
    (context,) = contexts
    verified = CallTokens(settings.secrets).verify(context.call_token)
    assert verified is not None
    call, token_id = verified
    waiting = await waiting_calls.find(redis, run_id, "c", None)

    assert (call.run_id, call.call_id, call.ref, token_id) == (run_id, "c", waiting.ref, waiting.token_id)
    await waiting_calls.check_token(redis, await run_store.get_run(redis, run_id), call)
    assert context.result_url == f"https://bus.example/runs/{run_id}/calls/c/result?ticket={context.call_token}"
    events = (await log_reader.read_page(redis, run_id, START, 100)).events
    assert not [event for event in events if context.call_token.encode() in event.data]
    record = await redis.hgetall(keys.run(run_id))
    assert context.call_token.encode() not in orjson.dumps(
        {name.decode(): text.decode() for name, text in record.items()}
    )


async def test_open_system_needs_no_token_in_the_url(redis: Redis, settings: Settings, runner: Runner) -> None:
    """`make up` has no secret that could sign one, and its gateway asks for none."""
    settings = settings.model_copy(update={"secret": None})
    runner._settings = settings
    run_id = await park(redis, settings, runner, tools=["render"])
    (context,) = contexts

    assert context.call_token == ""
    assert context.result_url == f"https://bus.example/runs/{run_id}/calls/c/result"


async def test_run_with_a_claim_that_lapses_is_due_then(redis: Redis, settings: Settings, runner: Runner) -> None:
    """The call may run once, and its client is gone."""
    run_id = await park(redis, settings, runner, tools=["read_file"], client_tools=[CLIENT_TOOL])
    call = await waiting_calls.find(redis, run_id, "c", None)
    until_ms = await parking.lease_call(redis, run_id, call.ref, "c", holder="tab", is_once=True)
    assert await redis.zscore(keys.QUEUE, run_id) == until_ms
    later_ms = await parking.lease_call(redis, run_id, call.ref, "c", holder="tab", is_once=True)
    assert await redis.zscore(keys.QUEUE, run_id) == later_ms, "the claim was renewed"

    await redis.hset(keys.results(run_id), call_results.lease_field(call.ref, "c"), "1 1 tab")  # it has lapsed
    await redis.zadd(keys.QUEUE, {run_id: 10**12})
    assert await resume(redis, settings, runner, run_id) == Outcome(Disposition.FINISH)
    assert await text(redis, run_id) == LAPSED.content
