"""The events of the Responses view, against OpenAI's own types and a golden file made from its documentation."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from stagebus.gateway.streaming.fold import END, RunFacts
from stagebus.gateway.views.responses_fold import ResponsesFold
from stagebus.shared.domain.events import (
    ApprovalDecided,
    ApprovalRequired,
    Cancel,
    Done,
    Error,
    Event,
    InputRequired,
    RunStarted,
    StageCompleted,
    ToolCall,
    ToolCompletionChunk,
    ToolResult,
)
from tests.support.runs_by_hand import chunk
from tests.support.scripted_log import (
    ANSWERED,
    ASKING,
    CALLS,
    DONE,
    EVENTS,
    RESTART,
    fold_events,
    frames_of,
    thought,
)

RUN = RunFacts("01RUN", 1_700_000_000_123, "m", {"user": "42"})
RESULT = ANSWERED[1]
GOLDEN = Path(__file__).parent / "golden" / "responses.sse"
SDK_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def fold(events: Iterable[Event]) -> tuple[ResponsesFold, list[dict[str, Any]]]:
    folded = ResponsesFold(RUN)
    frames = frames_of(b"".join(fold_events(folded, events)).decode())
    for name, data in frames:
        assert name == data["type"]
        SDK_EVENT.validate_python(data)
    assert [data["sequence_number"] for _, data in frames] == list(range(len(frames)))
    return folded, [data for _, data in frames]


def test_whole_run_gives_the_golden_events() -> None:
    messages = fold_events(ResponsesFold(RUN), [*EVENTS, DONE])

    assert b"".join(messages) == GOLDEN.read_bytes()


def test_every_item_is_added_and_done_once_and_the_output_has_those_that_are_not_void() -> None:
    folded, events = fold([*EVENTS, DONE])
    added = [event["output_index"] for event in events if event["type"] == "response.output_item.added"]
    done = {event["output_index"]: event["item"] for event in events if event["type"] == "response.output_item.done"}
    response = events[-1]["response"]

    assert added == sorted(done) == list(range(7))
    assert response == folded.response()
    assert response["output"] == [done[index] for index in (0, 1, 2, 3, 6)]
    assert [done[index]["content"] for index in (4, 5)] == [[], []]
    assert Response.model_validate(response, strict=False).output_text == "I look it up.The sun shines."
    assert not [event for event in events if "function_call" in event["type"]]


@pytest.mark.parametrize("count", range(len(EVENTS) + 1))
def test_response_is_valid_at_every_moment(count: int) -> None:
    folded, _ = fold(EVENTS[:count])
    response = Response.model_validate(folded.response())

    assert response.status == ("queued" if count == 0 else "in_progress")
    texts = {1: "", 6: "I look it up.", RESTART: "I look it up.It rai", RESTART + 1: "I look it up."}
    assert response.output_text == texts.get(count, response.output_text)


def test_run_that_waits_for_its_client_is_two_responses() -> None:
    folded = ResponsesFold(RUN._replace(client_tools=frozenset({"locate"})))
    messages = fold_events(folded, [*ASKING, *ANSWERED, DONE])
    cut = messages.index(END)
    parts = [frames_of(b"".join(part).decode()) for part in (messages[:cut], messages[cut + 1 :])]

    assert cut == len(messages) - 1 - messages[::-1].index(END)
    for number, part in enumerate(parts, 1):
        events = [SDK_EVENT.validate_python(data) and data for _, data in part]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
        assert events[-1]["response"] == folded.response(number)
        assert Response.model_validate(folded.response(number)).status == "completed"
    assert [item["type"] for item in folded.ended[0]["output"]] == ["message", "mcp_call", "function_call"]
    assert folded.response(3) is None
    assert not [data for _, data in parts[1] if "call" in data["type"]]


@pytest.mark.parametrize(
    ("between", "items", "is_cut"),
    [
        # Another client gives the result before the last call of the workers has ended.
        ([ASKING[-2], RESULT, ASKING[-1]], ["function_call", "function_call_output", "mcp_call"], False),
        # Arguments that do not fit: the call reaches no client.
        ([RESULT.model_copy(update={"is_error": True}), ASKING[-1]], ["mcp_call", "mcp_call"], False),
        # A call of a deferred tool ends elsewhere.
        ([ASKING[-2].model_copy(update={"kind": "deferred"}), ASKING[-1]], ["mcp_call"], False),
        ([ASKING[-1], ASKING[-2]], ["function_call", "mcp_call"], True),
    ],
)
def test_response_ends_only_where_its_client_is_the_only_one_to_wait_for(
    between: list[Event], items: list[str], is_cut: bool
) -> None:
    folded = ResponsesFold(RUN._replace(client_tools=frozenset({"locate"})))
    messages = fold_events(folded, [*ASKING[:-2], *between])
    response = folded.response(1)

    assert response is not None
    assert (END in messages, len(folded.ended)) == (is_cut, int(is_cut))
    assert sorted(item["type"] for item in response["output"][1:]) == sorted(items)


def test_result_decides_on_text_and_calls() -> None:
    result = {"text": "Hello.", "tool_calls": CALLS[:1]}
    for deltas in ([chunk("<think>so</think>Hel"), chunk("lo.")], []):
        _, events = fold([*deltas, StageCompleted(stage_id="extraction", result=result)])
        (text,) = [event["text"] for event in events if event["type"] == "response.output_text.done"]
        (arguments,) = [event for event in events if event["type"] == "response.mcp_call_arguments.done"]
        assert text == "Hello."
        assert arguments["arguments"] == CALLS[0]["arguments"]
        assert arguments["item_id"] == "mcp_01RUN_call_0"


@pytest.mark.parametrize(
    ("end", "kind", "status"),
    [
        (Error(error="it broke", code="model_error"), "response.failed", "failed"),
        (Cancel(), "response.incomplete", "cancelled"),
    ],
)
def test_early_end_closes_open_items_with_their_text(end: Event, kind: str, status: str) -> None:
    calls = StageCompleted(stage_id="extraction", result={"text": "I look.", "tool_calls": CALLS[:1]})
    folded, events = fold([calls, thought("Hm", "synthesis"), chunk("Half", "synthesis"), end])

    assert events[-1]["type"] == kind
    assert events[-1]["response"]["status"] == folded.status == status
    assert [item["status"] for item in folded.response()["output"]] == ["completed", *["incomplete"] * 3]
    assert Response.model_validate(folded.response()).output_text == "I look.Half"
    error = folded.response()["error"]
    assert error == (None if isinstance(end, Cancel) else {
        "code": "server_error", "message": "it broke", "type": "model_error",
    })  # fmt: skip


def test_approvals_are_items() -> None:
    folded, events = fold(
        [
            ApprovalRequired(stage_id="tools", call_id="call_0", name="weather", arguments="{}", expires_at=5),
            InputRequired(stage_id="tools", call_id="call_1", question="Which city?", expires_at=5),
            ApprovalDecided(stage_id="tools", call_id="call_0", decision="deny", reason="no"),
            ApprovalDecided(stage_id="tools", call_id="call_1", decision="answer", text="Oslo"),
        ]
    )
    request, question, denied, answered = folded.response()["output"]

    assert len(events) == 2 + 8
    assert request["id"] == denied["approval_request_id"] == "mcpr_01RUN_call_0"
    assert question["arguments"] == '{"question":"Which city?"}'
    assert (denied["approve"], denied["reason"]) == (False, "no")
    assert (answered["approve"], answered["reason"]) == (True, "Oslo")


def test_arguments_are_those_with_which_a_call_ran() -> None:
    folded, _ = fold(
        [
            StageCompleted(stage_id="extraction", result={"tool_calls": CALLS[:1]}),
            ToolCall(stage_id="tools", call_id="call_0", name="weather", arguments='{"city":"Bergen"}'),
            ToolResult(stage_id="tools", call_id="call_0", name="weather", content="rain"),
            ToolResult(stage_id="tools", call_id="unknown", name="other", content="late"),
        ]
    )

    known, unknown = folded.response()["output"]
    assert (known["arguments"], known["output"]) == ('{"city":"Bergen"}', "rain")
    assert (unknown["name"], unknown["output"]) == ("other", "late")


@pytest.mark.parametrize(
    "chunk_data",
    [{}, {"choices": None}, {"choices": [7]}, {"choices": [{"delta": 7}]}, {"choices": [{"delta": {"content": {}}}]}],
)
def test_odd_chunks_give_no_event(chunk_data: dict[str, Any]) -> None:
    _, events = fold([RunStarted(attempt=1, worker="w"), ToolCompletionChunk.of("extraction", chunk_data), Done()])

    assert [event["type"] for event in events][3:] == ["response.completed"]


def test_parts_of_a_list_are_text_and_reasoning() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Hi"}]
    _, events = fold([ToolCompletionChunk.of("extraction", {"choices": [{"delta": {"content": parts}}]})])

    assert [event["delta"] for event in events if "delta" in event] == ["Hm.", "Hi"]
