"""Runs with one tool call that waits for a result from outside, parked and resumed by hand."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from redis.asyncio import Redis

from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import queue_scripts
from stagebus.shared.store import parking, run_result, run_store
from stagebus.worker.execution.outcome import Outcome
from stagebus.worker.execution.runner import Runner
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from tests.support.runs_by_hand import queued

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "timeout_s": 60}


class CallingModel(ModelClient):
    """Calls the first tool that it is offered, then repeats the result, after a pause."""

    def __init__(self, arguments: str = "{}", *, call_id: str = "c", pause_s: float = 0) -> None:
        settings = Settings(openai_base_url="http://127.0.0.1:1/v1")
        super().__init__(settings, Providers.from_settings(settings))
        self._arguments = arguments
        self._call_id = call_id
        self._pause_s = pause_s

    async def stream(self, request: ModelRequest) -> AsyncGenerator[dict[str, Any], None]:
        told = [message["content"] for message in request.messages if message["role"] == "tool"]
        await asyncio.sleep(self._pause_s if told else 0)
        delta: dict[str, Any] = {"content": told[0]} if told else {}
        if not told:
            assert request.tools is not None
            function = {"name": request.tools[0]["function"]["name"], "arguments": self._arguments}
            delta = {"tool_calls": [{"index": 0, "id": self._call_id, "type": "function", "function": function}]}
        yield {"choices": [{"index": 0, "delta": delta, "finish_reason": "stop" if told else "tool_calls"}]}


async def park(redis: Redis, settings: Settings, runner: Runner, **request: Any) -> str:
    """Creates a run whose call waits, and parks it."""
    run_id = await queued(redis, settings, {**REQUEST, **request})
    outcome = await asyncio.wait_for(runner.run(run_id, "token"), 10)
    assert outcome.parked is not None
    assert outcome.attempt is not None
    due_ms, seen = outcome.parked.due_ms, outcome.parked.seen
    assert await parking.park(redis, run_id, token="token", attempt=outcome.attempt, due_ms=due_ms, seen=seen)
    return run_id


async def is_due(redis: Redis, run_id: str) -> bool:
    return run_id in (await queue_scripts.list_due(redis, 10)).run_ids


async def resume(redis: Redis, settings: Settings, runner: Runner, run_id: str) -> Outcome:
    assert await queue_scripts.acquire(redis, run_id, "token", settings.lease_s)
    return await asyncio.wait_for(runner.run(run_id, "token"), 10)


async def text(redis: Redis, run_id: str) -> str | None:
    run = await run_store.get_run(redis, run_id)
    result = await run_result.read_result(redis, run, await run_store.read_stages(redis, run_id))
    return None if result is None else result.text
