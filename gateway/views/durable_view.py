"""A run's events as the messages of a durable stream, and the view that sends them live.

A message is `{"id":"5204-118","event":"done","data":{…}}`, in the log's order.
"""

from functools import lru_cache
from typing import Final

from stagebus.gateway.api.responses import JSON
from stagebus.gateway.streaming.views import EventView
from stagebus.gateway.views.durable_format import SseEncoder, StreamFormat, StreamPage, encode_control
from stagebus.shared.domain.cursor import EventId, parse_id
from stagebus.shared.log.live_batch import LiveBatch, events_in
from stagebus.shared.log.log_page import LogGap, Page

JSON_FORMAT: Final = StreamFormat(JSON)

_MESSAGE: Final = b'{"id":"%b","event":"%b","data":%b}'


def as_stream_page(page: Page, after: EventId) -> StreamPage:
    """Returns a log page, which was read after a position, as a page of the stream."""
    entries = [entry for _, entries in page.slices for entry in entries]
    messages = [_MESSAGE % (event_id, event, data) for event_id, (_, event, _, data) in entries]
    is_closed = page.is_last and page.is_ended
    # A stage's offsets are those of its own events, as far as possible: a page may have none of them.
    empty_end = after if page.is_last else page.position
    position = parse_id(entries[-1][0].decode()) if entries else empty_end
    return StreamPage(messages, after, position, page.is_last, is_closed)


class DurableView(EventView):
    """One client's stream of a run, or of one stage and the run's end."""

    __slots__ = ("_encoder", "_stage_id", "is_ended")

    def __init__(self, stage_id: str | None, after: EventId, least_cursor: int) -> None:
        self._stage_id = stage_id
        self._encoder = SseEncoder(JSON_FORMAT, after, least_cursor)
        self.is_ended = False

    def encode_page(self, page: Page) -> bytes:
        """Returns the messages of a log page; nothing after a gap, where the stream ends."""
        if page.gap is not None:
            self.is_ended = True
            return b""
        stream_page = as_stream_page(page, self._encoder.offset)
        self.is_ended = stream_page.is_closed
        return self._encoder.encode(stream_page)

    def encode_batch(self, batch: LiveBatch) -> bytes:
        """Returns the messages of a live batch."""
        live = _encode_live(batch, self._stage_id)
        if live is None:
            return b""
        self._encoder.offset = live.last
        return live.frames(self._encoder.cursor)

    def encode_gap(self, gap: LogGap) -> bytes:
        """Returns nothing: the stream ends, and the client's next request is told that its offset is gone."""
        return b""


class _LiveMessages:
    """The messages of a live batch, and their frames with the cursor that was wanted last: most clients have the same."""

    __slots__ = ("_cursor", "_data", "_frames", "_is_closed", "last")

    def __init__(self, data: bytes, last: EventId, *, is_closed: bool) -> None:
        self._data = data
        self._is_closed = is_closed
        self._cursor = -1
        self._frames = b""
        self.last = last

    def frames(self, cursor: int) -> bytes:
        """Returns the data event and its control event."""
        if cursor != self._cursor:
            self._cursor = cursor
            self._frames = self._data + encode_control(self.last, cursor, is_tail=True, is_closed=self._is_closed)
        return self._frames


# All clients of a run take the same batch one after the other, so the newest batches are enough.
@lru_cache(maxsize=4)
def _encode_live(batch: LiveBatch, stage_id: str | None) -> _LiveMessages | None:
    events = batch.events() if stage_id is None else events_in(batch.frames_of(stage_id))
    if not events:
        return None
    last = batch.last if stage_id is None else parse_id(events[-1][0].decode())
    data = JSON_FORMAT.encode_data([_MESSAGE % event for event in events])
    return _LiveMessages(data, last, is_closed=batch.is_end)
