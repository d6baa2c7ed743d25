"""Event ids, which are at once the Redis entry id, the SSE id and the client's cursor.

    5204-118      event 118 of the run, written by attempt 5204
    0             a cursor: from the start (so is -1, and none at all)

Redis orders entry ids by both parts, as tuples order here. Sequences of a run are
consecutive, so whoever reads them sees that nothing is missing.
Spec: https://redis.io/docs/latest/develop/data-types/streams/#entry-ids
"""

import re
from typing import Final, NamedTuple

from stagebus.shared.errors import BadCursor

# Redis's parts are unsigned 64 bit; an attempt counts ms since a run's birth, a sequence its events.
_PART_DIGITS_MAX: Final = 15
_PART: Final = rf"[1-9][0-9]{{0,{_PART_DIGITS_MAX - 1}}}"
_EVENT_ID: Final = re.compile(rf"(0|{_PART})-({_PART})")
# What a client may send, for the API's description.
CURSOR_PATTERN: Final = rf"^(-1|0|0-0|(0|{_PART})-{_PART})?$"
_FROM_START: Final = frozenset({"", "0", "-1", "0-0"})


class EventId(NamedTuple):
    """One event's place: the attempt that wrote it and its run-wide sequence."""

    attempt: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.sequence}"


START: Final = EventId(0, 0)


def parse_id(text: str) -> EventId:
    """The id out of what Redis or a frame says; the inverse of `str`.

    Raises:
        ValueError: not of the form `<attempt>-<sequence>`.
    """
    attempt, dash, sequence = text.partition("-")
    if not dash:
        raise ValueError(f"no event id: {text!r}")
    return EventId(int(attempt), int(sequence))


def parse_cursor(text: str | None) -> EventId:
    """The cursor that a client sent; `START` where it asks for everything.

    Raises:
        BadCursor: neither an event id nor a word for the start.
    """
    text = (text or "").strip(" ")
    if text in _FROM_START:
        return START
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        raise BadCursor
    return EventId(int(match[1]), int(match[2]))
