"""The events of a run within its thread's stream: as stored, with the run's id before each event's id.

id: 01J9ZK3V7Q8E5W2R4T6Y8U0P1A.5204-118
"""

from typing import Final
from weakref import WeakValueDictionary

import orjson

from stagebus.gateway.streaming.views import EventView
from stagebus.shared.domain.thread_cursor import ThreadCursor
from stagebus.shared.domain.thread_frames import (
    ThreadFrame,
    ThreadGap,
    TurnDeleted,
    WaitingChanged,
    WaitingInThread,
)
from stagebus.shared.log import sse
from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.log_page import LogGap, Page
from stagebus.shared.store.thread_news import StoredTurn

_ID: Final = b"id: "
_FRAME_END: Final = b"\n\n"


class TurnEventsView(EventView):
    """The events of one turn. All clients of the thread share it, and so the bytes of each live batch."""

    __slots__ = ("__weakref__", "_batch", "_between", "_frame", "_frames", "_prefix", "_run_id")

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._prefix = _ID + run_id.encode() + b"."
        self._between = _FRAME_END + self._prefix
        self._frame = sse.FRAME.replace(_ID, self._prefix)
        self._batch: LiveBatch | None = None
        self._frames = b""

    def encode_page(self, page: Page) -> bytes:
        """Returns all events of the page."""
        return page.frames(self._frame)

    def encode_batch(self, batch: LiveBatch) -> bytes:
        """Returns the frames of the batch; all subscribers share these bytes."""
        if batch is not self._batch:
            # Data is one line of JSON, so an empty line ends a frame.
            rest = batch.frames[len(_ID) :].replace(_FRAME_END + _ID, self._between)
            self._batch, self._frames = batch, self._prefix + rest
        return self._frames

    def encode_gap(self, gap: LogGap) -> bytes:
        """Returns the frame that tells the client of a gap in the run's log."""
        requested, earliest, latest = (str(ThreadCursor(self._run_id, event_id)) for event_id in gap)
        return encode_frame(ThreadGap(run_id=self._run_id, requested=requested, earliest=earliest, latest=latest))


class TurnEventsViews:
    """The views of the turns that are streamed by this process. A view exists as long as a client uses it."""

    def __init__(self) -> None:
        self._by_run: WeakValueDictionary[str, TurnEventsView] = WeakValueDictionary()

    def of(self, run_id: str) -> TurnEventsView:
        """Returns the shared view of a turn."""
        view = self._by_run.get(run_id)
        if view is None:
            view = self._by_run[run_id] = TurnEventsView(run_id)
        return view


def encode_frame(frame: ThreadFrame) -> bytes:
    """Encodes a frame without an id."""
    return sse.encode_without_id(frame.event, frame.model_dump_json())


def encode_turn(turn: StoredTurn) -> bytes:
    """Encodes the frame that begins a turn."""
    return b"event: turn\ndata: %b\n\n" % orjson.dumps(_fields(turn))


def encode_snapshot(turn: StoredTurn, result: bytes) -> bytes:
    """Encodes a turn without a log. Args: `result`: the messages of its result, JSON."""
    fields = _fields(turn) | {"status": turn.status, "result": orjson.Fragment(result)}
    return sse.encode(str(ThreadCursor(turn.run_id, turn.end_id)).encode(), b"turn_snapshot", orjson.dumps(fields))


def encode_deleted(turn: StoredTurn) -> bytes:
    """Encodes the frame that tells of the deletion of a turn which the client has passed."""
    return encode_frame(_deleted(turn))


def encode_deleted_in_place(turn: StoredTurn) -> bytes:
    """Encodes the frame in place of a deleted turn, with the cursor after it: it may be the thread's last one."""
    cursor = ThreadCursor(turn.run_id, turn.end_id)
    return sse.encode(str(cursor).encode(), TurnDeleted.event.encode(), _deleted(turn).model_dump_json().encode())


def _deleted(turn: StoredTurn) -> TurnDeleted:
    return TurnDeleted(run_id=turn.run_id, parent_run_id=turn.parent_run_id or None, seq=turn.seq)


def encode_waiting(runs: list[WaitingInThread]) -> bytes:
    """Encodes the frame with the runs that wait."""
    return encode_frame(WaitingChanged(runs=runs))


def encode_thread_gap(requested: ThreadCursor, turn: StoredTurn | None) -> bytes:
    """Encodes the gap of a cursor within a turn without a log, or of one that is in no turn of the thread."""
    return encode_frame(ThreadGap(run_id=turn and turn.run_id, requested=str(requested)))


def _fields(turn: StoredTurn) -> dict[str, object]:
    return {
        "run_id": turn.run_id,
        "parent_run_id": turn.parent_run_id or None,
        "seq": turn.seq,
        "messages": orjson.Fragment(turn.messages),
    }
