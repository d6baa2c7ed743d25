"""Whole runs that ask for JSON: a valid answer, a repaired one, one that is given up, and one that was cut off."""

import asyncio
import json
from typing import Any, NamedTuple

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START
from stagebus.shared.log import log_reader
from stagebus.shared.store import run_result, run_store
from stagebus.shared.store.run_result import StoredResult
from stagebus.worker.execution.runner import Runner
from tests.support.runs_by_hand import queued
from tests.support.scripted_model import ScriptedModel, providers_of

PROVIDERS = providers_of(
    {
        "p": [
            "native",
            {"name": "prompted", "structured_output": "prompted"},
            {"name": "refusing", "leave_out": ["response_format"]},
            {"name": "prompted-tools", "tools": "prompted"},
            *({"name": api, "api": api} for api in ("responses", "messages")),
        ]
    }
)
SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
SUM_FORMAT = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}
USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
RIGHT, WRONG = '{"sum": 5}', '{"sum": "five"}'


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def says(text: str, finish_reason: str = "stop", field: str = "content") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {field: text}, "finish_reason": finish_reason}], "usage": USAGE}


def calls_add() -> dict[str, Any]:
    function = {"name": "add", "arguments": '{"a": 2, "b": 3}'}
    delta = {"tool_calls": [{"index": 0, "id": "c", "function": function}]}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": "tool_calls"}], "usage": USAGE}


class Ended(NamedTuple):
    events: list[tuple[str, dict[str, Any]]]
    result: StoredResult | None

    def of(self, name: str) -> list[dict[str, Any]]:
        return [data for event, data in self.events if event == name]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"tools": (f"{__name__}:add",)})


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(providers=PROVIDERS)


@pytest.fixture
def run(redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel) -> Any:
    """Runs a run to its end."""

    async def run(*answers: dict[str, Any], **request: Any) -> Ended:
        model.answers = [[answer] for answer in answers]
        messages = [{"role": "user", "content": "How much is 2 and 3?"}]
        asked = {"model": "native", "messages": messages, "tools": [], "timeout_s": 60, "response_format": SUM_FORMAT}
        run_id = await queued(redis, settings, {**asked, **request})
        await asyncio.wait_for(runner.run(run_id, "token"), 10)
        assert model.answers == []
        page = await log_reader.read_page(redis, run_id, START, 1000)
        events = [(event.event.decode(), json.loads(event.data)) for event in page.events]
        record = await run_store.get_run(redis, run_id)
        return Ended(events, await run_result.read_result(redis, record, await run_store.read_stages(redis, run_id)))

    return run


async def test_valid_answer_has_its_value(run: Any, model: ScriptedModel) -> None:
    ended = await run(says(RIGHT))

    assert ended.result == StoredResult(RIGHT, "stop", json={"sum": 5})
    assert model.bodies[0]["response_format"] == SUM_FORMAT
    assert len(model.bodies[0]["messages"]) == 1, "the provider knows the format"


async def test_invalid_answer_is_repaired_once_and_both_tries_count(run: Any, model: ScriptedModel) -> None:
    ended = await run(says(WRONG), says(f"```json\n{RIGHT}\n```"))

    assert ended.result == StoredResult(RIGHT, "stop", json={"sum": 5})
    assert "response_format" in ended.of("retry_scheduled")[0]["reason"]
    started = next(data for name, data in ended.events if name == "stage_restarted")
    assert started["discard_from"] == 4, "the invalid text is void"
    rejected, correction = model.bodies[1]["messages"][-2:]
    assert rejected == {"role": "assistant", "content": WRONG}
    assert "sum" in correction["content"]
    assert ended.of("done")[0]["usage"]["total_tokens"] == 10


async def test_answer_that_stays_invalid_fails_the_run(run: Any) -> None:
    ended = await run(says(WRONG), says("It is five."))

    assert ended.of("error")[0]["code"] == "invalid_output"
    assert ended.result is not None
    assert (ended.result.text, ended.result.is_partial, ended.result.json) == ("It is five.", True, None)


async def test_answer_that_was_cut_off_is_not_repaired(run: Any) -> None:
    ended = await run(says('{"sum"', "length"))

    assert ended.of("error")[0]["code"] == "invalid_output"
    assert "cut off" in ended.of("error")[0]["error"]


async def test_refusal_is_the_result_without_a_value(run: Any) -> None:
    ended = await run(says("I will not add.", field="refusal"))

    assert ended.result == StoredResult("I will not add.", "refusal")


async def test_synthesis_has_the_form_and_calls_need_none(run: Any, model: ScriptedModel) -> None:
    ended = await run(calls_add(), says(RIGHT), tools=["add"])

    assert ended.result == StoredResult(RIGHT, "stop", json={"sum": 5})
    assert [body["response_format"] for body in model.bodies] == [SUM_FORMAT, SUM_FORMAT]


@pytest.mark.parametrize("name", ["prompted", "refusing"])
async def test_form_is_described_to_a_model_whose_provider_does_not_know_it(
    run: Any, model: ScriptedModel, name: str
) -> None:
    ended = await run(says(RIGHT), model=name)

    assert ended.result == StoredResult(RIGHT, "stop", json={"sum": 5})
    assert "response_format" not in model.bodies[0]
    assert '"sum"' in model.bodies[0]["messages"][0]["content"]


@pytest.mark.parametrize("is_strict", [True, False])
async def test_form_is_sent_in_the_words_of_each_api(run: Any, model: ScriptedModel, is_strict: bool) -> None:
    """Anthropic's takes strict schemas alone; any other form is described."""
    asked = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": is_strict}}
    for api in ("responses", "messages"):
        ended = await run(says(RIGHT), model=api, response_format=asked)
        assert ended.result == StoredResult(RIGHT, "stop", json={"sum": 5})
    by_responses, by_messages = model.bodies

    assert by_responses["text"]["format"] == {
        "type": "json_schema",
        "name": "sum",
        "schema": SCHEMA,
        "strict": is_strict,
    }
    assert (by_messages.get("output_config") == {"format": {"type": "json_schema", "schema": SCHEMA}}) == is_strict
    assert ('"sum"' in str(by_messages.get("system"))) != is_strict


async def test_model_that_calls_tools_in_text_gets_the_format_for_its_answer_alone(
    run: Any, model: ScriptedModel
) -> None:
    call = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
    ended = await run(says(call), says(RIGHT), model="prompted-tools", tools=["add"])

    assert ended.result == StoredResult(RIGHT, "stop", json={"sum": 5})
    assert ["response_format" in body for body in model.bodies] == [False, True]


async def test_json_object_is_mentioned_in_the_prompt(run: Any, model: ScriptedModel) -> None:
    """OpenAI refuses its JSON mode otherwise."""
    ended = await run(says('{"any": 1}'), response_format={"type": "json_object"})

    assert ended.result == StoredResult('{"any": 1}', "stop", json={"any": 1})
    assert "JSON" in model.bodies[0]["messages"][0]["content"]
