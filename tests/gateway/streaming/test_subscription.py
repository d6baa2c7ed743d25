"""One client's position in a run, compared with the plain log: it gets exactly the log, whatever happens on the way.

The state machine is sans-IO, so a test plays its surroundings: the log, which grows and may lose its tail; the
channel, which loses, duplicates and delays messages; the reader, whose page may be outdated; and the client, which
decodes the bytes.
"""

from collections.abc import Callable
from typing import NamedTuple

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.gateway.streaming.subscription import Subscription
from stagebus.gateway.streaming.views import RUN_EVENTS, EventView, StageEventsView, stored_view
from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.log import live_batch, sse
from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.log_page import LogGap, Page, StageSlice
from stagebus.shared.log.sse import Frame

STAGES = ("run", "extraction", "synthesis")
EVENTS_MAX = 4  # of a page


class Entry(NamedTuple):
    """An event in the log."""

    id: EventId
    stage_id: str
    event: bytes
    data: bytes

    @property
    def stored(self) -> list[object]:
        return [str(self.id).encode(), [b"event", self.event, b"data", self.data]]

    @property
    def frame(self) -> bytes:
        return sse.encode(str(self.id).encode(), self.event, self.data)


class Log:
    """A run's log, and everything that may happen to it."""

    def __init__(self) -> None:
        self.entries = [Entry(EventId(0, 1), "run", b"run_queued", b"{}")]
        self.versions: list[list[Entry]] = []  # every log that had an end
        self._made: dict[EventId, Entry] = {}
        self._attempt = 1
        self._base = EventId(0, 1)

    @property
    def last_id(self) -> EventId:
        return self.entries[-1].id

    @property
    def is_ended(self) -> bool:
        return self.entries[-1].event == b"done"

    def append(self, stage_ids: list[str], size: int) -> bytes:
        """Appends a batch and returns its message; "end" is the stage of the terminal event."""
        before = self.last_id
        for stage_id in stage_ids:
            event_id = EventId(self._attempt, self.last_id.sequence + 1)
            # An attempt that sends again after a lost tail sends the same events.
            entry = self._made.setdefault(event_id, _make(event_id, stage_id, size))
            self.entries.append(entry)
            if self.is_ended:
                self.versions.append([*self.entries])
                break
        batch = self.entries[-(self.last_id.sequence - before.sequence) :]
        return live_batch.encode(
            before, self.last_id, [e.stage_id for e in batch], [e.frame for e in batch], is_end=self.is_ended
        )

    def lose(self, count: int, *, is_taken_over: bool) -> None:
        """Loses the tail; the producer continues if it can, otherwise another attempt does."""
        del self.entries[max(1, len(self.entries) - count) :]
        if is_taken_over or (self.last_id != self._base and self.last_id.attempt != self._attempt):
            self._attempt += 1
            self._base = self.last_id

    def page(self, after: EventId, limit: int, stage_id: str | None) -> Page:
        """Returns a page, as `log_reader.read_page` does."""
        lost = None
        if after not in (START, *(entry.id for entry in self.entries)):
            lost = LogGap(after, self.entries[0].id, self.last_id)
            after = START
        found = [
            e
            for e in self.entries
            if e.id > after and stage_id in (None, e.stage_id, *([stage_id] * (e.stage_id == "run")))
        ]
        is_last = len(found) <= limit
        position = self.last_id if is_last else found[limit - 1].id
        parts = [StageSlice(e.stage_id, [e.stored]) for e in found[:limit] if _is_of(e, stage_id)]
        return Page(parts, position, is_last, self.is_ended, lost)


def _make(event_id: EventId, stage_id: str, size: int) -> Entry:
    is_end = stage_id == "end"
    data = orjson.dumps({"by": str(event_id), "text": "x" * size})
    return Entry(event_id, "run" if is_end else stage_id, b"done" if is_end else b"tool_completion_chunk", data)


def _is_of(entry: Entry, stage_id: str | None) -> bool:
    return stage_id in (None, entry.stage_id) or entry.event == b"done"


