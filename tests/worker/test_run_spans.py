"""The spans of whole runs with a scripted model."""

import asyncio
import json
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.store import run_store
from stagebus.worker.execution.runner import Runner
from tests.support.recorded_spans import RecordedSpans
from tests.support.runs_by_hand import queued
from tests.support.scripted_model import ScriptedModel, providers_of

PROMPT, ANSWER, ARGUMENTS = "How much is 2 and 3?", "It is 5.", '{"a":2,"b":3}'
CALL = {
    "choices": [
        {
            "index": 0,
            "delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "add", "arguments": ARGUMENTS}}]},
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
}
SAYS = {"choices": [{"index": 0, "delta": {"content": ANSWER}, "finish_reason": "stop"}]}


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> RecordedSpans:
    return RecordedSpans(monkeypatch)


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    with_content = getattr(request, "param", False)
    return settings.model_copy(
        update={"tools": (f"{__name__}:add",), "otel_content": with_content, "model_backoff_s": 0.01}
    )


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(providers=providers_of({"p": ["m", {"name": "down", "fallbacks": ["m"]}]}))


async def work(redis: Redis, settings: Settings, runner: Runner, **request: Any) -> str:
    asked = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "tools": ["add"], "timeout_s": 60}
    run_id = await queued(redis, settings, {**asked, **request})
    await asyncio.wait_for(runner.run(run_id, "token"), 10)
    return run_id


@pytest.mark.parametrize("settings", [True, False], indirect=True)
async def test_content_is_in_spans_only_if_asked_for(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel, recorded: RecordedSpans
) -> None:
    model.answers = [[CALL], [SAYS]]
    await work(redis, settings, runner)
    first, second = recorded.attributes("chat m")
    (tool,) = recorded.attributes("execute_tool add")
    whole = "".join(span.to_json() for span in recorded.ended)

    assert first["gen_ai.usage.input_tokens"] == 2
    assert first["gen_ai.provider.name"] == "p"
    assert first["gen_ai.response.time_to_first_chunk"] >= 0
    if not settings.otel_content:
        assert not [text for text in (PROMPT, ANSWER, '"b":3', '\\"b\\"') if text in whole]
        return
    sent, answered = json.loads(second["gen_ai.input.messages"]), json.loads(second["gen_ai.output.messages"])
    assert [(m["role"], [part["type"] for part in m["parts"]]) for m in sent] == [
        ("user", ["text"]),
        ("assistant", ["tool_call"]),
        ("tool", ["tool_call_response"]),
    ]
    assert answered == [{"role": "assistant", "parts": [{"type": "text", "content": ANSWER}], "finish_reason": "stop"}]
    assert json.loads(tool["gen_ai.tool.call.arguments"]) == {"a": 2, "b": 3}
    assert tool["gen_ai.tool.call.result"] == "5"


async def test_repeated_request_links_to_the_one_that_failed(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel, recorded: RecordedSpans
) -> None:
    model.down, model.answers = {"down"}, [[SAYS]]
    await work(redis, settings, runner, model="down", tools=[])
    (failed,), (fallback,) = recorded.named("chat down"), recorded.named("chat m")

    assert failed.attributes["error.type"] == "model_unavailable"
    assert [link.context.span_id for link in fallback.links] == [failed.context.span_id]


async def test_attempt_says_how_the_run_ended(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel, recorded: RecordedSpans
) -> None:
    """The run was created without a trace; it gets one."""
    model.default = [RuntimeError("boom")]
    run_id = await work(redis, settings, runner)
    (attempt,) = recorded.named("attempt")

    assert attempt.attributes["stagebus.run.status"] == "failed"
    assert attempt.attributes["error.type"] == "internal"
    assert {span.context.trace_id for span in recorded.ended} == {attempt.context.trace_id}
    assert (await run_store.get_run(redis, run_id)).attempt == attempt.attributes["stagebus.attempt"]
