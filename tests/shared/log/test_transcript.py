"""The messages of a run, for every beginning of a log: each call has exactly one result."""

from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.shared.domain.events import (
    ApprovalDecided,
    Cancel,
    Event,
    MessageAdded,
    RunQueued,
    RunStarted,
    StageCompleted,
    StageRestarted,
    StageStarted,
    ToolCall,
    ToolCompletionChunk,
    ToolResult,
    ToolSummary,
)
from stagebus.shared.domain.model_items import ModelItems
from stagebus.shared.domain.stage_results import ModelStageResult, ToolCallRequest, ToolOutcome, ToolStageResult
from stagebus.shared.log import transcript
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.log.transcript import LOST, NOT_RUN, OUTCOME_UNKNOWN, Message, Transcript, turn_messages

QUESTION = {"role": "user", "content": "And in Rome?"}


def stored(events: Iterable[Event]) -> list[StoredEvent]:
    """The events as Redis holds them, with the sequences of a log."""
    return [
        StoredEvent(b"7-%d" % sequence, event.stage_id, event.event.encode(), event.data())
        for sequence, event in enumerate(events, start=1)
    ]


def messages_of(*events: Event) -> list[Message]:
    return turn_messages(stored(events))


def chunk(stage_id: str, text: str) -> Event:
    return ToolCompletionChunk.of(stage_id, {"choices": [{"index": 0, "delta": {"content": text}}]})


def said(stage_id: str, text: str = "", *calls: str, **fields: Any) -> Event:
    requests = [ToolCallRequest(id=call_id, name="look", arguments='{"at":1}') for call_id in calls]
    result = ModelStageResult(text=text, tool_calls=requests, **fields)
    return StageCompleted(stage_id=stage_id, result=result.model_dump(exclude_none=True))


def started(call_id: str, stage_id: str = "tools", arguments: str = '{"at":1}') -> Event:
    return ToolCall(stage_id=stage_id, call_id=call_id, name="look", arguments=arguments)


def resulted(call_id: str, stage_id: str = "tools", content: str = "found", *, is_error: bool = False) -> Event:
    return ToolResult(stage_id=stage_id, call_id=call_id, name="look", content=content, is_error=is_error)


def ran(stage_id: str, *call_ids: str) -> Event:
    outcomes = [ToolOutcome(call_id=c, name="look", arguments='{"at":1}', content="found") for c in call_ids]
    return StageCompleted(stage_id=stage_id, result=ToolStageResult(outcomes=outcomes).model_dump())


def called(text: str | None, *calls: str, arguments: str = '{"at":1}') -> Message:
    tool_calls = [
        {"id": call_id, "type": "function", "function": {"name": "look", "arguments": arguments}} for call_id in calls
    ]
    return {"role": "assistant", "content": text, "tool_calls": tool_calls}


def result(call_id: str, content: str = "found", **fields: bool) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": content, **fields}


def answer(text: str, **fields: bool) -> Message:
    return {"role": "assistant", "content": text, **fields}


# --- cases ---------------------------------------------------------------------


def test_run_that_never_began_has_no_messages() -> None:
    assert messages_of(RunQueued(run_id="R", model="m"), Cancel()) == []


def test_rounds_and_the_final_text_follow_each_other() -> None:
    assert messages_of(
        said("extraction", "let me look", "a", "b"), ran("tools", "a", "b"),
        said("extraction.2", "", "c"), ran("tools.2", "c"),
        said("extraction.3"), said("synthesis", "It is mild"),
    ) == [
        called("let me look", "a", "b"), result("a"), result("b"),
        called(None, "c"), result("c"),
        answer("It is mild"),
    ]  # fmt: skip


def test_order_of_the_stages_counts_and_not_that_of_the_events() -> None:
    """A reader may take one stage's events after the other's."""
    events = stored([said("extraction", "", "a"), ran("tools", "a"), said("synthesis", "yes")])

    assert turn_messages(reversed(events)) == turn_messages(events)


def test_unfinished_model_stage_leaves_its_text_since_the_last_restart() -> None:
    log = [
        StageStarted(stage_id="synthesis", attempt=7), chunk("synthesis", "void"),
        StageRestarted(stage_id="synthesis", attempt=8, discard_from=2), chunk("synthesis", "It is"), chunk("synthesis", " mi"),
    ]  # fmt: skip

    assert messages_of(*log) == [answer("It is mi", partial=True)]
    assert messages_of(*log[:3]) == []


