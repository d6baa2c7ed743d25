"""One client's position in a run: what it gets next, from the log or from the live channel.

Sans-IO: batches and pages go in, bytes come out. Two states:

    reading   the client is behind; log pages are added; live batches are held back, if they fit
    live      the client has everything up to `position`; a batch whose `before` is `position` is sent

A batch that does not follow `position` leads back to reading, and the log decides. That covers a lost message, a
reconnect, a slow client and a log that lost its tail, so none of them costs an event.
"""

from typing import Final

from stagebus.gateway.streaming.views import EventView
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.log_page import Page

# The estimate until the first page is read. With the default buffer it makes that a page of 128 events.
EVENT_BYTES_ESTIMATE: Final = 2048


class Subscription:
    """The events that one client still has to get. Its owner waits for `is_ready` and then calls `take`."""

    __slots__ = (
        "_buffer",
        "_buffer_max_bytes",
        "_buffered_bytes",
        "_event_bytes",
        "_held_back",
        "_held_back_bytes",
        "_is_page_outdated",
        "_view",
        "is_ended",
        "is_live",
        "position",
    )

    def __init__(self, cursor: EventId, view: EventView, buffer_max_bytes: int) -> None:
        self.position = cursor
        self.is_live = False
        self.is_ended = False
        self._view = view
        self._buffer_max_bytes = buffer_max_bytes
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self._held_back: list[LiveBatch] = []  # a few; an empty deque alone takes 760 bytes
        self._held_back_bytes = 0
        self._event_bytes = EVENT_BYTES_ESTIMATE  # the average of the last page
        self._is_page_outdated = False  # live batches were missed since the page was requested

    @property
    def is_ready(self) -> bool:
        """True if there is something to do: bytes to take, a page to read, or the end to handle."""
        return bool(self._buffer) or not self.is_live or self.is_ended

    def take(self) -> bytes:
        """Returns all buffered bytes and empties the buffer."""
        if not self._buffer:
            return b""
        data = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        self._buffered_bytes = 0
        return data

    def begin_with(self, data: bytes) -> None:
        """Buffers bytes that the client gets before all events."""
        self._put(data)

    def forward(self, batch: LiveBatch) -> bytes | None:
        """Returns the batch's frames if the client can get them now; None if `add_batch` has to take the batch."""
        if batch.before != self.position or self._buffer or not self.is_live or self.is_ended:
            return None
        frames = self._view.encode_batch(batch)
        if frames is not None:
            self.position = batch.last
            self.is_ended = batch.is_end or self._view.is_ended
        return frames

    def add_batch(self, batch: LiveBatch) -> None:
        """Buffers a live batch, holds it back while a page is read, or starts to catch up if it does not follow."""
        if self.is_ended:
            return
        if not self.is_live:
            self._hold_back(batch)
        elif batch.before != self.position or not self._buffer_batch(batch):
            self.catch_up()

    def catch_up(self) -> None:
        """Reads the log after `position`. The log must contain that position."""
        self.is_live = False
        self._is_page_outdated = True

    def page_size(self, events_max: int) -> int:
        """Returns how many events the next page may have, so that it is about as long as the buffer."""
        return max(1, min(events_max, self._buffer_max_bytes // self._event_bytes))

    def begin_page(self, events_max: int) -> int:
        """Prepares for a page that is requested now, and returns how many events it may have."""
        self._is_page_outdated = False
        self._held_back.clear()  # the page contains these batches
        self._held_back_bytes = 0
        return self.page_size(events_max)

    def add_page(self, page: Page) -> None:
        """Buffers the log page after `position`, and goes live if the page is the last.

        Raises:
            StreamTorn: the page has a gap, and the client's protocol has no word for it.
        """
        start = self._view.resume_at(self.position, page)
        if start != self.position:
            self.position = start
            return
        if page.gap is not None:
            self._put(self._view.encode_gap(page.gap))
        frames = self._view.encode_page(page)
        if page.event_count:
            self._event_bytes = max(1, len(frames) // page.event_count)
        self._put(frames)
        self.position = page.position
        if self._view.is_ended:
            self.is_live = self.is_ended = True
        elif page.is_last and not self._is_page_outdated:
            self.is_ended = page.is_ended
            self._go_live()

    def _go_live(self) -> None:
        """Continues with the batches that were held back, if they follow the log without a gap."""
        self.is_live = True
        held_back, self._held_back, self._held_back_bytes = self._held_back, [], 0
        for batch in held_back:
            # The page contains older batches. If the log lost its tail, its events at these positions may be others:
            # then the next batch does not follow, or the check of the quiet run's last id shows it.
            if batch.last > self.position and self.is_live:
                self.add_batch(batch)

    def _buffer_batch(self, batch: LiveBatch) -> bool:
        frames = self._view.encode_batch(batch)
        if frames is None or (self._buffered_bytes + len(frames) > self._buffer_max_bytes and self._buffer):
            return False
        self._put(frames)
        self.position = batch.last
        self.is_ended = batch.is_end or self._view.is_ended
        return True

    def _hold_back(self, batch: LiveBatch) -> None:
        self._held_back_bytes += len(batch.frames)
        self._held_back.append(batch)
        while self._held_back_bytes > self._buffer_max_bytes:
            self._held_back_bytes -= len(self._held_back.pop(0).frames)
            self._is_page_outdated = True  # no later batch may show what is missing, so read another page

    def _put(self, data: bytes) -> None:
        if data:
            self._buffer.append(data)
            self._buffered_bytes += len(data)
