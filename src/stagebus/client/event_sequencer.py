"""Where a client stands in a run: the rule book of following one; no I/O.

What a client keeps is its cursor. Each event's sequence has to follow the last one's: a lower
one is known already, a higher one shows a hole. A `gap` takes back what the log lost.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from httpx_sse import ServerSentEvent

from stagebus.client.client_errors import BadCursor
from stagebus.shared.domain.cursor import parse_cursor, parse_id
from stagebus.shared.domain.runs import STATUS_BY_TERMINAL_EVENT
from stagebus.shared.errors import BadCursor as NoCursor

if TYPE_CHECKING:
    from stagebus.events import Event, Gap

GAP: Final = "gap"


class Received(NamedTuple):
    """One event as it came; of a `gap` the id is empty."""

    id: str
    event: str
    data: dict[str, Any]

    @property
    def sequence(self) -> int:
        """The event's number in its run, from 1; 0 of a gap."""
        return parse_id(self.id).sequence if self.id else 0

    @property
    def typed(self) -> "Event | Gap | None":
        """The event as its class in `stagebus.events`; None where this version knows none of that name.

        Raises:
            pydantic.ValidationError: the payload is not that event's.
        """
        # Here, since they take longer to import than all else that a client needs.
        from stagebus.events import EVENT_BY_NAME, Gap

        kind = Gap if self.event == GAP else EVENT_BY_NAME.get(self.event)
        # A newer gateway's further fields are none of ours.
        return None if kind is None else kind.model_validate(self.data, extra="ignore")


class SequenceGap(Exception):
    """The stream skipped events: ask again from the cursor."""


class EventSequencer:
    """How far a client has followed a run: what it must know to miss nothing and see nothing twice."""

    def __init__(self, cursor: str = "") -> None:
        """Start after `cursor`.

        Raises:
            BadCursor: it is neither an event id nor a word for the start.
        """
        try:
            start = parse_cursor(cursor)
        except NoCursor as exc:
            raise BadCursor(str(exc)) from None
        self.cursor = str(start) if start.sequence else ""
        self.is_ended = False
        self._sequence = start.sequence

    def take(self, frame: ServerSentEvent) -> Received | None:
        """Go on by one frame; None where it has no event, or one that is known already.

        Raises:
            Hole: events between the last one and this one did not come.
            ValueError: the frame is not one of a run's.
        """
        if not frame.data:  # a retry frame
            return None
        received = Received(frame.id, frame.event, orjson.loads(frame.data))
        if received.event == GAP:
            # The log lost what came from here on; what it has now comes instead.
            self._sequence = parse_id(received.data["earliest"]).sequence - 1
            return received._replace(id="")
        if received.sequence <= self._sequence:
            return None
        if received.sequence != self._sequence + 1:
            raise SequenceGap(f"{received.id} after sequence {self._sequence}")
        self._sequence = received.sequence
        self.cursor = received.id
        self.is_ended = received.event in STATUS_BY_TERMINAL_EVENT
        return received
