"""The model stages: stripped chunks as they arrive, then one completion that holds the answer."""

import asyncio
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.events import Event, StageCompleted, ToolCompletionChunk
from stagebus.shared.domain.stage_results import ModelStageResult
from stagebus.shared.domain.usage import Usage
from stagebus.shared.errors import ModelUnavailable
from stagebus.worker.model.delta_merger import DeltaMerger
from stagebus.worker.model.model_client import ModelRequest
from stagebus.worker.stages.model_stage import AnswerRules, InvalidAnswer, model_stage, strip_chunk
from tests.support.scripted_model import ScriptedModel

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
REQUEST = ModelRequest(model="m", messages=[{"role": "user", "content": "hi"}], tools=TOOLS)


def answering(*steps: dict[str, Any] | Exception) -> ScriptedModel:
    return ScriptedModel(steps)


def chunk(delta: dict[str, Any] | None = None, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """Returns a chunk as a provider sends it, with all repeated fields."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1735689600, "model": "m-1",
        "system_fingerprint": "fp", "service_tier": "default", "obfuscation": "xyz", "usage": None, "choices": choices,
        **fields,
    }  # fmt: skip


def says(text: str) -> dict[str, Any]:
    return chunk({"content": text})


def calls(index: int, call_id: str, arguments: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return chunk({"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]})


async def collect(model: ScriptedModel, taken: set[str] | None = None, request: ModelRequest = REQUEST) -> list[Event]:
    return [event async for event in model_stage("extraction", model, request, taken or set())]


def result_of(events: list[Event]) -> ModelStageResult:
    assert isinstance(events[-1], StageCompleted)
    return ModelStageResult.model_validate(events[-1].result)


async def test_every_chunk_is_an_event_and_one_completion_follows() -> None:
    counts = chunk(usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3})
    model = answering(chunk({"role": "assistant"}), says("Grü"), says("ße"), chunk({}, "stop"), counts)

    events = await collect(model)

    assert [type(event) for event in events] == [ToolCompletionChunk] * 5 + [StageCompleted]
    assert {event.stage_id for event in events} == {"extraction"}
    assert result_of(events) == ModelStageResult(text="Grüße", finish_reason="stop", model="m-1")
    assert events[-1].usage == Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
    assert model.requests == [REQUEST]
    assert model.is_closed


async def test_calls_are_in_the_completion_and_in_the_chunks() -> None:
    model = answering(calls(0, "c1", '{"city":'), calls(0, "", '"Köln"}'), chunk({}, "tool_calls"))

    events = await collect(model)

    (call,) = result_of(events).tool_calls
    assert (call.id, call.name, call.arguments) == ("c1", "get_weather", '{"city":"Köln"}')
    assert "tool_calls" in events[0].tool_results["choices"][0]["delta"]


async def test_call_gets_an_id_that_no_earlier_round_has() -> None:
    """Some providers number the calls of each answer from the start."""
    model = answering(calls(0, "call_0", "{}"), chunk({}, "tool_calls"))

    (call,) = result_of(await collect(model, {"call_0"})).tool_calls
    assert call.id not in {"", "call_0"}


async def test_calls_in_text_count_only_if_tools_were_offered() -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "Köln"}}</tool_call>'
    without = ModelRequest(model="m", messages=[])

    offered = result_of(await collect(answering(says(text), chunk({}, "stop"))))
    plain = result_of(await collect(answering(says(text), chunk({}, "stop")), request=without))
    assert [call.name for call in offered.tool_calls] == ["get_weather"]
    assert (plain.tool_calls, plain.text) == ([], text)


async def test_markup_of_a_call_that_cannot_be_read_is_no_answer() -> None:
    text = "<tool_call>get_weather(city=</tool_call>"

    with pytest.raises(ModelUnavailable, match="cannot be read"):
        await collect(answering(says(text), chunk({}, "stop")))
    untold = result_of(await collect(answering(says(text), chunk({}, "stop")), request=ModelRequest("m", [])))
    assert untold.text == text


async def test_refusal_is_the_text_and_the_finish_reason() -> None:
    parts = [chunk({"refusal": "I will not "}), chunk({"refusal": "do that."}), chunk({}, "stop")]
    result = result_of(await collect(answering(*parts)))

    assert (result.text, result.finish_reason) == ("I will not do that.", "refusal")


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_finish_reason_of_a_cut_answer_is_in_its_result(reason: str) -> None:
    result = result_of(await collect(answering(says("A long answ"), chunk({}, reason))))

    assert (result.text, result.finish_reason) == ("A long answ", reason)


async def test_answer_without_usage_or_model_has_none() -> None:
    events = await collect(answering({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}))

    assert events[-1].usage is None
    assert events[-1].result == {"text": "x", "tool_calls": [], "finish_reason": "stop"}


async def test_model_that_fails_leaves_a_stage_without_its_completion() -> None:
    """Its chunks so far were yielded already; the runner restarts the stage."""
    model = answering(says("a"), ModelUnavailable("cut"))
    stage = model_stage("extraction", model, REQUEST, set())
    said = await anext(stage)

    with pytest.raises(ModelUnavailable, match="cut"):
        await anext(stage)
    assert isinstance(said, ToolCompletionChunk)
    assert model.is_closed


async def test_closed_stage_closes_the_provider_s_connection() -> None:
    model = answering(says("a"), says("b"))
    stage = model_stage("extraction", model, REQUEST, set())
    await anext(stage)
    await stage.aclose()

    assert model.is_closed


async def test_cancelled_stage_closes_the_provider_s_connection() -> None:
    model = answering()
    model.may_answer.clear()
    running = asyncio.create_task(collect(model))
    await model.is_asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert model.is_closed


@pytest.mark.parametrize(("choice", "called"), [("auto", True), ("none", False)])
async def test_call_in_text_counts_if_calls_are_wanted(choice: str, called: bool) -> None:
    said = '[get_weather(city="Paris")]'
    model = answering(says(said), chunk({}, "stop"))
    request = dataclasses.replace(REQUEST, tool_choice=choice)
    result = result_of([event async for event in model_stage("extraction", model, request, set())])

    assert bool(result.tool_calls) is called
    assert result.text == ("" if called else said)


# --- models that get their tools in the prompt -------------------------------

SAID_CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Köln"}}</tool_call>'
BROKEN = '<tool_call>{"name": "get_wea'


async def check(name: str, arguments: str) -> str | None:
    return None if name == "get_weather" and "city" in arguments else f"{name} does not take {arguments}"


async def prompt(model: ScriptedModel, again: InvalidAnswer | None = None, **fields: Any) -> list[Event]:
    request = dataclasses.replace(REQUEST, **fields)
    rules = AnswerRules(check, first_answer=again)
    return [event async for event in model_stage("extraction", model, request, {"call00001"}, rules)]


def says_all(text: str) -> ScriptedModel:
    counts = chunk(usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3})
    return answering(says(text[:12]), says(text[12:]), chunk({}, "stop"), counts)


async def test_prompted_model_gets_tools_in_the_prompt_and_calls_in_text() -> None:
    model = says_all(f"Let me see. {SAID_CALL}")
    events = await prompt(model)

    (asked,) = model.requests
    assert (asked.tools, asked.tool_choice, asked.parallel_tool_calls) == (None, None, None)
    assert "<tools>" in asked.messages[0]["content"]
    result = result_of(events)
    assert result.text == "Let me see."
    assert [(call.id, call.name, call.arguments) for call in result.tool_calls] == [
        ("call00002", "get_weather", '{"city":"Köln"}')
    ]
    raw = "".join(e.tool_results["choices"][0]["delta"].get("content", "") for e in events[:2])
    assert raw == f"Let me see. {SAID_CALL}", "the log holds what the model said"


async def test_prompted_model_gets_a_worked_example_if_configured() -> None:
    model, shown = says_all("It is warm."), says_all("It is warm.")
    await prompt(model)
    await prompt(shown, route=ModelRoute("m", "p", "m", Abilities(tools="prompted", worked_example=True), {}))

    system, *rest = model.requests[0].messages
    first, asked, called, *others = shown.requests[0].messages
    assert (first, others) == (system, rest)
    assert (asked["role"], called["role"]) == ("user", "assistant")
    assert "<tool_call>" in called["content"]


async def test_prompted_model_gets_a_second_try_and_both_are_counted() -> None:
    first = says_all(BROKEN)
    with pytest.raises(InvalidAnswer, match="not a JSON object") as failure:
        await prompt(first)
    second = says_all(SAID_CALL)
    events = await prompt(second, failure.value)

    assert second.requests[0].messages[: len(first.requests[0].messages)] == first.requests[0].messages
    assert second.requests[0].messages[-2] == {"role": "assistant", "content": BROKEN}
    assert "not a JSON object" in second.requests[0].messages[-1]["content"]
    assert len(result_of(events).tool_calls) == 1
    assert events[-1].usage == Usage(prompt_tokens=2, completion_tokens=4, total_tokens=6)


@pytest.mark.parametrize(
    ("text", "calls"), [(BROKEN, []), (SAID_CALL.replace("get_weather", "f"), ["f"]), ("It is warm.", [])]
)
async def test_prompted_model_s_second_answer_is_accepted(text: str, calls: list[str]) -> None:
    """A call that cannot be executed then gets an error result, as with any model."""
    result = result_of(await prompt(says_all(text), InvalidAnswer("x", ["x"], [], None), tool_choice="required"))

    assert [call.name for call in result.tool_calls] == calls
    assert result.text == ("" if calls else text)


async def test_prompted_model_without_tools_gets_no_tool_prompt() -> None:
    model = says_all(SAID_CALL)
    result = result_of(await prompt(model, tool_choice="none"))

    assert model.requests[0].messages == REQUEST.messages
    assert (result.text, result.tool_calls) == (SAID_CALL, [])


async def test_prompted_model_limited_to_one_call_makes_the_first() -> None:
    model = says_all(f"{SAID_CALL}\n{SAID_CALL.replace('Köln', 'Bonn')}")
    result = result_of(await prompt(model, parallel_tool_calls=False))

    assert [call.arguments for call in result.tool_calls] == ['{"city":"Köln"}']
    assert "one <tool_call> at the most" in model.requests[0].messages[0]["content"]


async def test_prompted_model_s_calls_parsed_by_the_server_are_accepted() -> None:
    result = result_of(await prompt(answering(calls(0, "c1", '{"city":"Köln"}'), chunk({}, "tool_calls"))))

    assert [(call.id, call.name) for call in result.tool_calls] == [("c1", "get_weather")]


# --- stripped chunks ---------------------------------------------------------


def test_strip_chunk_removes_what_every_chunk_repeats() -> None:
    assert strip_chunk(says("a")) == {"choices": [{"index": 0, "delta": {"content": "a"}}]}


def test_strip_chunk_keeps_the_content() -> None:
    said = {
        "choices": [
            {
                "index": 1,
                "delta": {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [{"id": None}]},
                "finish_reason": "stop",
                "logprobs": {"content": None},
            }
        ],
        "usage": {"prompt_tokens": 0, "details": None},
        "x_vendor": {"id": None},
    }

    assert strip_chunk({**chunk(), **said}) == said


def test_strip_chunk_removes_nulls_of_choices_and_deltas() -> None:
    nulls = chunk({"content": "a", "role": None, "tool_calls": None, "refusal": None}, usage=None, citations=None)

    assert strip_chunk(nulls) == {"choices": [{"index": 0, "delta": {"content": "a"}}]}


@pytest.mark.parametrize("choices", ["x", 7, {}, [None], ["x"], [[]], [{"delta": "x"}], [{"delta": []}]])
def test_strip_chunk_keeps_malformed_choices(choices: Any) -> None:
    assert strip_chunk({"choices": choices}) == {"choices": choices}


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "content": st.none() | st.text(max_size=5),
                "reasoning": st.none() | st.text(max_size=5),
                "refusal": st.none() | st.text(max_size=5),
            },
        ),
        max_size=5,
    )
)
def test_stripped_chunks_give_the_same_answer(deltas: list[dict[str, Any]]) -> None:
    """Except for the model's name, which the completion has."""
    whole, left = DeltaMerger(), DeltaMerger()
    for delta in deltas:
        whole.add(chunk(delta, model=None))
        left.add(strip_chunk(chunk(delta, model=None)))

    assert left.result() == whole.result()
