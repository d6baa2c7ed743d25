"""Orders the events of a run: finds duplicates, missing events and changed logs by their ids; no I/O.

An id is `<attempt>-<sequence>`. Sequences are consecutive and attempts only grow, so a missing event, a duplicate
and a log that was rewritten all show in the ids. The JavaScript client applies the same rules in event_sequencer.ts.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import orjson
from httpx_sse import ServerSentEvent

from stagebus.client.client_errors import BadCursor, StreamBroken
from stagebus.shared.domain.cursor import START, EventId, parse_cursor, parse_id
from stagebus.shared.domain.runs import STATUS_BY_TERMINAL_EVENT
from stagebus.shared.errors import BadCursor as InvalidCursor

if TYPE_CHECKING:
    from stagebus.events import Event, Gap

GAP: Final = "gap"
STATUS: Final = "status"  # not an event of the log
# A gap that stays after this many requests is in the log itself, not in the connection.
GAP_RETRIES_MAX: Final = 3


class RunEvent(NamedTuple):
    """One event as it was received; the id of a `gap` is empty."""

    id: str
    event: str
    data: dict[str, Any]

    @property
    def sequence(self) -> int:
        """The event's number in its run, from 1; 0 for a gap."""
        return parse_id(self.id).sequence if self.id else 0

    @property
    def typed(self) -> "Event | Gap | None":
        """The event as its class in `stagebus.events`; None if this version has no class for it.

        Raises:
            pydantic.ValidationError: the data does not fit the class.
        """
        # Imported here, because these classes take longer to import than the rest of the client.
        from stagebus.events import EVENT_BY_NAME, Gap

        kind = Gap if self.event == GAP else EVENT_BY_NAME.get(self.event)
        # A newer gateway may send fields that this version does not know.
        return None if kind is None else kind.model_validate(self.data, extra="ignore")


class SequenceGap(Exception):
    """An event is missing or cannot follow the last one: request the log again from the cursor."""


class EventSequencer:
    """Tracks how far a client has followed a run, so that it misses no event and sees none twice.

    Attributes:
        cursor: the id of the last event; empty for the start.
        is_ended: the terminal event was received.
        gap_retries: how often in a row the log has been requested again.
    """

    has_pages: ClassVar[bool] = True

    def __init__(self, cursor: str = "") -> None:
        """Start after `cursor`.

        Raises:
            BadCursor: the cursor is not an event id and does not mean the start.
        """
        try:
            start = parse_cursor(cursor)
        except InvalidCursor as exc:
            raise BadCursor(str(exc)) from None
        self.cursor = str(start) if start.sequence else ""
        self.is_ended = False
        self.gap_retries = 0
        self._last = start
        self._last_id = self.cursor  # empty while the last event is not known

    def accept(self, frame: ServerSentEvent) -> list[RunEvent]:
        """Return the new events of a frame.

        The list is empty for a duplicate and for a frame without an event. After `GAP_RETRIES_MAX` retries in vain it
        has two items: a `gap`, which says what the log lost, and the event behind it.

        Raises:
            SequenceGap: an event is missing or cannot follow the last one.
            StreamBroken: the frame is not an event of a run, after as many retries.
        """
        if not frame.data:  # a retry frame
            return []
        data = _parse_object(frame.data)
        if frame.event == GAP and data is not None:
            return [self._accept_gap(data)]
        if not frame.id or frame.event == STATUS:  # httpx-sse repeats the last id for frames without one
            return []
        event_id = None if data is None else _parse_event_id(frame.id)
        if event_id is not None and not self._contradicts_log(event_id):
            if event_id.sequence <= self._last.sequence:
                return []
            if event_id.sequence == self._last.sequence + 1:
                return [self._advance(event_id, frame.event, data)]
        requested = self.cursor or str(START.sequence)
        self.gap_retries += 1
        if self.gap_retries <= GAP_RETRIES_MAX:
            raise SequenceGap(f"{frame.id} after {requested}")
        if event_id is None:
            raise StreamBroken(f"the data after event {requested} is not an event of a run, even after retries")
        gap = RunEvent("", GAP, {"requested": requested, "earliest": frame.id, "latest": frame.id})
        return [gap, self._advance(event_id, frame.event, data)]

    def _accept_gap(self, data: dict[str, Any]) -> RunEvent:
        # The log lost the events from `earliest` on, and sends what it has instead.
        earliest = _parse_event_id(str(data.get("earliest", "")))
        self._last = EventId(0, 0 if earliest is None else earliest.sequence - 1)
        self._last_id = ""
        return RunEvent("", GAP, data)

    def _advance(self, event_id: EventId, event: str, data: dict[str, Any] | None) -> RunEvent:
        self._last = event_id
        self.cursor = self._last_id = str(event_id)
        self.gap_retries = 0
        self.is_ended = event in STATUS_BY_TERMINAL_EVENT
        return RunEvent(self.cursor, event, data or {})

    def _contradicts_log(self, event_id: EventId) -> bool:
        """Return True for an older attempt's later event, a newer attempt's earlier one, or another last event."""
        if event_id.sequence > self._last.sequence:
            return event_id.attempt < self._last.attempt
        if event_id.sequence == self._last.sequence and self._last_id not in ("", str(event_id)):
            return True
        return event_id.attempt > self._last.attempt


def _parse_object(text: str) -> dict[str, Any] | None:
    try:
        data = orjson.loads(text)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _parse_event_id(text: str) -> EventId | None:
    try:
        return parse_id(text)
    except ValueError:
        return None
