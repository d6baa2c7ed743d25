"""One client's place in a run: what it gets next, out of the log or out of the live channel.

Sans-IO: batches and pages go in, bytes come out. Two states:

    reading   the client is behind; pages of the log go in; live batches are kept, if they fit
    live      the client has everything up to `position`; a batch whose `before` is that goes on

Anything but a batch that follows `position` leads back to reading, where the log decides:
a lost message, a reconnect, a slow client, a log that lost its tail. So none of them
costs an event.
"""

from typing import Final, Protocol

from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import Gap
from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.log_page import Page
from stagebus.shared.log.sse import encode_without_id

# Before a page tells better: with the default buffer, a first page of 128 events.
FIRST_GUESS_BYTES: Final = 2048


class View(Protocol):
    """A wire format as a pure function of what is stored."""

    def of_page(self, page: Page) -> bytes:
        """The bytes of a page of the log."""
        ...

    def of_batch(self, batch: LiveBatch) -> bytes:
        """The bytes of a live batch."""
        ...


class Subscription:
    """What one client still has to get. The owner waits for `is_ready` and then takes."""

    __slots__ = (
        "_buffer",
        "_buffer_max_bytes",
        "_buffered_bytes",
        "_event_bytes",
        "_is_outdated",
        "_kept",
        "_kept_bytes",
        "_view",
        "is_ended",
        "is_live",
        "position",
    )

    def __init__(self, cursor: EventId, view: View, buffer_max_bytes: int) -> None:
        self.position = cursor
        self.is_live = False
        self.is_ended = False
        self._view = view
        self._buffer_max_bytes = buffer_max_bytes
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self._kept: list[LiveBatch] = []  # a few; a deque alone takes 760 bytes
        self._kept_bytes = 0
        self._event_bytes = FIRST_GUESS_BYTES  # an event's size, as the last page had it
        self._is_outdated = False  # the page that is being read may lack what came after it was asked for

    @property
    def is_ready(self) -> bool:
        """Whether there is something to do: bytes to take, a page to read, or the end."""
        return bool(self._buffer) or not self.is_live or self.is_ended

    def take(self) -> bytes:
        """All bytes that wait, as one."""
        if not self._buffer:
            return b""
        data = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        self._buffered_bytes = 0
        return data

    def pass_on(self, batch: LiveBatch) -> bytes | None:
        """The bytes of a batch that nothing stands before, for the client at once; None: `deliver` it."""
        if batch.before != self.position or self._buffer or not self.is_live or self.is_ended:
            return None
        frames = self._view.of_batch(batch)
        self.position = batch.last
        self.is_ended = batch.is_end
        return frames

    def deliver(self, batch: LiveBatch) -> None:
        """A batch came over the live channel."""
        if self.is_ended:
            return
        if not self.is_live:
            self._keep(batch)
        elif batch.before != self.position or not self._accept(batch):
            self.fall_behind()

    def fall_behind(self) -> None:
        """Read the log from `position` on, which has to stand in it."""
        self.is_live = False
        self._is_outdated = True

    def events_of_page(self, events_max: int) -> int:
        """How many events the next page may have, so that about the buffer's size is read at once."""
        return max(1, min(events_max, self._buffer_max_bytes // self._event_bytes))

    def begin_page(self, events_max: int) -> int:
        """A page is asked for now; how many events it may have."""
        self._is_outdated = False
        self._kept.clear()  # the page has what was kept before it was asked for
        self._kept_bytes = 0
        return self.events_of_page(events_max)

    def read(self, page: Page) -> None:
        """The page of the log after `position` came."""
        if page.lost is not None:
            requested, earliest, latest = (str(event_id) for event_id in page.lost)
            gap = Gap(requested=requested, earliest=earliest, latest=latest)
            self._put(encode_without_id(gap.event, gap.model_dump_json()))
        frames = self._view.of_page(page)
        if page.event_count:
            self._event_bytes = max(1, len(frames) // page.event_count)
        self._put(frames)
        self.position = page.position
        if page.is_last and not self._is_outdated:
            self.is_ended = page.is_ended
            self._go_live()

    def _go_live(self) -> None:
        """The log was read to its end: go on with the kept batches if they follow it without a hole."""
        self.is_live = True
        kept, self._kept, self._kept_bytes = self._kept, [], 0
        for batch in kept:
            # What the page covered already. After a lost tail it may be something else; then
            # the next batch does not follow, or the look at the quiet run's last id shows it.
            if batch.last > self.position and self.is_live:
                self.deliver(batch)

    def _accept(self, batch: LiveBatch) -> bool:
        frames = self._view.of_batch(batch)
        if self._buffered_bytes + len(frames) > self._buffer_max_bytes and self._buffer:
            return False
        self._put(frames)
        self.position = batch.last
        self.is_ended = batch.is_end
        return True

    def _keep(self, batch: LiveBatch) -> None:
        self._kept_bytes += len(batch.frames)
        self._kept.append(batch)
        while self._kept_bytes > self._buffer_max_bytes:
            self._kept_bytes -= len(self._kept.pop(0).frames)
            self._is_outdated = True  # nothing kept may betray what was not

    def _put(self, data: bytes) -> None:
        if data:
            self._buffer.append(data)
            self._buffered_bytes += len(data)
