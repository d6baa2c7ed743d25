"""The order of stages, and the conversation of each."""

from typing import Any

import pytest

from stagebus.shared.domain.events import StageCompleted
from stagebus.shared.domain.requests import RunRequest
from stagebus.shared.domain.stage_results import ModelStageResult, ToolCallRequest, ToolOutcome, ToolStageResult
from stagebus.shared.domain.usage import Usage
from stagebus.worker.execution.pipeline import (
    call_ids,
    conversation,
    next_stage,
    stage_option,
    tool_choice,
    total_usage,
)
from stagebus.worker.model.chat_request import ORIGIN_KEY, MessageOrigin

USER = {"role": "user", "content": "hi"}


def request(**fields: Any) -> RunRequest:
    return RunRequest(model="m", messages=[USER], timeout_s=60, **fields)


def asked(stage_id: str, *call_ids: str, text: str = "") -> StageCompleted:
    calls = [ToolCallRequest(id=call_id, name="f", arguments='{"a": 1}') for call_id in call_ids]
    usage = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
    return StageCompleted(
        stage_id=stage_id, result=ModelStageResult(text=text, tool_calls=calls).model_dump(), usage=usage
    )


def ran(stage_id: str, *call_ids: str) -> StageCompleted:
    outcomes = [ToolOutcome(call_id=i, name="f", arguments="{}", content=f"result of {i}") for i in call_ids]
    return StageCompleted(stage_id=stage_id, result=ToolStageResult(outcomes=outcomes).model_dump())


def test_conversation_carries_what_a_provider_wants_back() -> None:
    """The dialect sends it to that provider and to no other."""
    notes = {"google": {"thought_signature": "abc="}}
    call = ToolCallRequest(id="1", name="f", arguments="{}", extra_content=notes)
    result = ModelStageResult(tool_calls=[call], provider="gemini", reasoning="because")
    extraction = StageCompleted(stage_id="extraction", result=result.model_dump(exclude_none=True))
    message = conversation(request(), {"extraction": extraction, "tools": ran("tools", "1")})[1]

    assert message["tool_calls"][0]["extra_content"] == notes
    assert message[ORIGIN_KEY] == MessageOrigin("gemini", "because")


def walk(run: RunRequest, *completed: StageCompleted) -> str | None:
    stage = next_stage(run, {stage.stage_id: stage for stage in completed})
    return stage and stage.stage_id


def test_pipeline_runs_its_stages_in_order() -> None:
    assert walk(request()) == "extraction"
    assert walk(request(), asked("extraction", "1")) == "tools"
    assert walk(request(), asked("extraction", "1"), ran("tools", "1")) == "synthesis"
    assert walk(request(), asked("extraction", "1"), ran("tools", "1"), asked("synthesis", text="x")) is None


def test_pipeline_ends_when_the_model_calls_no_tool() -> None:
    assert walk(request(), asked("extraction", text="hello")) is None


def test_pipeline_without_synthesis_ends_with_the_tools() -> None:
    assert walk(request(synthesis=False), asked("extraction", "1"), ran("tools", "1")) is None


def test_pipeline_repeats_rounds_until_no_tool_is_called() -> None:
    three = request(max_rounds=3)
    first = [asked("extraction", "1"), ran("tools", "1")]

    assert walk(three, *first) == "extraction.2"
    assert walk(three, *first, asked("extraction.2", "2")) == "tools.2"
    assert walk(three, *first, asked("extraction.2", text="done")) is None
    second = [*first, asked("extraction.2", "2"), ran("tools.2", "2")]
    assert walk(three, *second) == "extraction.3"
    assert walk(three, *second, asked("extraction.3", "3"), ran("tools.3", "3")) == "synthesis"


def test_conversation_carries_every_call_and_its_result() -> None:
    stages = [asked("extraction", "1", "2", text="let me see"), ran("tools", "1", "2")]

    messages = conversation(request(), {stage.stage_id: stage for stage in stages})

    assert messages[0] == USER
    assert messages[1]["content"] == "let me see"
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["1", "2"]
    assert messages[2:] == [
        {"role": "tool", "tool_call_id": "1", "content": "result of 1"},
        {"role": "tool", "tool_call_id": "2", "content": "result of 2"},
    ]


def test_messages_that_joined_the_run_stand_before_their_stage() -> None:
    added = {
        name: [{"role": "user", "content": name}]
        for name in ("extraction", "extraction.2", "extraction.3", "synthesis")
    }
    stages = [asked("extraction", "1"), ran("tools", "1"), asked("extraction.2", "2"), ran("tools.2", "2")]
    completed = {stage.stage_id: stage for stage in stages}

    def contents(max_rounds: int) -> list[str | None]:
        return [message["content"] for message in conversation(request(max_rounds=max_rounds), completed, added)]

    rounds = ["hi", "extraction", None, "result of 1", "extraction.2", None, "result of 2"]
    assert contents(2) == [*rounds, "synthesis"]
    del added["synthesis"]
    assert contents(3) == [*rounds, "extraction.3"]


def test_pipeline_option_has_one_value_per_model_stage() -> None:
    run = request(max_tokens=(10, 20))
    extraction = next_stage(run, {})
    stages = [asked("extraction", "1"), ran("tools", "1")]
    synthesis = next_stage(run, {stage.stage_id: stage for stage in stages})

    assert extraction is not None
    assert synthesis is not None
    assert stage_option(run.max_tokens, extraction) == 10
    assert stage_option(run.max_tokens, synthesis) == 20


def test_pipeline_sums_usage_and_collects_call_ids() -> None:
    stages = [asked("extraction", "1"), ran("tools", "1"), asked("extraction.2", "2")]
    completed = {stage.stage_id: stage for stage in stages}

    assert total_usage(completed) == Usage(prompt_tokens=2, completion_tokens=4, total_tokens=6)
    assert call_ids(completed) == {"1", "2"}


NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("choice", "later"), [("auto", "auto"), ("none", "none"), ("required", "auto"), (NAMED, "auto")]
)
def test_required_tool_choice_applies_to_the_first_round_only(choice: Any, later: str) -> None:
    """Otherwise a run with many rounds would call that tool in each round and never answer."""
    run = request(tool_choice=choice, max_rounds=3)
    stages = [asked("extraction", "1"), ran("tools", "1")]
    first, second = next_stage(run, {}), next_stage(run, {stage.stage_id: stage for stage in stages})

    assert first is not None
    assert second is not None
    assert tool_choice(run, first) == choice
    assert tool_choice(run, second) == later