class World:
    """A log, the channel, the subscription with its owner, and the client's state of the run."""

    def __init__(self, stage_id: str | None, buffer_max_bytes: int, cursor: EventId = START) -> None:
        self.log = Log()
        self.stage_id = stage_id
        self.buffer_max_bytes = buffer_max_bytes
        view: EventView = stored_view(stage_id)
        self.subscription = Subscription(cursor, view, buffer_max_bytes)
        self.channel: list[LiveBatch] = []
        self.is_connected = True
        self.page: Page | None = None  # read, but not yet added to the subscription
        self.received = b""

    # --- the log and the channel ---

    def append(self, stage_ids: list[str], size: int) -> None:
        if not self.log.is_ended:
            message = live_batch.decode(self.log.append(stage_ids, size))
            if self.is_connected:
                self.channel.append(message)

    def deliver(self, index: int, *, is_held_back: bool = False) -> None:
        if self.channel and not self.is_over:
            may_pass = index % 2 == 0 and self.page is None  # otherwise the owner is busy
            index %= len(self.channel)
            batch = self.channel[index] if is_held_back else self.channel.pop(index)
            if may_pass and (data := self.subscription.forward(batch)) is not None:
                self.received += data
            else:
                self.subscription.add_batch(batch)

    def lose_message(self, index: int) -> None:
        if self.channel:
            self.channel.pop(index % len(self.channel))

    def disconnect(self) -> None:
        self.is_connected = False
        self.channel.clear()

    def reconnect(self) -> None:
        if not self.is_connected:
            self.is_connected = True
            self.subscription.catch_up()

    # --- the owner, which is the hub ---

    @property
    def is_over(self) -> bool:
        s = self.subscription
        return s.is_live and s.is_ended and not s._buffer and self.page is None

    def begin_read(self) -> None:
        if self.page is None and not self.subscription.is_live and not self.subscription._buffer:
            limit = self.subscription.begin_page(EVENTS_MAX)
            assert 1 <= limit <= EVENTS_MAX
            self.page = self.log.page(self.subscription.position, limit, self.stage_id)

    def end_read(self) -> None:
        if self.page is not None:
            page, self.page = self.page, None
            self.subscription.add_page(page)

    def take(self) -> None:
        if self.page is None:
            self.received += self.subscription.take()

    def go_on(self, *, compares: bool) -> None:
        """Finishes everything that is in progress."""
        self.end_read()
        for _ in range(10 * len(self.log.entries)):
            self.take()
            if self.is_over:
                return
            if not self.subscription.is_live:
                self.begin_read()
                self.end_read()
            elif compares and self.subscription.position != self.log.last_id and not self.subscription.is_ended:
                self.subscription.catch_up()
            elif not self.subscription.is_ready:
                return
        raise AssertionError("it does not end")

    # --- what must hold ---

    def check_bounds(self) -> None:
        s = self.subscription
        assert s._buffered_bytes == sum(map(len, s._buffer))
        assert s._held_back_bytes == sum(len(batch.frames) for batch in s._held_back) <= self.buffer_max_bytes
        # One page or one batch may be longer than the buffer, never two of them.
        assert len(s._buffer) <= 2 or s._buffered_bytes <= self.buffer_max_bytes

    def client_events(self) -> list[Frame]:
        """Returns the client's events; a gap discards those from its `earliest` on."""
        kept: list[Frame] = []
        for frame in sse.decode(self.received):
            if frame.event == "gap":
                earliest = parse_id(orjson.loads(frame.data)["earliest"]).sequence
                kept = [k for k in kept if parse_id(k.id).sequence < earliest]
                continue
            sequence, last = parse_id(frame.id).sequence, parse_id(kept[-1].id).sequence if kept else 0
            assert sequence == last + 1 if self.stage_id is None else sequence > last, "a missing or duplicate event"
            kept.append(frame)
        return kept

    def wanted(self, entries: list[Entry]) -> list[Frame]:
        return [Frame(str(e.id), e.event.decode(), e.data.decode()) for e in entries if _is_of(e, self.stage_id)]

    def check_client_events(self) -> None:
        if self.is_over:
            assert self.client_events() in [self.wanted(version) for version in self.log.versions]
        else:
            assert not self.log.is_ended, "the stream ends with its run"
            assert self.client_events() == self.wanted(self.log.entries)


