"""Orders the events of a thread: its turns, and the events of each turn's run. No I/O.

An id is `<run id>.<event id>`. The frames `turn`, `waiting` and `gap` have no id and move no cursor, and `turn_deleted` only
where it stands in place of a turn. The JavaScript client applies the same rules in thread_sequencer.ts.
"""

from typing import Any, ClassVar, Final, NamedTuple

import orjson
from httpx_sse import ServerSentEvent

from stagebus.client.client_errors import BadCursor, StreamBroken
from stagebus.client.event_sequencer import GAP, GAP_RETRIES_MAX, STATUS, EventSequencer, RunEvent, SequenceGap
from stagebus.shared.domain.thread_cursor import THREAD_START, parse_thread_cursor
from stagebus.shared.errors import BadCursor as InvalidCursor

TURN: Final = "turn"
TURN_SNAPSHOT: Final = "turn_snapshot"
TURN_DELETED: Final = "turn_deleted"
WAITING: Final = "waiting"
_WITHOUT_ID: Final = frozenset({TURN, TURN_DELETED, WAITING, GAP})


class ThreadEvent(NamedTuple):
    """One event of a thread as it was received.

    Attributes:
        id: `<run id>.<event id>`, a cursor; empty for frames about the thread itself.
        event: the event's name, or `turn`, `turn_snapshot`, `turn_deleted`, `waiting`, `gap`.
        run_id: the run that it belongs to; empty for `waiting`, and for a `gap` of the whole thread.
    """

    id: str
    event: str
    data: dict[str, Any]
    run_id: str

    @property
    def run_event(self) -> RunEvent | None:
        """The event as its run has it; None for frames that are not of a run's log."""
        if self.event == GAP:
            return RunEvent("", GAP, self.data) if self.run_id and self.data.get("earliest") else None
        return (
            None
            if self.event == TURN_SNAPSHOT or not self.id
            else RunEvent(self.id.partition(".")[2], self.event, self.data)
        )


class ThreadSequencer:
    """Tracks how far a client has followed a thread, so that it misses no event and sees none twice.

    Attributes:
        cursor: the id of the last event; empty for the start.
        is_ended: the stream has ended for good, which only a stream until the thread is idle does.
        gap_retries: how often in a row the stream has been requested again because of a missing event.
    """

    has_pages: ClassVar[bool] = False

    def __init__(self, cursor: str = "") -> None:
        """Start after `cursor`.

        Raises:
            BadCursor: the cursor is not an event id of a thread and does not mean the start.
        """
        try:
            start = parse_thread_cursor(cursor)
        except InvalidCursor as exc:
            raise BadCursor(str(exc)) from None
        self.cursor = "" if start == THREAD_START else str(start)
        self.is_ended = False
        self.gap_retries = 0
        self._run_id = start.run_id
        self._run = EventSequencer(str(start.event_id) if start.run_id else "")
        self._is_turn_told = False

    def accept(self, frame: ServerSentEvent) -> list[ThreadEvent]:
        """Return the new events of a frame: usually one; none for a duplicate and for a frame without an event.

        Raises:
            SequenceGap: an event is missing; reconnect from the cursor.
            StreamBroken: the frame is not an event of a thread, even after retries.
        """
        if not frame.data or frame.event == STATUS:
            return []
        if frame.event in _WITHOUT_ID or frame.event == TURN_SNAPSHOT:
            return self._accept_frame(frame, _parse_object(frame.data))
        run_id, _, event_id = frame.id.partition(".")
        if not run_id or run_id != self._run_id:
            self._retry(f"an event of run {run_id or 'none'} in the turn of {self._run_id or 'none'}")
        received = self._run.accept(ServerSentEvent(frame.event, frame.data, event_id, frame.retry))
        self.gap_retries = self._run.gap_retries
        return [self._of_run(event) for event in received]

    def _of_run(self, received: RunEvent) -> ThreadEvent:
        if not received.id:
            return ThreadEvent("", received.event, {"run_id": self._run_id, **received.data}, self._run_id)
        self.cursor = f"{self._run_id}.{received.id}"
        return ThreadEvent(self.cursor, received.event, received.data, self._run_id)

    def _accept_frame(self, frame: ServerSentEvent, data: dict[str, Any]) -> list[ThreadEvent]:
        run_id = str(data.get("run_id") or "")
        if frame.event == TURN:
            if run_id == self._run_id and self._is_turn_told:
                return []
            if run_id != self._run_id:
                self._begin(run_id)
            self._is_turn_told = True
        elif frame.event == TURN_SNAPSHOT:
            if frame.id == self.cursor:
                return []
            self._begin(run_id)
            self.cursor = frame.id
            return [ThreadEvent(frame.id, frame.event, data, run_id)]
        elif frame.event == TURN_DELETED:
            if run_id == self._run_id:
                self._begin("")
            if frame.id.startswith(f"{run_id}."):  # in place of the turn; httpx_sse repeats the last id otherwise
                self.cursor = frame.id
        elif frame.event == GAP:
            self._accept_gap(run_id, data)
        return [ThreadEvent("", frame.event, data, run_id)]

    def _accept_gap(self, run_id: str, data: dict[str, Any]) -> None:
        earliest = str(data.get("earliest") or "")
        if run_id and run_id == self._run_id and earliest:
            # The run's own rules: its events are discarded from `earliest` on, and sent again.
            ids = {"requested": data.get("requested"), "earliest": earliest, "latest": data.get("latest")}
            self._run.accept(ServerSentEvent(GAP, orjson.dumps(ids).decode()))
        else:
            self._begin("")

    def _begin(self, run_id: str) -> None:
        self._run_id = run_id
        self._run = EventSequencer()
        self._is_turn_told = False

    def _retry(self, fault: str) -> None:
        self.gap_retries += 1
        if self.gap_retries <= GAP_RETRIES_MAX:
            raise SequenceGap(fault)
        raise StreamBroken(f"the stream of the thread has {fault}, even after retries")


def _parse_object(text: str) -> dict[str, Any]:
    try:
        data = orjson.loads(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise SequenceGap("a frame is not a JSON object")
    return data
