r"""The wire format of Durable Streams, reading: offsets, cursors, bodies and server-sent events. No I/O.

    GET …?offset=-1                         event: data
    Stream-Next-Offset: 000000005204-…118   data:[{"id":"5204-118","event":"done","data":{}}]
    Stream-Up-To-Date: true
                                            event: control
    [{"id":"5204-118",…}]                   data:{"streamNextOffset":"000000005204-…118","streamClosed":true}

An offset is the id of the last message before it, in a form that sorts as text. Nothing here knows runs.
Spec: https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md
"""

import random
import re
from base64 import b64encode
from collections.abc import Sequence
from typing import Final, NamedTuple

from starlette.datastructures import QueryParams

from stagebus.gateway.api.responses import JSON
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.position_errors import BadOffset
from stagebus.shared.runtime.clock import wall_ms

OFFSET_PATTERN: Final = "[0-9]{12}-[0-9]{12}"
BEGINNING: Final = "-1"
NOW: Final = "now"
LONG_POLL: Final = "long-poll"
SSE: Final = "sse"

# A cursor is the number of an interval. A cache keeps an answer to a live request for one interval at most.
CURSOR_EPOCH_MS: Final = 1_728_432_000_000  # 2024-10-09T00:00Z
CURSOR_INTERVAL_MS: Final = 20_000
CURSOR_JITTER_MAX: Final = 180
_CURSOR: Final = re.compile("[0-9]{1,15}")

_OFFSET: Final = re.compile(OFFSET_PATTERN)
_NEW_LINE: Final = re.compile(rb"\r\n|\n|\r")
_BASE64: Final = {"Stream-SSE-Data-Encoding": "base64"}


def encode_offset(position: EventId) -> str:
    """Returns the offset after a message."""
    return f"{position.attempt:012d}-{position.sequence:012d}"


def parse_offset(text: str) -> EventId:
    """Parses an offset that a response gave; the inverse of `encode_offset`.

    Raises:
        BadOffset: it has another form.
    """
    if _OFFSET.fullmatch(text) is None:
        raise BadOffset
    attempt, sequence = text.split("-")
    return EventId(int(attempt), int(sequence))


class ReadQuery(NamedTuple):
    """The parsed query of a read.

    Attributes:
        after: the offset; None for the current tail.
        live: `long-poll`, `sse` or empty.
        cursor: the least cursor that the responses may have.
    """

    after: EventId | None
    live: str
    cursor: int


def parse_query(params: QueryParams) -> ReadQuery:
    """Parses the query of a read.

    Raises:
        BadOffset: the offset is given twice or has no valid form, or `live` is unknown or has no offset.
    """
    offsets, live = params.getlist("offset"), params.get("live")
    if len(offsets) > 1:
        raise BadOffset("give one offset, not several")
    if live not in (None, LONG_POLL, SSE):
        raise BadOffset(f"live must be {LONG_POLL} or {SSE}")
    if live and not offsets:
        raise BadOffset(f"live needs an offset: {BEGINNING} for the start, or the last Stream-Next-Offset")
    offset = offsets[0] if offsets else BEGINNING
    cursor = params.get("cursor", "")
    given = int(cursor) if _CURSOR.fullmatch(cursor) else None
    if offset == NOW:
        return ReadQuery(None, live or "", _least_cursor(given))
    return ReadQuery(START if offset == BEGINNING else parse_offset(offset), live or "", _least_cursor(given))


def _least_cursor(given: int | None) -> int:
    """Returns a cursor after the given one if the current interval is not; the jitter keeps clients from moving together."""
    if given is None or given < _interval():
        return 0
    return given + random.randint(1, CURSOR_JITTER_MAX)  # noqa: S311 - jitter


def _interval() -> int:
    return (wall_ms() - CURSOR_EPOCH_MS) // CURSOR_INTERVAL_MS


def cursor_from(least: int) -> int:
    """Returns the cursor of a live response."""
    return max(_interval(), least)


class StreamPage(NamedTuple):
    """Consecutive messages of a stream.

    Attributes:
        after: the position before them.
        next: the position after them.
        is_tail: the stream had no more at the time of the read.
        is_closed: there will never be more. Only at the tail.
    """

    messages: Sequence[bytes]
    after: EventId
    next: EventId
    is_tail: bool
    is_closed: bool


class StreamFormat:
    """How a stream of one content type is encoded.

    JSON messages become an array. The bytes of others are concatenated; in server-sent events, those that are no text
    are base64.
    """

    def __init__(self, content_type: str) -> None:
        media_type = content_type.partition(";")[0].strip().lower()
        self.content_type = content_type
        self.is_json = media_type == JSON
        self._is_text = media_type.startswith("text/")
        self.sse_headers = {} if self.is_json or self._is_text else _BASE64

    def encode_body(self, messages: Sequence[bytes]) -> bytes:
        """Returns the body of a page."""
        return b"[%b]" % b",".join(messages) if self.is_json else b"".join(messages)

    def encode_data(self, messages: Sequence[bytes]) -> bytes:
        """Returns the `data` event of at least one message."""
        body = self.encode_body(messages)
        if self.is_json:  # one line: a line break in JSON is escaped
            return b"event: data\ndata:%b\n\n" % body
        lines = _NEW_LINE.split(body) if self._is_text else [b64encode(body)]
        return b"event: data\n%b\n" % b"".join(map(_encode_line, lines))


def _encode_line(line: bytes) -> bytes:
    space = b" " if line.startswith(b" ") else b""  # a parser takes one space away
    return b"data:%b%b\n" % (space, line)


def encode_control(offset: EventId, cursor: int, *, is_tail: bool, is_closed: bool) -> bytes:
    """Returns a `control` event, with which a client knows where to continue."""
    # Sent with each live event, to each client. Nothing needs escaping.
    at_end = ',"upToDate":true' if is_tail else ""
    further = ',"streamClosed":true' if is_closed else f',"streamCursor":"{cursor}"'
    control = f'{{"streamNextOffset":"{encode_offset(offset)}"{further}{at_end}}}'
    return f"event: control\ndata:{control}\n\n".encode()


class SseEncoder:
    """Encodes the pages that one client gets as server-sent events. A data event and its control event are one piece.

    Attributes:
        offset: where the client is.
        is_tail: the client was told that it has everything.
    """

    __slots__ = ("_format", "_least_cursor", "is_tail", "offset")

    def __init__(self, stream_format: StreamFormat, after: EventId, least_cursor: int) -> None:
        self._format = stream_format
        self._least_cursor = least_cursor
        self.offset = after
        self.is_tail = False

    @property
    def cursor(self) -> int:
        """The cursor for the client's next request."""
        return cursor_from(self._least_cursor)

    def encode(self, page: StreamPage) -> bytes:
        """Returns the page's messages, and a control event if it tells the client something."""
        if not (page.messages or page.is_closed or (page.is_tail and not self.is_tail)):
            return b""
        self.offset, self.is_tail = page.next, page.is_tail
        data = self._format.encode_data(page.messages) if page.messages else b""
        return data + encode_control(page.next, self.cursor, is_tail=page.is_tail, is_closed=page.is_closed)
