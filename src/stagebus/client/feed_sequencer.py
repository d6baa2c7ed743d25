"""Orders the entries of a tenant's feed, so that a client sees each once. No I/O.

An id is a time in ms and a number, so ids grow. A `gap` has no id: the feed no longer has the cursor.
"""

from typing import Any, ClassVar, NamedTuple

import orjson
from httpx_sse import ServerSentEvent

from stagebus.client.client_errors import BadCursor, StreamBroken
from stagebus.client.event_sequencer import GAP, STATUS
from stagebus.shared.domain.cursor import START, EventId, parse_cursor
from stagebus.shared.errors import BadCursor as InvalidCursor


class FeedEvent(NamedTuple):
    """A change of one of the tenant's runs.

    Attributes:
        id: the cursor after it; empty for a `gap`.
        event: run_created, run_started, run_waiting, run_ended, run_deleted, or gap.
        data: `run_id`, `status`, `at` and others; see `GET /runs/events`.
    """

    id: str
    event: str
    data: dict[str, Any]


class FeedSequencer:
    """Tracks how far a client has read the feed.

    Attributes:
        cursor: the id of the last entry; "0" for the oldest one that is kept.
    """

    has_pages: ClassVar[bool] = True

    def __init__(self, cursor: str) -> None:
        """Start after `cursor`.

        Raises:
            BadCursor: it is not an entry's id and does not mean the start.
        """
        try:
            self._last = parse_cursor(cursor)
        except InvalidCursor as exc:
            raise BadCursor(str(exc)) from None
        self.cursor = cursor
        self.is_ended = False
        self.gap_retries = 0

    def accept(self, frame: ServerSentEvent) -> list[FeedEvent]:
        """Return the new entries of a frame: one, or none.

        Raises:
            StreamBroken: the frame is not an entry of a feed.
        """
        if not frame.data or frame.event == STATUS:
            return []
        try:
            data = orjson.loads(frame.data)
            entry_id = START if frame.event == GAP else parse_cursor(frame.id)
        except (ValueError, InvalidCursor):
            raise StreamBroken("the stream contains something other than entries of a feed") from None
        if frame.event == GAP:
            self._last = START  # the entries that follow may be older than the cursor
            return [FeedEvent("", GAP, data)]
        if entry_id <= self._last:
            return []
        self._move(entry_id)
        return [FeedEvent(frame.id, frame.event, data)]

    def _move(self, entry_id: EventId) -> None:
        self._last, self.cursor = entry_id, str(entry_id)
