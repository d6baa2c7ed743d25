"""Whole runs with a scripted model: the request of each round, and the resulting log."""

import asyncio
import json
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START
from stagebus.shared.domain.model_items import Api
from stagebus.shared.log import log_reader
from stagebus.shared.store import run_store
from stagebus.worker.execution.runner import Runner
from stagebus.worker.model.chat_chunks import ITEMS_KEY, AnswerItems
from stagebus.worker.tools.tool_context import ToolContext
from tests.support.runs_by_hand import queued
from tests.support.scripted_model import ScriptedModel, providers_of

PROVIDERS = providers_of(
    {
        "p": [
            "native",
            *({"name": tools, "tools": tools} for tools in ("prompted", "none")),
            {"name": "down", "price": {"input": 100, "output": 100}, "fallbacks": ["priced"]},
            {"name": "priced", "price": {"input": 1, "output": 10}},
            {"name": "responses", "api": "responses", "fallbacks": ["native"]},
            {"name": "messages", "api": "messages", "fallbacks": ["responses"]},
        ]
    }
)
ADD = {"type": "function", "function": {"name": "add"}}
USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def add(a: int, b: int, context: ToolContext) -> int:
    """Add two numbers."""
    context.progress("carrying", 0.5)
    return a + b


def says(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}], "usage": USAGE}


def calls(arguments: str) -> dict[str, Any]:
    function = {"name": "add", "arguments": arguments}
    delta = {"tool_calls": [{"index": 0, "id": "c", "function": function}]}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": "tool_calls"}], "usage": USAGE}


SUM = '{"a": 2, "b": 3}'
IN_WORDS = f'<tool_call>{{"name": "add", "arguments": {SUM}}}</tool_call>'


def calls_after(api: Api, *items: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the chunks of an answer with items of the model's own before its call."""
    mark = {"type": "function_call" if api == "responses" else "tool_use"}
    return [calls(SUM), {"choices": [], ITEMS_KEY: AnswerItems(api, [*items, mark])}]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"tools": (f"{__name__}:add",)})


@pytest.fixture
def model() -> ScriptedModel:
    model = ScriptedModel(providers=PROVIDERS)
    model.down = {"down"}
    return model


@pytest.fixture
def run(redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel) -> Any:
    """Runs a run to its end and returns its events."""

    async def run(*answers: dict[str, Any], **request: Any) -> list[tuple[str, dict[str, Any]]]:
        model.answers = [answer if isinstance(answer, list) else [answer] for answer in answers]
        messages = [{"role": "user", "content": "How much is 2 and 3?"}]
        asked = {"model": "native", "messages": messages, "tools": ["add"], "timeout_s": 60, **request}
        run_id = await queued(redis, settings, asked)
        await asyncio.wait_for(runner.run(run_id, "token"), 10)
        assert model.answers == []
        page = await log_reader.read_page(redis, run_id, START, 1000)
        return [(event.event.decode(), json.loads(event.data)) for event in page.events]

    return run


