"""Parked runs, with the runner and its scripts: what the wait costs, and how it ends."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import decisions
from stagebus.shared.domain.cursor import START
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.log import log_reader
from stagebus.shared.storage import keys, queue_scripts
from stagebus.shared.store import parking, run_result, run_store
from stagebus.worker.execution.outcome import Disposition, Outcome
from stagebus.worker.execution.runner import Runner
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from stagebus.worker.stages.approval_gate import EXPIRED
from stagebus.worker.tools.ask_user import ask_user
from stagebus.worker.tools.registry import ToolRegistry
from tests.support.runs_by_hand import queued
from tests.support.waiting import until
from tests.support.waiting_runs import CallingModel

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": ["ask_user"], "timeout_s": 60}
WAIT_S = 0.3


class AskingModel(CallingModel):
    """Asks the user. Like a provider, it is slow enough that an expired time limit stops its answer."""

    def __init__(self) -> None:
        super().__init__('{"question": "Which?"}', call_id="q", pause_s=0.02)


@pytest.fixture
def model() -> ModelClient:
    return AskingModel()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"approval_wait_s": WAIT_S})


async def park(redis: Redis, settings: Settings, runner: Runner) -> str:
    """Creates a run that asked the user and was parked."""
    run_id = await queued(redis, settings, REQUEST)
    outcome = await asyncio.wait_for(runner.run(run_id, "token"), 10)
    assert outcome.parked is not None
    assert outcome.attempt is not None
    due_ms, seen = outcome.parked.due_ms, outcome.parked.seen
    assert await parking.park(redis, run_id, token="token", attempt=outcome.attempt, due_ms=due_ms, seen=seen)
    return run_id


async def resume(redis: Redis, settings: Settings, runner: Runner, run_id: str) -> Outcome:

    async def is_due() -> bool:
        return run_id in (await queue_scripts.list_due(redis, 10)).run_ids

    await until(is_due)
    assert await queue_scripts.acquire(redis, run_id, "token", settings.lease_s)
    return await asyncio.wait_for(runner.run(run_id, "token"), 10)


async def answer(redis: Redis, run_id: str) -> None:
    decision = decisions.Decision(decision="answer", text="the blue one")
    await parking.decide(redis, run_id, "q", decisions.encode(decision))


async def text(redis: Redis, run_id: str) -> str | None:
    run = await run_store.get_run(redis, run_id)
    result = await run_result.read_result(redis, run, await run_store.read_stages(redis, run_id))
    return None if result is None else result.text


async def test_answer_continues_a_parked_run(redis: Redis, settings: Settings, runner: Runner) -> None:
    run_id = await park(redis, settings, runner)
    assert (await run_store.get_run(redis, run_id)).status is RunStatus.PARKED
    await answer(redis, run_id)

    assert await resume(redis, settings, runner, run_id) == Outcome(Disposition.FINISH)
    assert await text(redis, run_id) == "the blue one"


async def test_unanswered_question_expires(redis: Redis, settings: Settings, runner: Runner) -> None:
    run_id = await park(redis, settings, runner)

    assert await resume(redis, settings, runner, run_id) == Outcome(Disposition.FINISH)
    assert await text(redis, run_id) == EXPIRED
    page = await log_reader.read_page(redis, run_id, START, 100)
    (decided,) = [event.data for event in page.events if event.event == b"approval_decided"]
    assert b'"is_expired":true' in decided


@pytest.mark.parametrize(
    ("moved", "end"),
    [({"started_at", "parked_at"}, RunStatus.SUCCEEDED), ({"started_at"}, RunStatus.FAILED)],
    ids=["parked", "at work"],
)
async def test_time_limit_excludes_the_wait_of_a_parked_run(
    redis: Redis, settings: Settings, runner: Runner, moved: set[str], end: RunStatus
) -> None:
    """It waited for two minutes; the limit is one."""
    run_id = await park(redis, settings, runner)
    await answer(redis, run_id)
    for field in moved:
        await redis.hincrby(keys.run(run_id), field, -120_000)
    await resume(redis, settings, runner, run_id)

    assert (await run_store.get_run(redis, run_id)).status is end


async def test_keys_of_a_parked_run_have_no_ttl(redis: Redis, settings: Settings, runner: Runner) -> None:
    run_id = await park(redis, settings, runner)

    run_keys = [key async for key in redis.scan_iter(f"{keys.run(run_id)}*")] + [keys.job(run_id)]
    assert {await redis.ttl(key) for key in run_keys} == {-1}


class BusyModel(AskingModel):
    """Asks the user and calls a slow tool in the same round."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[dict[str, Any], None]:
        async for chunk in super().stream(request):
            for choice in chunk["choices"]:
                if "tool_calls" in choice["delta"]:
                    function = {"name": "take_time", "arguments": "{}"}
                    slow = {"index": 1, "id": "t", "type": "function", "function": function}
                    choice["delta"] = {"tool_calls": [*choice["delta"]["tool_calls"], slow]}
            yield chunk


async def until_logged(redis: Redis, run_id: str, name: bytes) -> None:
    async def is_logged() -> bool:
        return name in [event.event for event in (await log_reader.read_page(redis, run_id, START, 100)).events]

    await until(is_logged)


@pytest.mark.parametrize("missed", ["before the channel was subscribed", "while pub/sub was away"])
async def test_decision_without_a_notification_is_found(
    redis: Redis, settings: Settings, runner: Runner, monkeypatch: pytest.MonkeyPatch, missed: str
) -> None:
    go_on = asyncio.Event()

    async def take_time() -> str:
        """Take time."""
        await go_on.wait()
        return "taken"

    async def decide_unheard() -> None:
        await until_logged(redis, run_id, b"tool_call")
        decision = decisions.encode(decisions.Decision(decision="answer", text="the blue one"))
        await redis.hset(keys.run(run_id), "decisions", orjson.dumps({"q": decision}).decode())  # type: ignore[misc]

    async def subscribe(channel: str, handler: Callable[[bytes], None], on_missed: Callable[[], None]) -> None:
        if missed == "before the channel was subscribed":
            await decide_unheard()
        await really_subscribe(channel, handler, on_missed)
        reconnected.append(on_missed)

    reconnected: list[Callable[[], None]] = []
    really_subscribe = runner._channels.subscribe
    monkeypatch.setattr(runner._channels, "subscribe", subscribe)
    runner._model, runner._tools = BusyModel(), ToolRegistry([ask_user, take_time], settings)
    runner._settings = settings.model_copy(update={"approval_wait_s": 60})
    run_id = await queued(redis, settings, {**REQUEST, "tools": ["ask_user", "take_time"]})
    running = asyncio.create_task(runner.run(run_id, "token"))
    if missed == "while pub/sub was away":
        await decide_unheard()
        await until(lambda: reconnected)
        reconnected[0]()

    await until_logged(redis, run_id, b"approval_decided")
    go_on.set()
    assert await asyncio.wait_for(running, 10) == Outcome(Disposition.FINISH)