Step = Callable[[World], None]
number = st.integers(0, 5)
stage_lists = st.lists(st.sampled_from([*STAGES, *STAGES, *STAGES, "end"]), min_size=1, max_size=3)


def _step(act: Callable[..., None], *arguments: st.SearchStrategy) -> st.SearchStrategy[tuple]:
    return st.tuples(st.just(act), *arguments)


GROWS = [
    _step(World.append, stage_lists, st.sampled_from([0, 0, 200])),
    _step(World.append, stage_lists, st.sampled_from([0, 0, 200])),
]
OWNER = [_step(World.begin_read), _step(World.end_read), _step(World.take)]
FAULTS = [
    _step(lambda world, index: world.deliver(index), number),
    _step(lambda world, index: world.deliver(index), number),
    _step(lambda world, index: world.deliver(index, is_held_back=True), number),
    _step(World.lose_message, number),
    _step(lambda world: world.subscription.catch_up()),
    _step(
        lambda world, count, is_taken_over: world.log.lose(count, is_taken_over=is_taken_over), number, st.booleans()
    ),
]
OUTAGES = [
    _step(lambda world: world.deliver(0)),
    _step(lambda world: world.deliver(0)),
    _step(World.disconnect),
    _step(World.reconnect),
]
worlds = st.builds(World, st.sampled_from([None, "extraction", "synthesis"]), st.sampled_from([0, 60, 300, 10_000]))


def play(world: World, steps: list[tuple]) -> None:
    for act, *arguments in steps:
        if not world.is_over:
            act(world, *arguments)
            world.check_bounds()


@given(worlds, st.lists(st.one_of(*GROWS, *OWNER, *FAULTS), min_size=10, max_size=40))
def test_any_fault_on_the_channel_leaves_the_client_with_the_log(world: World, steps: list[tuple]) -> None:
    """Messages are lost, duplicated, delayed and reordered; pages are outdated; the log loses its tail."""
    play(world, steps)
    world.go_on(compares=True)

    world.check_client_events()


@given(worlds, st.lists(st.one_of(*GROWS, *OWNER, *OUTAGES), min_size=10, max_size=40))
def test_reconnected_channel_is_caught_up_without_a_position_check(world: World, steps: list[tuple]) -> None:
    """A subscription that is notified of missed messages reads them, even if it is reading a page at that moment."""
    play(world, steps)
    world.reconnect()
    while world.channel and not world.is_over:
        world.deliver(0)
    world.go_on(compares=False)

    world.check_client_events()


@given(worlds, st.lists(st.one_of(*GROWS), max_size=12), st.integers(0, 12))
def test_every_cursor_gives_exactly_the_rest(world: World, steps: list[tuple], index: int) -> None:
    play(world, steps)
    entries = world.log.entries
    cursor = entries[index % len(entries)].id
    world.subscription.position = cursor
    world.go_on(compares=True)

    rest = [entry for entry in entries if entry.id > cursor]
    assert list(sse.decode(world.received)) == world.wanted(rest)


# --- by hand -----------------------------------------------------------------


def batch_of(log: Log, *stage_ids: str, size: int = 0) -> LiveBatch:
    return live_batch.decode(log.append(list(stage_ids), size))


def live_at(log: Log, buffer_max_bytes: int = 10_000, view: EventView = RUN_EVENTS) -> Subscription:
    """Returns a subscription that has sent the whole log."""
    subscription = Subscription(START, view, buffer_max_bytes)
    subscription.add_page(log.page(START, 100, None))
    subscription.take()
    assert subscription.is_live
    assert not subscription.is_ready
    return subscription


def test_live_frames_are_shared_between_subscriptions() -> None:
    log = Log()
    first, second = live_at(log), live_at(log)
    batch = batch_of(log, "extraction", "synthesis")
    first.add_batch(batch)
    second.add_batch(batch)

    assert first.take() is batch.frames
    assert second.take() is batch.frames


def test_take_joins_buffered_batches() -> None:
    log = Log()
    subscription = live_at(log)
    batches = [batch_of(log, "extraction") for _ in range(3)]
    for batch in batches:
        subscription.add_batch(batch)

    assert subscription.is_ready
    assert subscription.take() == b"".join(batch.frames for batch in batches)
    assert subscription.take() == b""
    assert not subscription.is_ready


