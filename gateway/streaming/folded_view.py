"""A view whose messages come from a fold, and the sharing of folds between the clients of a run.

    first client   ── page, page, batch ──▶ SharedFold ──▶ messages
    second client  ── page, page ──▶ its own fold ┄┄ reaches the position of the shared one ──▶ SharedFold

All clients of one run and view use one fold. Whoever brings the next event advances it; the others find that event's
messages in the fold's tail. A client that is behind the tail (it joins late, resumes, or reads too slowly) folds the
log alone, from its start and silently up to its own position, and joins when it has caught up.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from stagebus.gateway.streaming.fold import END, Fold, FoldKey, FoldSource, Messages
from stagebus.gateway.streaming.stream_writer import StreamTorn
from stagebus.gateway.streaming.views import EventView
from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.log_page import LogGap, Page

# The most bytes of messages that a fold keeps for clients that are slightly behind the others. The messages of the
# newest event stay even if they alone are longer.
TAIL_MAX_BYTES: Final = 8 * 2**10

_START_ID: Final = str(START).encode()

# The frames of an event or of a batch, and whether they end the client's stream. A plain tuple: there is one for each
# live event, and creating a named one takes as long as folding it.
Encoded = tuple[bytes, bool]


class Voided(NamedTuple):
    """A part of a stage that was void when the client connected: its events and the restart that made it void."""

    stage_id: str
    first: int
    last: int


class SharedFold:
    """A fold at a position in the log, with the messages of the newest events."""

    __slots__ = ("__weakref__", "_batch", "_encoded", "_tail", "_tail_bytes", "_tail_start", "fold", "position")

    def __init__(self, fold: Fold, position: bytes = _START_ID) -> None:
        """`position` is the id of the last event that the fold has."""
        self.fold = fold
        self.position = position
        self._tail: dict[bytes, Encoded] = {}  # by event id, oldest first
        self._tail_start = position  # before the oldest
        self._tail_bytes = 0
        self._batch: LiveBatch | None = None
        self._encoded: Encoded | None = None

    def has(self, position: bytes) -> bool:
        """Returns whether a client at the position can continue with this fold."""
        return position in (self.position, self._tail_start) or position in self._tail

    def follows(self, position: bytes, page: Page) -> bool:
        """Returns whether a client at the position can get the page from this fold.

        A fold that is ahead may have events that Redis has lost since, so the page's own must be in the tail.
        """
        if not self.has(position):
            return False
        for _, entries in page.slices:
            for event_id, _ in entries:
                if position == self.position:
                    return True
                if event_id not in self._tail:
                    return False
                position = event_id
        return True

    def add(self, after: bytes, event_id: bytes, name: bytes, data: bytes) -> Encoded | None:
        """Returns the messages of the event after a position; None if neither the fold nor its tail has them."""
        if after != self.position:
            return self._tail.get(event_id)
        encoded = _encode(self.fold.add(event_id, name, data))
        self.position = event_id
        self._tail[event_id] = encoded
        self._tail_bytes += len(encoded[0])
        while self._tail_bytes > TAIL_MAX_BYTES and len(self._tail) > 1:
            self._tail_start = next(iter(self._tail))
            self._tail_bytes -= len(self._tail.pop(self._tail_start)[0])
        return encoded

    def add_batch(self, batch: LiveBatch) -> Encoded | None:
        """Returns the messages of a live batch. All clients of the run take the same batch, so its last one is kept."""
        if batch is self._batch:
            return self._encoded
        encoded = self._add_batch(batch)
        if encoded is not None:
            self._batch, self._encoded = batch, encoded
        return encoded

    def _add_batch(self, batch: LiveBatch) -> Encoded | None:
        after, events, is_end = b"%d-%d" % batch.before, batch.events(), False
        if len(events) == 1:  # nearly every batch
            return self.add(after, *events[0])
        parts: list[bytes] = []
        for event_id, name, data in events:
            encoded = self.add(after, event_id, name, data)
            if encoded is None:
                return None
            if not is_end:
                frames, is_end = encoded
                parts.append(frames)
            after = event_id
        return b"".join(parts), is_end

    def skip(self, after: bytes, event_id: bytes) -> None:
        """Passes over an event without folding it."""
        if after == self.position:
            self.position = event_id


def _encode(messages: Messages) -> Encoded:
    if len(messages) == 1:  # nearly every event
        return messages[0], messages[0] == END
    return b"".join(messages), bool(messages) and messages[-1] == END


class Folds:
    """The shared folds of this process. A fold exists as long as a client uses it."""

    def __init__(self) -> None:
        self._by_key: WeakValueDictionary[FoldKey, SharedFold] = WeakValueDictionary()

    def join(self, key: FoldKey, own: SharedFold, *, is_newest: bool) -> SharedFold:
        """Returns the shared fold if it can continue for a client whose own fold has come this far, else the own one.

        Args:
            is_newest: the own fold has the whole log, so it replaces a shared one that it cannot join: that one is
                behind, or was fed with events that Redis has lost since.
        """
        shared = self._by_key.get(key)
        if shared is not None and shared.has(own.position):
            return shared
        if shared is None or is_newest:
            self._by_key[key] = own
        return own

    def __len__(self) -> int:
        return len(self._by_key)


class FoldedView(EventView):
    """One client's view of a run through a fold.

    Args:
        fold: a fold that has the log up to `position` already; None: a new one.
        voided: events that the client does not get, see `Voided`.
        is_whole: go on to the run's end, whatever the fold says.
    """

    __slots__ = ("_fold", "_folds", "_is_whole", "_position", "_silent_until", "_source", "_voided", "is_ended")

    def __init__(
        self,
        folds: Folds,
        source: FoldSource[Fold],
        *,
        fold: Fold | None = None,
        position: EventId = START,
        voided: Sequence[Voided] = (),
        is_whole: bool = False,
    ) -> None:
        self._folds = folds
        self._source = source
        self._is_whole = is_whole
        self._voided = voided
        self._position = str(position).encode()
        self._silent_until: bytes | None = None
        self.is_ended = False
        self._fold = SharedFold(fold or source.new(), self._position)
        self._join(position, is_newest=False)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._source.run.run_id

    @property
    def fold(self) -> Fold:
        """The fold, which has all events that were encoded, or more if other clients share it."""
        return self._fold.fold

    def encode_page(self, page: Page) -> bytes:
        """Returns the messages of the page's events that the client does not have yet."""
        parts: list[bytes] = []
        after, self.is_ended = self._position, False
        for stage_id, entries in page.slices:
            for event_id, (_, name, _, data) in entries:
                if self._voided and self._is_voided(stage_id, event_id):
                    self._fold.skip(after, event_id)
                else:
                    self._add(parts, after, event_id, name, data)
                after = event_id
        if self._fold.position == after:
            self._fold.position = str(page.position).encode()  # the same, unless Redis lost the last event alone
        if page.is_last and self._silent_until is not None:
            raise StreamTorn
        self._join(page.position, is_newest=page.is_last)
        return b"".join(parts)

    def _add(self, parts: list[bytes], after: bytes, event_id: bytes, name: bytes, data: bytes) -> None:
        encoded = self._fold.add(after, event_id, name, data)
        assert encoded is not None, "the fold has the page's start, so it has or gets what follows"
        if self._silent_until is None:
            if not self.is_ended:
                frames, is_end = encoded
                parts.append(frames)
                self.is_ended = is_end and not self._is_whole
        elif self._silent_until == event_id:
            self._silent_until = None

    def encode_batch(self, batch: LiveBatch) -> bytes | None:
        """Returns the messages of a live batch; None if the shared fold is too far ahead."""
        encoded = self._fold.add_batch(batch)
        if encoded is None:
            self.is_ended = False
            return None
        frames, is_end = encoded
        self.is_ended = is_end and not self._is_whole
        return frames

    def encode_gap(self, gap: LogGap) -> bytes:  # noqa: ARG002
        """Tears the stream: no other protocol has a word for a gap.

        Raises:
            StreamTorn: always.
        """
        raise StreamTorn

    def resume_at(self, position: EventId, page: Page) -> EventId:
        """Returns the position if the fold can continue there, else the start of the log, to fold it again silently."""
        self._position = str(position).encode()
        if self._fold.follows(self._position, page):
            return position
        if self._position != _START_ID:
            self._silent_until, self._position = self._silent_until or self._position, _START_ID
        self._fold = SharedFold(self._source.new())
        return START

    def _join(self, position: EventId, *, is_newest: bool) -> None:
        if all(part.last <= position.sequence for part in self._voided):
            self._fold = self._folds.join(self._source.key, self._fold, is_newest=is_newest)

    def _is_voided(self, stage_id: str, event_id: bytes) -> bool:
        sequence = parse_id(event_id.decode()).sequence
        return any(part.stage_id == stage_id and part.first <= sequence <= part.last for part in self._voided)
