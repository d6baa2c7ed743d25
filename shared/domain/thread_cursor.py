"""Event ids of a thread's stream: the run's id, and the event's id within the run's log.

01J9ZK3V7Q8E5W2R4T6Y8U0P1A.5204-118      event 118 of that run
0                                        as a cursor: from the thread's first turn; -1 and an empty cursor mean the same
"""

import re
from typing import Final, NamedTuple

from stagebus.shared.domain.cursor import EVENT_ID_PATTERN, FROM_START, START, EventId
from stagebus.shared.domain.run_id_pattern import PATTERN
from stagebus.shared.thread_errors import BadThreadCursor

_EVENT_ID: Final = re.compile(rf"({PATTERN})\.{EVENT_ID_PATTERN}")
# The cursors that clients may send, for the OpenAPI document.
THREAD_CURSOR_PATTERN: Final = rf"^(-1|0|0-0|{PATTERN}\.{EVENT_ID_PATTERN})?$"


class ThreadCursor(NamedTuple):
    """The run and the event that a client saw last; `run_id` is empty at the start."""

    run_id: str
    event_id: EventId

    def __str__(self) -> str:
        return f"{self.run_id}.{self.event_id}" if self.run_id else "0"


THREAD_START: Final = ThreadCursor("", START)


def parse_thread_cursor(text: str | None) -> ThreadCursor:
    """Parses the cursor that a client sent. Returns `THREAD_START` if there is none.

    Raises:
        BadThreadCursor: the text is neither an event id of a thread nor one of the values for the start.
    """
    text = (text or "").strip(" ")
    if text in FROM_START:
        return THREAD_START
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        raise BadThreadCursor
    return ThreadCursor(match[1], EventId(int(match[2]), int(match[3])))