def test_reasoning_is_no_part_of_a_partial_answer() -> None:
    assert messages_of(chunk("extraction", "<think>hm</think>Yes")) == [answer("Yes", partial=True)]


def test_calls_of_an_unfinished_round_have_made_up_results() -> None:
    assert messages_of(
        said("extraction", "", "done", "failed", "cut", "waiting"), StageStarted(stage_id="tools", attempt=7),
        started("done"), started("failed"), started("cut"), resulted("done"), resulted("failed", content="no", is_error=True),
    ) == [
        called(None, "done", "failed", "cut", "waiting"),
        result("done"), result("failed", "no", is_error=True),
        result("cut", OUTCOME_UNKNOWN, is_error=True), result("waiting", NOT_RUN, is_error=True),
    ]  # fmt: skip


def test_calls_of_a_round_that_never_began_were_not_run() -> None:
    assert messages_of(said("extraction", "", "a")) == [called(None, "a"), result("a", NOT_RUN, is_error=True)]


def test_calls_have_the_arguments_with_which_they_ran() -> None:
    changed = ApprovalDecided(stage_id="tools", call_id="a", decision="approve", arguments='{"at":2}')

    assert messages_of(said("extraction", "", "a"), changed)[0] == called(None, "a", arguments='{"at":2}')
    assert messages_of(said("extraction", "", "a"), changed, started("a", arguments='{"at":3}'))[0] == called(
        None, "a", arguments='{"at":3}'
    )


def test_added_messages_stand_where_the_model_got_them() -> None:
    log = [
        said("extraction", "", "a"), ran("tools", "a"),
        MessageAdded(run_id="S", before="extraction.2", messages=[QUESTION]),
        said("extraction.2", "", "b"), ran("tools.2", "b"),
        MessageAdded(run_id="T", before="synthesis", messages=[QUESTION]),
    ]  # fmt: skip
    rounds = [called(None, "a"), result("a"), QUESTION, called(None, "b"), result("b"), QUESTION]

    assert messages_of(*log) == rounds
    assert messages_of(*log, chunk("synthesis", "Also")) == [*rounds, answer("Also", partial=True)]


def test_notes_of_the_model_are_kept_for_it_and_not_for_clients() -> None:
    log = stored([said("extraction", "", "a", reasoning="hm", provider="p"), said("synthesis", "yes", provider="p")])
    items = {"extraction": orjson.dumps({"api": "responses", "provider": "p", "model": "m", "items": [{"type": "x"}]})}

    first, _, last = turn_messages(log, items)
    assert first["origin"] == {"provider": "p", "reasoning": "hm", "items": orjson.loads(items["extraction"])}
    assert "origin" not in last
    assert all("origin" not in message for message in transcript.public_messages(turn_messages(log, items)))


def test_notes_that_nest_too_deeply_are_dropped() -> None:
    """Redis has them a few levels higher; a run must end whatever a provider has sent."""
    deep: Any = {}
    for _ in range(250):
        deep = {"a": deep}
    items = {"synthesis": ModelItems("chat", "p", "m", [deep]).data()}

    assert turn_messages(stored([said("synthesis", "yes", provider="p")]), items) == [answer("yes")]


def test_too_many_notes_are_dropped_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "TURN_ITEMS_MAX_BYTES", 60)
    log = stored([said("extraction", "x", provider="p"), said("synthesis", "y", provider="p")])

    items = ModelItems("chat", "p", "m", []).data()
    assert turn_messages(log, {"extraction": items, "synthesis": items}) == [answer("x"), answer("y")]
    assert turn_messages(log, {"synthesis": items})[1]["origin"] == {"provider": "p", "items": orjson.loads(items)}


def test_turn_that_is_too_long_loses_its_earliest_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "TURN_MAX_BYTES", 2_000)
    log = [
        said("extraction", "", "a"), started("a"), resulted("a", content="x" * 1500),
        said("extraction.2", "", "b"), started("b", "tools.2"), resulted("b", "tools.2", content="y" * 1000),
    ]  # fmt: skip

    contents = [message["content"] for message in messages_of(*log) if message["role"] == "tool"]
    assert contents == [transcript.LEFT_OUT, "y" * 1000]


