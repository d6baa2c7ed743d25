"""Event ids. One id is the Redis entry id, the SSE id and the client's cursor.

    5204-118      event 118 of the run, written by attempt 5204
    0             as a cursor: from the start; -1 and an empty cursor mean the same

Redis orders entry ids by both parts, as tuples are ordered here. The sequences of a run are consecutive, so a reader
can detect a missing event.
Spec: https://redis.io/docs/latest/develop/data-types/streams/#entry-ids
"""

import re
from typing import Final, NamedTuple

from stagebus.shared.errors import BadCursor

# Both parts are unsigned 64-bit in Redis. An attempt counts ms since the run's creation, a sequence counts its events.
_PART_DIGITS_MAX: Final = 15
_PART: Final = rf"[1-9][0-9]{{0,{_PART_DIGITS_MAX - 1}}}"
EVENT_ID_PATTERN: Final = rf"(0|{_PART})-({_PART})"
_EVENT_ID: Final = re.compile(EVENT_ID_PATTERN)
# The cursors that clients may send, for the OpenAPI document.
CURSOR_PATTERN: Final = rf"^(-1|0|0-0|(0|{_PART})-{_PART})?$"
FROM_START: Final = frozenset({"", "0", "-1", "0-0"})


class EventId(NamedTuple):
    """The attempt that wrote an event, and the sequence of the event in the run."""

    attempt: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.sequence}"


START: Final = EventId(0, 0)


def parse_id(text: str) -> EventId:
    """Parses an event id from Redis or from a frame; the inverse of `str`.

    Raises:
        ValueError: the text is not of the form `<attempt>-<sequence>`.
    """
    attempt, dash, sequence = text.partition("-")
    if not dash:
        raise ValueError(f"not an event id: {text!r}")
    return EventId(int(attempt), int(sequence))


def parse_cursor(text: str | None) -> EventId:
    """Parses the cursor that a client sent. Returns `START` if there is none.

    Raises:
        BadCursor: the text is neither an event id nor one of the values for the start.
    """
    text = (text or "").strip(" ")
    if text in FROM_START:
        return START
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        raise BadCursor
    return EventId(int(match[1]), int(match[2]))
