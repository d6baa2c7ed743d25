"""The runner against a real server: a run comes to its end whatever stands in its record."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from shared import keys, log, scripts, store
from shared.cursor import START
from shared.line import Line
from shared.pubsub import Channels
from shared.runs import RunStatus
from shared.settings import Settings
from worker.lease import LeaseKeeper
from worker.model.client import Model, ModelRequest
from worker.runner import Outcome, Runner
from worker.tools.registry import ToolRegistry

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [], "timeout_s": 60}
ANSWER = {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": "stop"}]}


class ScriptedModel(Model):
    """Says hello; with `holds_on`, only once it is let go."""

    def __init__(self) -> None:
        self.lets_go = asyncio.Event()
        self.lets_go.set()
        self.asked = asyncio.Event()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[dict[str, Any], None]:
        self.asked.set()
        await self.lets_go.wait()
        yield ANSWER


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel()


@pytest.fixture
async def runner(redis: Redis, settings: Settings, model: ScriptedModel) -> AsyncIterator[Runner]:
    line, channels, keeper = Line(redis, 5), Channels(redis, lambda: None), LeaseKeeper(settings)
    tools = ToolRegistry.from_settings(settings)
    await channels.start()
    keeper.start()
    yield Runner(redis, settings, line=line, worker="w", model=model, tools=tools, keeper=keeper, channels=channels)
    keeper.stop()
    await channels.stop()
    await line.aclose()
    await tools.aclose()


async def queued(redis: Redis, settings: Settings, request: dict[str, Any] | None = None) -> str:
    """A run whose lease this worker has."""
    run_id = await store.create_run(redis, settings, tenant="t", model="m", request=request or REQUEST)
    assert await scripts.take(redis, run_id, "token", settings.lease_s)
    return run_id


async def names(redis: Redis, run_id: str) -> list[str]:
    page = await log.read_page(redis, run_id, START, 1000)
    return [event.event.decode() for event in page.events]


async def test_run_is_carried_out_to_its_end(redis: Redis, settings: Settings, runner: Runner) -> None:
    run_id = await queued(redis, settings)

    assert await asyncio.wait_for(runner.run(run_id, "token"), 10) == Outcome(is_over=True)
    assert await names(redis, run_id) == [
        "run_queued", "run_started", "stage_started", "tool_completion_chunk", "stage_completed", "done",
    ]  # fmt: skip
    assert (await store.get_run(redis, run_id)).status is RunStatus.SUCCEEDED
    assert await redis.zscore(keys.ACTIVE, run_id) is None


async def test_run_that_has_ended_is_over_and_stays_as_it_is(redis: Redis, settings: Settings, runner: Runner) -> None:
    run_id = await queued(redis, settings)
    await store.cancel_run(redis, settings, run_id)

    assert await asyncio.wait_for(runner.run(run_id, "token"), 10) == Outcome(is_over=True)
    assert await names(redis, run_id) == ["run_queued", "cancel"]


async def test_cancel_reaches_a_model_that_says_nothing(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel
) -> None:
    model.lets_go.clear()
    run_id = await queued(redis, settings)
    running = asyncio.create_task(runner.run(run_id, "token"))
    await asyncio.wait_for(model.asked.wait(), 10)
    assert await scripts.cancel(redis, run_id)
    await asyncio.wait_for(running, 10)

    assert (await names(redis, run_id))[-1] == "cancel"
    assert runner._channels._handlers.keys() == {runner._channels._canary}, "the run's channel was given up"
    assert runner._keeper._held == {}


async def test_drained_run_is_given_back_with_all_that_it_wrote(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel
) -> None:
    model.lets_go.clear()
    run_id = await queued(redis, settings)
    running = asyncio.create_task(runner.run(run_id, "token"))
    await asyncio.wait_for(model.asked.wait(), 10)
    runner.give_back_now()
    outcome = await asyncio.wait_for(running, 10)
    run = await store.get_run(redis, run_id)

    assert outcome == Outcome(is_over=False, attempt=run.attempt)
    assert run.status is RunStatus.RUNNING
    assert (await names(redis, run_id))[-1] == "stage_started"


@pytest.mark.parametrize(
    "request_",
    [{**REQUEST, "of_a_newer_gateway": 1}, {**REQUEST, "timeout_s": "soon"}, {"model": "m"}],
    ids=["unknown field", "no number", "half of it missing"],
)
async def test_run_whose_request_cannot_be_read_ends(
    redis: Redis, settings: Settings, runner: Runner, request_: dict[str, Any]
) -> None:
    run_id = await queued(redis, settings, request_)

    assert await asyncio.wait_for(runner.run(run_id, "token"), 10) == Outcome(is_over=True)
    assert (await names(redis, run_id))[-1] == "error"


async def test_run_whose_log_cannot_be_read_ends(redis: Redis, settings: Settings, runner: Runner) -> None:
    """A stage that a newer version completed, with a field that this one does not know."""
    run_id = await queued(redis, settings)
    claim = await scripts.claim(redis, run_id, "w")
    assert claim is not None
    data = b'{"stage_id":"extraction","result":{},"of_a_newer_worker":1}'
    await scripts.append(
        redis, run_id, attempt=claim.attempt, before=claim.last_id, message=b"", ttl_s=600,
        entries=[scripts.LogEntry("extraction", "stage_completed", data)],
    )  # fmt: skip

    assert await asyncio.wait_for(runner.run(run_id, "token"), 10) == Outcome(is_over=True)
    assert (await names(redis, run_id))[-1] == "error"