def test_full_buffer_makes_the_client_read_the_log() -> None:
    log = Log()
    subscription = live_at(log, buffer_max_bytes=500)
    for _ in range(10):
        subscription.add_batch(batch_of(log, "extraction", size=100))
    assert not subscription.is_live
    assert subscription._buffered_bytes <= 500
    received = subscription.take()
    subscription.begin_page(100)
    subscription.add_page(log.page(subscription.position, 100, None))

    assert subscription.is_live
    assert received + subscription.take() == b"".join(entry.frame for entry in log.entries[1:])


def test_event_longer_than_the_buffer_is_sent() -> None:
    log = Log()
    subscription = live_at(log, buffer_max_bytes=10)
    batch = batch_of(log, "extraction", size=1000)
    subscription.add_batch(batch)

    assert subscription.is_live
    assert subscription.take() == batch.frames


def test_batches_held_back_during_a_page_follow_it() -> None:
    """Batches that the page contains are dropped, without another read."""
    log = Log()
    subscription = Subscription(START, RUN_EVENTS, 10_000)
    subscription.begin_page(100)
    subscription.add_batch(batch_of(log, "extraction"))
    page = log.page(START, 100, None)
    subscription.add_batch(batch_of(log, "synthesis"))
    subscription.add_page(page)

    assert subscription.is_live
    assert subscription.position == log.last_id
    assert subscription.take() == b"".join(entry.frame for entry in log.entries)


def test_batch_too_long_to_hold_back_is_read_from_the_log() -> None:
    """No later batch would reveal that it is missing: it may be the run's last."""
    log = Log()
    subscription = Subscription(START, RUN_EVENTS, 500)
    subscription.begin_page(100)
    page = log.page(START, 100, None)
    subscription.add_batch(batch_of(log, "extraction", size=1000))
    subscription.add_page(page)

    assert not subscription.is_live
    assert subscription._held_back_bytes == 0


def test_page_requested_before_a_missed_message_is_not_the_last() -> None:
    log = Log()
    subscription = Subscription(START, RUN_EVENTS, 500)
    subscription.begin_page(100)
    page = log.page(START, 100, None)
    subscription.catch_up()
    subscription.add_page(page)

    assert not subscription.is_live
    subscription.take()
    subscription.begin_page(100)
    subscription.add_page(log.page(subscription.position, 100, None))
    assert subscription.is_live


def test_nothing_follows_the_terminal_event() -> None:
    log = Log()
    subscription = live_at(log)
    end = batch_of(log, "end")
    subscription.add_batch(end)
    subscription.add_batch(end._replace(before=end.last, last=EventId(9, 9)))

    assert (subscription.is_ended, subscription.is_ready) == (True, True)
    assert subscription.take() == end.frames


def test_stage_stream_position_moves_past_other_stages() -> None:
    """Its position is compared with the log's end at each ping; otherwise it would read the log each time."""
    log = Log()
    subscription = live_at(log, view=StageEventsView("synthesis"))
    subscription.add_batch(batch_of(log, "extraction"))

    assert subscription.position == log.last_id
    assert not subscription.is_ready


def test_gap_precedes_the_log_and_has_no_id() -> None:
    log = Log()
    log.append(["extraction"], 0)
    subscription = Subscription(EventId(7, 7), RUN_EVENTS, 10_000)
    subscription.add_page(log.page(EventId(7, 7), 100, None))
    frames = list(sse.decode(subscription.take()))

    assert frames[0].id == ""
    assert frames[0].event == "gap"
    assert orjson.loads(frames[0].data) == {"requested": "7-7", "earliest": "0-1", "latest": str(log.last_id)}
    assert [frame.id for frame in frames[1:]] == [str(entry.id) for entry in log.entries]


@pytest.mark.parametrize(("event_bytes", "wanted"), [(10, 100), (1000, 10), (10**6, 1)])
def test_page_size_fits_the_buffer(event_bytes: int, wanted: int) -> None:
    log = Log()
    log.append(["extraction"] * 3, event_bytes)
    subscription = Subscription(log.entries[0].id, RUN_EVENTS, 10_000)
    subscription.add_page(log.page(log.entries[0].id, 100, None))

    assert wanted / 2 < subscription.begin_page(100) <= wanted