def of(events: list[tuple[str, dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    return [data for event, data in events if event == name]


@pytest.mark.parametrize("parallel", [None, True, False])
@pytest.mark.parametrize("choice", ["auto", "required", ADD], ids=["auto", "required", "named"])
async def test_rounds_continue_until_the_model_calls_nothing(
    run: Any, model: ScriptedModel, choice: Any, parallel: bool | None
) -> None:
    """A choice that forces a tool call applies to the first round."""
    options = {"tool_choice": choice, "parallel_tool_calls": parallel, "max_rounds": 5}
    events = await run(calls(SUM), calls('{"a": 5, "b": 5}'), says("It is 10."), **options)

    assert [data["stage_id"] for data in of(events, "stage_completed")] == [
        "extraction", "tools", "extraction.2", "tools.2", "extraction.3",
    ]  # fmt: skip
    assert [body["tool_choice"] for body in model.bodies] == [choice, "auto", "auto"]
    assert [body.get("parallel_tool_calls") for body in model.bodies] == [parallel] * 3
    assert [message["content"] for message in model.bodies[-1]["messages"] if message["role"] == "tool"] == ["5", "10"]
    assert events[-1][0] == "done"


async def test_run_cost_is_that_of_the_models_that_answered(run: Any) -> None:
    """A fallback's answer has the fallback's price; a stage without a price leaves the run without a cost."""
    events = await run(calls(SUM), says("It is 5."), model="down")
    assert of(events, "retry_scheduled")[0]["model"] == "priced"
    each = USAGE | {"cost": {"amount": 0.000032, "currency": "USD"}}
    assert [data["usage"] for data in of(events, "stage_completed") if "usage" in data] == [each, each]
    assert of(events, "done")[0]["usage"]["cost"] == {"amount": 0.000064, "currency": "USD"}

    events = await run(calls(SUM), says("It is 5."), model=["priced", "native"])
    assert of(events, "done")[0]["usage"] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}


async def test_rounds_end_at_max_rounds(run: Any, model: ScriptedModel) -> None:
    events = await run(calls(SUM), calls(SUM), says("I tried."), tool_choice="required", max_rounds=2)

    assert of(events, "stage_completed")[-1]["stage_id"] == "synthesis"
    assert "tools" not in model.bodies[-1]
    assert "tool_choice" not in model.bodies[-1]
    assert len({data["call_id"] for data in of(events, "tool_call")}) == 2, "although the provider repeats its ids"


@pytest.mark.parametrize(("model_name", "has_tools"), [("native", True), ("prompted", False), ("none", False)])
async def test_tool_choice_none_calls_nothing(run: Any, model: ScriptedModel, model_name: str, has_tools: bool) -> None:
    events = await run(says("5, I guess."), tool_choice="none", model=model_name)

    assert of(events, "tool_call") == []
    assert ("tools" in model.bodies[0]) == has_tools
    assert len(model.bodies[0]["messages"]) == 1, "the prompt describes no tool either"


async def test_progress_is_between_the_call_and_its_result(run: Any) -> None:
    events = await run(calls(SUM), says("It is 5."))

    names = [event for event, data in events if data["stage_id"] == "tools"]
    assert names == ["stage_started", "tool_call", "tool_progress", "tool_result", "tool_summary", "stage_completed"]
    assert of(events, "tool_progress") == [
        {"stage_id": "tools", "call_id": of(events, "tool_call")[0]["call_id"], "message": "carrying", "fraction": 0.5}
    ]


REASONING = {"type": "reasoning", "summary": [], "encrypted_content": "secret"}
THINKING = {"type": "thinking", "thinking": "Hm.", "signature": "secret"}


async def test_items_go_back_in_every_round_of_the_same_model_and_to_no_other(run: Any, model: ScriptedModel) -> None:
    """A fallback gets the calls and the results."""
    thinks = calls_after("responses", REASONING)
    events = await run(thinks, thinks, says("It is 5."), model="responses", max_rounds=3)
    first, second, third = (body["input"] for body in model.bodies)

    assert [item.get("type") for item in second] == [None, "reasoning", "function_call", "function_call_output"]
    assert third[: len(second)] == second
    assert len(first) == 1
    assert "secret" not in str(events)

    model.requests.clear()
    thinking = calls_after("messages", THINKING)
    await run(thinking, thinking, says("It is 5."), model=["messages", "responses"], max_rounds=2)
    assert model.requests[-1].route is not None
    assert model.requests[-1].route.name == "responses"
    last = model.bodies[-1]["input"]
    assert [item.get("type") for item in last] == [None, *["function_call", "function_call_output"] * 2]


async def test_thinking_goes_back_before_its_calls_and_the_prefix_stays_the_same(
    run: Any, model: ScriptedModel
) -> None:
    await run(calls_after("messages", THINKING), says("It is 5."), model="messages")
    extraction, synthesis = model.bodies

    assert [block["type"] for block in synthesis["messages"][1]["content"]] == ["thinking", "tool_use"]
    assert synthesis["tools"] == extraction["tools"]
    assert synthesis["tool_choice"] == {"type": "none"}


# --- models that get their tools in the prompt -------------------------------


async def test_prompted_model_runs_through_every_stage(run: Any, model: ScriptedModel) -> None:
    events = await run(says(IN_WORDS), says("It is 5."), model="prompted")

    assert all("tools" not in body for body in model.bodies)
    first, last = (body["messages"] for body in model.bodies)
    assert '"name": "add"' in first[0]["content"]
    assert [message["role"] for message in last] == ["user", "assistant", "user"]
    assert '<tool_response>\n{"name": "add", "content": "5"}' in last[-1]["content"]
    assert of(events, "tool_completion_chunk")[0]["tool_results"]["choices"][0]["delta"]["content"] == IN_WORDS
    assert events[-1][0] == "done"


async def test_invalid_prompted_call_is_asked_for_once_more(run: Any, model: ScriptedModel) -> None:
    broken = '<tool_call>{"name": "add", "arguments": {"a": 2'
    events = await run(says(broken), says(IN_WORDS), says("It is 5."), model="prompted")

    (retry,) = of(events, "retry_scheduled")
    assert (retry["retry_of"], retry["retry"], retry["backoff_s"]) == ("extraction", 1, 0)
    assert "not a JSON object" in retry["reason"]
    started, restarted = (
        place for place, (event, data) in enumerate(events, 1) if event in ("stage_started", "stage_restarted")
        and data["stage_id"] == "extraction"
    )  # fmt: skip
    assert events[restarted - 1][1]["discard_from"] == started + 1
    assert [message["content"] for message in model.bodies[1]["messages"]][-2] == broken
    assert of(events, "tool_result")[0]["content"] == "5"
    assert of(events, "done")[0]["usage"]["total_tokens"] == 15, "the voided answer was paid for as well"


@pytest.mark.parametrize("name", ["subtract", "add"])
async def test_invalid_call_in_the_second_answer_gets_an_error_result(run: Any, redis: Redis, name: str) -> None:
    bad = f'<tool_call>{{"name": "{name}", "arguments": {{"a": 2}}}}</tool_call>'
    events = await run(says(bad), says(bad), says("I cannot."), model="prompted")

    assert len(of(events, "retry_scheduled")) == 1
    assert of(events, "tool_result")[0]["is_error"]
    assert (await run_store.get_run(redis, of(events, "run_queued")[0]["run_id"])).status == "succeeded"