def test_lost_stage_leaves_what_can_be_read_and_a_note() -> None:
    lost = Transcript()
    for event in stored([said("extraction", "", "a"), said("synthesis", "yes")]):
        lost.add(event)
    lost.lose("tools")

    assert lost.messages() == [
        called(None, "a"), result("a", OUTCOME_UNKNOWN, is_error=True), answer("yes"), answer(LOST, partial=True),
    ]  # fmt: skip


@pytest.mark.parametrize("name", [b"stage_completed", b"tool_result", b"tool_completion_chunk", b"message_added"])
def test_unreadable_event_counts_as_lost(name: bytes) -> None:
    assert turn_messages([StoredEvent(b"7-1", "extraction", name, b"{")]) == [answer(LOST, partial=True)]


# --- any log -------------------------------------------------------------------


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """A run's log as workers write it: some rounds, any results among them, restarts, and messages that join it."""
    events: list[Event] = [RunQueued(run_id="R", model="m"), RunStarted(attempt=7, worker="w")]
    round_count = draw(st.integers(0, 3))
    for number in range(1, round_count + 1):
        suffix = "" if number == 1 else f".{number}"
        extraction, tools = f"extraction{suffix}", f"tools{suffix}"
        events += draw(speech(events, extraction))
        call_ids = [f"c{number}-{n}" for n in range(draw(st.integers(1, 4)))]
        events.append(said(extraction, draw(st.sampled_from(["", "hm"])), *call_ids))
        events += draw(calls(tools, call_ids))
    final = draw(st.sampled_from(["synthesis", f"extraction.{round_count + 1}" if round_count else "extraction"]))
    events += draw(speech(events, final))
    return [*events, said(final, "the end"), Cancel()]


@st.composite
def speech(draw: st.DrawFn, before: list[Event], stage_id: str) -> list[Event]:
    """A model stage up to its completion."""
    added = [MessageAdded(run_id="S", before=stage_id, messages=[QUESTION])] * draw(st.integers(0, 2))
    events: list[Event] = [*added, StageStarted(stage_id=stage_id, attempt=7)]
    first = len(before) + len(events) + 1
    for _ in range(draw(st.integers(0, 2))):
        events += [chunk(stage_id, "a"), chunk(stage_id, "b")]
        events.append(StageRestarted(stage_id=stage_id, attempt=7, discard_from=first))
    return [*events, chunk(stage_id, "c")]


@st.composite
def calls(draw: st.DrawFn, stage_id: str, call_ids: list[str]) -> list[Event]:
    """A tools stage: each call starts and ends at any time; denied ones never start."""
    events: list[Event] = [StageStarted(stage_id=stage_id, attempt=7)]
    denied = draw(st.sets(st.sampled_from(call_ids)))
    order = draw(st.permutations([c for c in call_ids for _ in range(2)]))
    seen: set[str] = set()
    for call_id in order:
        if call_id not in seen and call_id not in denied:
            events.append(started(call_id, stage_id))
        elif call_id in seen:
            events.append(resulted(call_id, stage_id))
        seen.add(call_id)
    outcomes = [ToolOutcome(call_id=c, name="look", arguments="{}", content="found") for c in call_ids]
    return [*events, ToolSummary(stage_id=stage_id, tool_summary=outcomes), ran(stage_id, *call_ids)]


@given(logs())
def test_every_beginning_of_every_log_is_closed(events: list[Event]) -> None:
    log = stored(events)
    for end in range(len(log) + 1):
        messages = turn_messages(log[:end])
        open_ids: list[str] = []
        for message in messages:
            if message["role"] == "tool":
                assert message["tool_call_id"] == open_ids.pop(0), "results follow their calls, in their order"
            else:
                assert open_ids == [], "nothing stands between a call and its result"
                open_ids = [call["id"] for call in message.get("tool_calls", ())]
        assert open_ids == []
        added = sum(event.event == b"message_added" for event in log[:end])
        assert messages.count(QUESTION) == added
        assert sum(bool(message.get("partial")) for message in messages) <= 1


@given(logs(), st.data())
def test_logged_results_are_never_made_up_again(events: list[Event], data: st.DataObject) -> None:
    """A longer log changes only the last stage's messages: results of calls that had one stay."""
    log = stored(events)
    end = data.draw(st.integers(0, len(log)))

    def real(messages: list[Message]) -> set[str]:
        return {m["tool_call_id"] for m in messages if m["role"] == "tool" and not m.get("is_error")}

    assert real(turn_messages(log[:end])) <= real(turn_messages(log))
