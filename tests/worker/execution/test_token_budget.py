"""Token budgets against a real server: whatever a run's requests use is counted, and a run over its limit ends."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.domain.token_estimate import estimate_prompt_tokens
from stagebus.shared.errors import ModelRejected, ModelUnavailable
from stagebus.shared.log import log_reader
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.store import run_store
from stagebus.worker.execution.runner import Runner
from stagebus.worker.model.model_client import ModelRequest
from tests.support.runs_by_hand import queued
from tests.support.scripted_model import ScriptedModel
from tests.support.waiting import until

MESSAGES = [{"role": "user", "content": "hi"}]
REQUEST = {"model": "m", "messages": MESSAGES, "tools": [], "timeout_s": 60}
PROMPT_TOKENS = estimate_prompt_tokens(MESSAGES)
WORD_TOKENS = 2  # of each word that `EndlessModel` writes


def said(text: str, **more: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, **more}]}


class EndlessModel(ScriptedModel):
    """Writes words until its answer is closed, after the chunks in `first`. Stays silent while `may_write` is cleared."""

    def __init__(self, *first: dict[str, Any]) -> None:
        super().__init__()
        self.first = first
        self.words = 0
        self.may_write = asyncio.Event()
        self.may_write.set()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[dict[str, Any], None]:
        self.requests.append(request)
        self.is_closed = False
        try:
            for chunk in self.first:
                yield chunk
            while True:
                await self.may_write.wait()
                self.words += 1
                yield said("12345678")
                await asyncio.sleep(0)
        finally:
            self.is_closed = True


@pytest.fixture
def model() -> ScriptedModel:
    return EndlessModel()


async def ended(redis: Redis, settings: Settings, runner: Runner, **request: object) -> RunRecord:
    """Creates a run, works on it to its end and returns its record."""
    run_id = await queued(redis, settings, {**REQUEST, **request})
    await asyncio.wait_for(runner.run(run_id, "token"), 10)
    return await run_store.get_run(redis, run_id)


async def used_today(redis: Redis) -> int:
    return int(await redis.hget(keys.tokens("t"), "used") or 0)


async def reserved(redis: Redis) -> int:
    return int(await redis.hget(keys.tokens("t"), "reserved") or 0)


async def test_run_over_its_own_budget_ends_while_it_streams(
    redis: Redis, settings: Settings, runner: Runner, model: EndlessModel
) -> None:
    run = await ended(redis, settings, runner, max_total_tokens=100)

    assert run.error is not None
    assert run.error["code"] == "budget_exceeded"
    assert "max_total_tokens is 100" in run.error["error"]
    assert model.is_closed
    assert run.tokens == PROMPT_TOKENS + model.words * WORD_TOKENS
    assert 100 < run.tokens <= 100 + 5 * WORD_TOKENS
    assert await used_today(redis) == run.tokens
    assert await reserved(redis) == await redis.exists(keys.RESERVED) == 0


async def test_run_over_its_tenants_budget_ends_while_it_streams(
    redis: Redis, settings: Settings, runner: Runner, model: EndlessModel
) -> None:
    """The limit is set after the run began: it takes effect immediately."""
    run_id = await queued(redis, settings, REQUEST)
    working = asyncio.create_task(runner.run(run_id, "token"))
    await until(lambda: model.words > 0)
    await redis.hset(keys.LIMITS, "t:tokens_per_day", 2000)
    await asyncio.wait_for(working, 20)
    run = await run_store.get_run(redis, run_id)

    assert run.error is not None
    assert run.error["code"] == "budget_exceeded"
    assert "tenant's 2000 tokens" in run.error["error"]
    assert 2000 < await used_today(redis) < 2200
    assert await reserved(redis) == 0


async def test_run_may_use_only_what_others_have_not_reserved(
    redis: Redis, settings: Settings, runner: Runner, model: EndlessModel
) -> None:
    await redis.hset(keys.LIMITS, "t:tokens_per_day", 2000)
    await run_store.create_run(redis, settings, tenant="t", model="m", request=REQUEST, tokens=1500)
    run = await ended(redis, settings, runner)

    assert run.error is not None
    assert run.error["code"] == "budget_exceeded"
    assert 500 < run.tokens < 700
    assert await reserved(redis) == 1500, "the other run's"


@pytest.mark.parametrize("usage", [None, {"total_tokens": 70}], ids=["estimated", "told"])
async def test_cancelled_stage_counts_what_was_streamed(
    redis: Redis, settings: Settings, runner: Runner, model: EndlessModel, usage: dict[str, int] | None
) -> None:
    model.first = (said("1234"), *([{"choices": [], "usage": usage}] if usage else []))
    model.may_write.clear()
    run_id = await queued(redis, settings, REQUEST)
    working = asyncio.create_task(runner.run(run_id, "token"))

    async def is_streamed() -> bool:
        page = await log_reader.read_page(redis, run_id, START, 100)
        return sum(event.event == b"tool_completion_chunk" for event in page.events) == len(model.first)

    await until(is_streamed)
    await run_store.cancel_run(redis, settings, run_id)
    await asyncio.wait_for(working, 10)

    assert await used_today(redis) == (70 if usage else PROMPT_TOKENS + 1)
    told: dict[str, Any] = {"total_tokens": 70, "prompt_tokens": 0, "completion_tokens": 0}
    estimated = {
        "prompt_tokens": PROMPT_TOKENS, "completion_tokens": 1, "total_tokens": PROMPT_TOKENS + 1, "estimated": True,
    }  # fmt: skip
    run = await run_store.get_run(redis, run_id)
    page = await log_reader.read_page(redis, run_id, START, 100)
    assert run.usage == orjson.loads(page.events[-1].data)["usage"] == (told if usage else estimated)
    assert await redis.hget(keys.TOTALS, "tokens") == str(await used_today(redis)).encode()


class TestScriptedAnswers:
    """Answers that end by themselves."""

    @pytest.fixture
    def model(self) -> ScriptedModel:
        return ScriptedModel()

    async def test_failed_stage_counts_what_was_streamed(self, redis, settings, runner, model) -> None:
        model.answers = [[said("12345678"), ModelRejected("no")]]
        run = await ended(redis, settings, runner)

        assert run.error["code"] == "model_rejected"
        assert await used_today(redis) == PROMPT_TOKENS + 2
        assert (run.usage["total_tokens"], run.usage["estimated"]) == (PROMPT_TOKENS + 2, True)

    async def test_run_that_fails_later_counts_its_complete_stages_too(self, redis, settings, runner, model) -> None:
        call = {"index": 0, "id": "c", "function": {"name": "no_such_tool", "arguments": "{}"}}
        calling = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
        told = {"usage": {"prompt_tokens": 40, "completion_tokens": 30, "total_tokens": 70}}
        model.answers = [
            [{**calling, **told}],
            [said("1234"), {"choices": [], **told}, said("1234"), ModelRejected("no")],
        ]
        run = await ended(redis, settings, runner)

        assert run.usage == {"prompt_tokens": 80, "completion_tokens": 61, "total_tokens": 141, "estimated": True}

    async def test_each_try_counts_and_a_refused_request_costs_nothing(
        self, redis, settings, runner, model, monkeypatch
    ) -> None:
        monkeypatch.setattr("stagebus.worker.execution.model_stage_runner.backoff", lambda *_: 0)
        model.answers = [
            [ModelUnavailable("overloaded")],
            [said("1234"), {"choices": [], "usage": {"total_tokens": 7}}, said("12345"), ModelUnavailable("cut")],
            [said("hello", finish_reason="stop"), {"choices": [], "usage": {"total_tokens": 12}}],
        ]
        run = await ended(redis, settings, runner)

        assert run.status == "succeeded"
        assert run.usage["total_tokens"] == 12, "the usage is that of the complete stages"
        assert run.tokens == await used_today(redis) == 0 + (7 + 2) + 12

    async def test_answer_that_used_more_than_the_budget_ends_the_run(self, redis, settings, runner, model) -> None:
        """Reasoning that is not streamed is only seen in the usage. The stage's result stays in the log."""
        model.answers = [[said("hello", finish_reason="stop"), {"choices": [], "usage": {"total_tokens": 5000}}]]
        run = await ended(redis, settings, runner, max_total_tokens=1000)

        assert run.error["code"] == "budget_exceeded"
        assert run.usage["total_tokens"] == await used_today(redis) == 5000
        stages = await run_store.read_stages(redis, run.run_id)
        assert stages[-1].completed.result["text"] == "hello"

    async def test_next_attempt_continues_the_count(self, redis, settings, runner, model) -> None:
        """A worker that died had stored its count with its events."""
        run_id = await queued(redis, settings, {**REQUEST, "max_total_tokens": 1000})
        claim = await run_scripts.claim(redis, run_id, "dead")
        await run_scripts.append(
            redis, run_id, attempt=claim.attempt, before=claim.last_id, message=b"", tokens=1000,
            entries=[run_scripts.LogEntry("run", "run_started", b'{"stage_id":"run"}')],
        )  # fmt: skip
        await asyncio.wait_for(runner.run(run_id, "token"), 10)
        run = await run_store.get_run(redis, run_id)

        assert run.error["code"] == "budget_exceeded"
        assert model.requests == [], "no request is sent once the budget is used up"
        assert await used_today(redis) == 1000

    async def test_run_within_its_reservation_asks_redis_for_no_token(
        self, redis, settings, runner, model, monkeypatch
    ) -> None:
        async def fail(*_: object, **__: object) -> None:
            raise AssertionError("a further round trip")

        monkeypatch.setattr(queue_scripts, "reserve", fail)
        model.answers = [[said("hello", finish_reason="stop")]]
        run_id = await run_store.create_run(redis, settings, tenant="t", model="m", request=REQUEST, tokens=1000)
        await redis.set(keys.lease(run_id), "token")
        await asyncio.wait_for(runner.run(run_id, "token"), 10)

        assert (await run_store.get_run(redis, run_id)).status == "succeeded"


async def test_meter_stops_with_its_attempt(
    redis: Redis, settings: Settings, runner: Runner, model: EndlessModel
) -> None:
    """A worker that is stopped in the middle leaves no task behind and loses no count that its log has."""
    run_id = await queued(redis, settings, REQUEST)
    working = asyncio.create_task(runner.run(run_id, "token"))
    await until(lambda: model.words > 50)
    await cancel_and_wait(working)

    assert model.is_closed
    assert (await run_store.get_run(redis, run_id)).tokens > 0
