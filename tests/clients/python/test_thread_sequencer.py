"""A thread's events at the client, over any connection that may break after any frame."""

import itertools
from typing import Any

import orjson
import pytest
from httpx_sse import ServerSentEvent

from stagebus.client.client_errors import BadCursor, StreamBroken
from stagebus.client.event_sequencer import SequenceGap
from stagebus.client.thread_sequencer import ThreadSequencer
from stagebus.client.thread_state import ThreadState

RUNS = [f"01J9ZK3V7Q8E5W2R4T6Y8U0P{n}A" for n in range(3)]
USER = [{"role": "user", "content": "Hello"}]


def frame(event: str, data: dict[str, Any], event_id: str = "") -> ServerSentEvent:
    return ServerSentEvent(event=event, data=orjson.dumps(data).decode(), id=event_id)


def turn(run_id: str, parent: str | None = None) -> ServerSentEvent:
    seq = RUNS.index(run_id) + 1
    return frame("turn", {"run_id": run_id, "parent_run_id": parent, "seq": seq, "messages": USER})


def log(run_id: str) -> list[ServerSentEvent]:
    """Returns the events of a run that says its own id."""
    chunk = {"stage_id": "extraction", "tool_results": {"choices": [{"index": 0, "delta": {"content": run_id}}]}}
    events = [
        ("run_queued", {}), ("run_started", {}), ("stage_started", {"stage_id": "extraction"}),
        ("tool_completion_chunk", chunk), ("stage_completed", {"stage_id": "extraction"}), ("done", {}),
    ]  # fmt: skip
    return [frame(name, data, f"{run_id}.0-{n}") for n, (name, data) in enumerate(events, start=1)]


def stream(cursor: str) -> list[ServerSentEvent]:
    """Returns what a gateway sends after a cursor: from the turn of the cursor on."""
    run_id, _, event_id = cursor.partition(".")
    frames: list[ServerSentEvent] = []
    for at, one in enumerate(RUNS[RUNS.index(run_id) if run_id else 0 :], start=RUNS.index(run_id) if run_id else 0):
        events = [
            e for e in log(one) if one != run_id or int(e.id.rpartition("-")[2]) > int(event_id.partition("-")[2])
        ]
        if events:
            frames += [turn(one, RUNS[at - 1] if at else None), *events]
    return [*frames, frame("waiting", {"runs": []})]


@pytest.mark.parametrize("first", range(len(stream(""))))
def test_each_event_comes_once_wherever_connections_break(first: int) -> None:
    for second in range(1, 8):
        sequencer, state = ThreadSequencer(), ThreadState()
        seen = []
        for length in itertools.chain((first, second), itertools.repeat(1000)):
            for one in stream(sequencer.cursor)[:length]:
                for received in sequencer.accept(one):
                    state.apply(received)
                    seen.append(received)
            if length == 1000:
                break
        ids = [received.id for received in seen if received.id]

        assert ids == [event.id for run_id in RUNS for event in log(run_id)]
        assert [received.run_id for received in seen if received.event == "turn"] == RUNS
        assert [t.text for t in state.branch] == RUNS
        assert state.active is None


def test_snapshot_replaces_what_was_seen_of_a_turn() -> None:
    sequencer, state = ThreadSequencer(), ThreadState()
    gap = {"run_id": RUNS[0], "requested": f"{RUNS[0]}.0-4", "earliest": None, "latest": None}
    result = [{"role": "assistant", "content": "short", "partial": True}]
    snapshot = {"run_id": RUNS[0], "parent_run_id": None, "seq": 1, "status": "cancelled", "messages": USER}
    frames = [
        turn(RUNS[0]), *log(RUNS[0])[:4], frame("gap", gap),
        frame("turn_snapshot", {**snapshot, "result": result}, f"{RUNS[0]}.0-9"), turn(RUNS[1], RUNS[0]), *log(RUNS[1]),
    ]  # fmt: skip
    for one in frames:
        for received in sequencer.accept(one):
            state.apply(received)

    assert [(t.text, t.run.status) for t in state.branch] == [("short", "cancelled"), (RUNS[1], "succeeded")]
    assert sequencer.cursor == f"{RUNS[1]}.0-6"


def test_gap_in_a_run_discards_what_the_log_lost() -> None:
    sequencer, state = ThreadSequencer(), ThreadState()
    again = [frame(e.event, orjson.loads(e.data), e.id.replace(".0-", ".7-")) for e in log(RUNS[0])[3:]]
    gap = {"run_id": RUNS[0], "requested": f"{RUNS[0]}.0-5", "earliest": "7-4", "latest": "7-6"}
    for one in [turn(RUNS[0]), *log(RUNS[0])[:5], frame("gap", gap), *again]:
        for received in sequencer.accept(one):
            state.apply(received)

    assert state.branch[0].text == RUNS[0]
    assert sequencer.cursor == f"{RUNS[0]}.7-6"


def test_deleted_turn_leaves_the_branch_and_its_children_stay() -> None:
    sequencer, state = ThreadSequencer(), ThreadState()
    deleted = frame("turn_deleted", {"run_id": RUNS[0], "parent_run_id": None, "seq": 1})
    for one in [turn(RUNS[0]), *log(RUNS[0]), turn(RUNS[1], RUNS[0]), *log(RUNS[1]), deleted]:
        for received in sequencer.accept(one):
            state.apply(received)

    assert [t.run_id for t in state.branch] == [RUNS[1]]
    assert state.active is None


def test_deletion_in_place_of_a_turn_moves_the_cursor_past_it() -> None:
    sequencer = ThreadSequencer()
    for one in [turn(RUNS[0]), *log(RUNS[0])]:
        sequencer.accept(one)
    told = {"run_id": RUNS[1], "parent_run_id": RUNS[0], "seq": 2}
    (deleted,) = sequencer.accept(frame("turn_deleted", told, f"{RUNS[1]}.7-9"))

    assert (deleted.id, deleted.run_id) == ("", RUNS[1])
    assert sequencer.cursor == f"{RUNS[1]}.7-9"
    sequencer.accept(frame("turn_deleted", {**told, "run_id": RUNS[0], "seq": 1}, f"{RUNS[1]}.7-9"))
    assert sequencer.cursor == f"{RUNS[1]}.7-9", "the id of a frame before it"


def test_event_of_another_turn_is_asked_for_again_and_then_refused() -> None:
    sequencer = ThreadSequencer()
    sequencer.accept(turn(RUNS[0]))
    for _ in range(3):
        with pytest.raises(SequenceGap):
            sequencer.accept(log(RUNS[1])[0])
    with pytest.raises(StreamBroken):
        sequencer.accept(log(RUNS[1])[0])


@pytest.mark.parametrize("cursor", ["5-1", "x", f"{RUNS[0]}", f"{RUNS[0]}.5", f"{RUNS[0]}.5-1\n"])
def test_cursor_of_a_run_is_no_cursor_of_a_thread(cursor: str) -> None:
    with pytest.raises(BadCursor):
        ThreadSequencer(cursor)
