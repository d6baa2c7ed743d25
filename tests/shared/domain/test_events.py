"""Events: their names and payloads stay, each survives the log, and the served schema tells the truth."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from stagebus.shared.domain import events
from stagebus.shared.domain.event_schema import json_schema
from stagebus.shared.domain.events import (
    EVENT_BY_NAME,
    EVENTS,
    TERMINAL_NAMES,
    ApprovalDecided,
    ApprovalRequired,
    CallDeferred,
    Cancel,
    ChunkTemplate,
    Done,
    Error,
    Event,
    Gap,
    HistoryComposed,
    InputRequired,
    MergedInto,
    MessageAdded,
    RetryScheduled,
    RunQueued,
    RunStarted,
    StageCompleted,
    StageRestarted,
    StageStarted,
    ToolCall,
    ToolCompletionChunk,
    ToolProgress,
    ToolResult,
    ToolSummary,
)
from stagebus.shared.domain.runs import STATUS_BY_TERMINAL_EVENT
from stagebus.shared.domain.stage_results import ModelStageResult, ToolCallRequest, ToolOutcome, ToolStageResult
from stagebus.shared.domain.usage import Usage

OUTCOME = ToolOutcome(
    call_id="c1", name="get_weather", arguments='{"city": "Köln"}', content="14 °C\u2028", is_error=True
)
USAGE = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
CHUNK = {"choices": [{"index": 0, "delta": {"content": "a\n😊\x00"}}], "usage": {"total_tokens": 3}}

# Each event with all of its fields, and with as few as it can have.
FULL: list[Event] = [
    RunQueued(run_id="R", model="m"),
    RunStarted(attempt=5204, worker="host:1"),
    HistoryComposed(parent="R0", turns=2, messages=5, bytes=310, cut_turns=1),
    MessageAdded(run_id="R2", before="extraction.2", messages=[{"role": "user", "content": "and in Köln?"}]),
    RetryScheduled(retry_of="synthesis", retry=1, backoff_s=0.5, reason="overloaded"),
    StageStarted(
        stage_id="extraction", attempt=5204, chunk=ChunkTemplate(id="chatcmpl-1", created=1735689600, model="m")
    ),
    StageRestarted(stage_id="extraction", attempt=5205, discard_from=4),
    ToolCompletionChunk(stage_id="synthesis", tool_results=CHUNK),
    ApprovalRequired(stage_id="tools", call_id="c1", name="pay", arguments="{}", expires_at=1735689600000),
    InputRequired(stage_id="tools", call_id="c2", question="Which one?", expires_at=1735689600000),
    ApprovalDecided(
        stage_id="tools", call_id="c1", decision="deny", is_expired=True, arguments="{}", reason="no", text="yes"
    ),
    ToolCall(stage_id="tools", call_id="c1", name="get_weather", arguments="{}"),
    CallDeferred(
        stage_id="tools",
        call_id="c1",
        name="get_weather",
        arguments="{}",
        kind="client",
        expires_at=1735689600000,
        ref="5204-3",
        once=True,
        token_id="7f3a",
    ),
    ToolProgress(stage_id="tools", call_id="c1", message="half of it", fraction=0.5),
    ToolResult(
        stage_id="tools", call_id="c1", name="get_weather", content="14 °C", is_error=True, duration_ms=12, same_as="c0"
    ),
    ToolSummary(stage_id="tools", tool_summary=[OUTCOME]),
    StageCompleted(
        stage_id="tools.2", result=ToolStageResult(outcomes=[OUTCOME]).model_dump(), usage=USAGE, duration_ms=1250
    ),
    Done(usage=USAGE, merged_into=MergedInto(run_id="R2", event_id="5204-9")),
    Cancel(),
    Error(error="the model's provider answered 500", code="model_unavailable", failed_stage="extraction"),
]
BARE: list[Event] = [
    HistoryComposed(turns=0, messages=0, bytes=0),
    StageStarted(stage_id="tools", attempt=1),
    CallDeferred(stage_id="tools", call_id="c1", name="f", arguments="", kind="deferred", expires_at=1, ref="1-1"),
    ToolProgress(stage_id="tools", call_id="c1", message=""),
    ToolCompletionChunk(stage_id="extraction", tool_results={}),
    ApprovalDecided(stage_id="tools", call_id="c1", decision="approve"),
    ToolResult(stage_id="tools", call_id="c1", name="f", content=""),
    ToolSummary(stage_id="tools", tool_summary=[]),
    StageCompleted(stage_id="extraction", result=ModelStageResult().model_dump()),
    Done(),
    Error(error="x", code="internal"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def name_of(event: Event) -> str:
    return event.event


def test_names_are_never_changed() -> None:
    """Clients and stored logs use these names."""
    assert [event.event for event in EVENTS] == [
        "run_queued", "run_started", "history_composed", "message_added", "retry_scheduled", "stage_started",
        "stage_restarted", "tool_completion_chunk",
        "approval_required", "input_required", "approval_decided", "tool_call", "call_deferred", "tool_progress", "tool_result",
        "tool_summary", "stage_completed", "done", "cancel", "error",
    ]  # fmt: skip
    assert {"done", "cancel", "error"} == TERMINAL_NAMES == set(STATUS_BY_TERMINAL_EVENT)
    assert Gap.event == "gap"


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (
            ToolCompletionChunk(stage_id="extraction", tool_results={"choices": []}),
            {"stage_id": "extraction", "tool_results": {"choices": []}},
        ),
        (
            ToolSummary(
                stage_id="tools", tool_summary=[ToolOutcome(call_id="1", name="f", arguments="{}", content="r")]
            ),
            {
                "stage_id": "tools",
                "tool_summary": [{"call_id": "1", "name": "f", "arguments": "{}", "content": "r", "is_error": False}],
            },
        ),
        (Done(), {"stage_id": "run", "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}),
        (Cancel(), {"stage_id": "run"}),
        (Error(error="why", code="internal"), {"stage_id": "run", "error": "why", "code": "internal"}),
    ],
    ids=lambda value: value.event if isinstance(value, Event) else "",
)
def test_payloads_that_existing_front_ends_know_stay(event: Event, payload: dict[str, Any]) -> None:
    assert orjson.loads(event.data()) == payload


def test_samples_are_of_every_event() -> None:
    assert [type(event) for event in FULL] == list(EVENTS)


@pytest.mark.parametrize("event", [*FULL, *BARE], ids=name_of)
def test_event_survives_the_log(event: Event) -> None:
    data = event.data()

    assert events.decode(event.event, data) == event
    assert b"\n" not in data
    assert b"\r" not in data
    assert orjson.loads(data)["stage_id"] == event.stage_id


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_whatever_a_provider_sends_survives_the_log(chunk: dict[str, Any]) -> None:
    event = ToolCompletionChunk(stage_id="extraction", tool_results=chunk)

    assert events.decode(event.event, event.data()) == event


@pytest.mark.parametrize("event", [*FULL, *BARE], ids=name_of)
def test_served_schema_holds_for_every_event(event: Event) -> None:
    assert problems(event.event, orjson.loads(event.data())) == []


@pytest.mark.parametrize("event", [*FULL, *BARE], ids=name_of)
def test_served_schema_refuses_what_is_no_such_event(event: Event) -> None:
    payload = orjson.loads(event.data())

    assert problems(event.event, {**payload, "stage_id": 1})
    assert problems(event.event, [payload])


@pytest.mark.parametrize("event", [*FULL, *BARE], ids=name_of)
def test_unknown_fields_of_an_event_are_ignored(event: Event) -> None:
    """While a system is upgraded, older processes and clients read what newer ones write."""
    payload = {**orjson.loads(event.data()), "from_the_future": {"n": 1}}

    assert events.decode(event.event, orjson.dumps(payload)) == event
    assert problems(event.event, payload) == []


def test_served_schema_holds_for_a_gap() -> None:
    gap = Gap(requested="5-1", earliest="0-1", latest="9-9")

    assert problems("gap", orjson.loads(gap.model_dump_json())) == []
    assert problems("gap", {"requested": "5-1"})


def test_served_schema_is_one_and_names_every_frame() -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)

    assert set(schema["x-events"]) == {*EVENT_BY_NAME, "gap", "status"}
    assert {"ModelStageResult", "ToolStageResult"} <= set(schema["$defs"])


def problems(name: str, payload: Any) -> list[str]:
    schema = json_schema()
    one = {"$defs": schema["$defs"], **schema["x-events"][name]}
    return [error.message for error in Draft202012Validator(one).iter_errors(payload)]


def test_fields_without_a_value_are_left_out() -> None:
    assert set(orjson.loads(StageStarted(stage_id="tools", attempt=1).data())) == {"stage_id", "attempt"}
    assert set(orjson.loads(StageCompleted(stage_id="tools", result={}).data())) == {"stage_id", "result"}
    assert "failed_stage" not in orjson.loads(Error(error="x", code="internal").data())


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("ping", b"{}", KeyError),
        ("gap", b'{"requested":"1-1","earliest":"0-1","latest":"0-1"}', KeyError),
        ("tool_call", b'{"stage_id":"tools"}', ValidationError),
        ("cancel", b"", ValidationError),
        ("cancel", b"[]", ValidationError),
    ],
)
def test_invalid_event_is_an_error(name: str, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        events.decode(name, data)


@pytest.mark.parametrize("event", FULL, ids=name_of)
def test_events_have_a_timestamp_except_frequent_ones(event: Event) -> None:
    stamped = event.stamped(1769860800123)
    is_lean = isinstance(event, ToolCompletionChunk | ToolProgress)

    assert orjson.loads(stamped.data()) == orjson.loads(event.data()) | ({} if is_lean else {"at": 1769860800123})
    assert problems(event.event, orjson.loads(stamped.data())) == []
    assert events.decode(event.event, stamped.data()) == stamped


def test_event_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Cancel().stage_id = "tools"


def test_stage_results_survive_their_event() -> None:
    asked = ModelStageResult(
        text="x", tool_calls=[ToolCallRequest(id="1", name="f", arguments="{")], finish_reason="tool_calls", model="m"
    )
    completed = StageCompleted(stage_id="extraction", result=asked.model_dump(exclude_none=True))
    stored = events.decode(completed.event, completed.data())

    assert isinstance(stored, StageCompleted)
    assert ModelStageResult.model_validate(stored.result) == asked
