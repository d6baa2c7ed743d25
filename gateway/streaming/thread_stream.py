"""One client's stream of a thread: the turns one after the other, and where the client is. No I/O but the wake-up.

    waiting for a turn ──▶ in a turn ──▶ waiting for a turn
                             │  as the stream of a run, with a subscription for this run alone

`is_outdated` is set by whatever may have changed the thread. The generator then reads the thread, so a lost or repeated
message of the channel costs nothing but a read.
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from stagebus.gateway.streaming.client_stream import ClientStream
from stagebus.gateway.streaming.subscription import Subscription
from stagebus.gateway.streaming.views import RUN_EVENTS, EventView, FullChunksView
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.domain.thread_cursor import ThreadCursor
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.store.thread_news import StoredTurn, ThreadVersion

# What the channel says of a run that was deleted.
GONE: Final = b"gone "


class TurnStep(Enum):
    """The parts of a turn that a client gets."""

    FOLLOW = auto()  # its log, then its live events
    PASS = auto()  # nothing: the client has all of it
    SNAPSHOT = auto()  # its messages, since its log has expired
    TELL_DELETED = auto()  # that it is gone
    WAIT = auto()  # nothing yet: Redis lost the run, and the thread is about to learn it


def step_for(turn: StoredTurn, cursor: EventId) -> TurnStep:
    """Decides what a client gets of a turn.

    Args:
        cursor: the last event of the turn that the client has; START for none.
    """
    if turn.is_deleted:
        return TurnStep.TELL_DELETED
    if turn.status and cursor == turn.end_id:
        return TurnStep.PASS
    if turn.has_log:
        return TurnStep.FOLLOW
    return TurnStep.SNAPSHOT if turn.status else TurnStep.WAIT


class ThreadStream(ClientStream):
    """The hub's record of one client of a thread.

    Attributes:
        thread_key: the thread's Redis key.
        is_until_idle: the stream ends when no run is active and none waits.
        is_until_read: the stream ends when the client has all that there is.
        stages_started: None for chunks as they are stored. For complete ones: the first events of the stages that the
            cursor's run has begun; empty once that turn has begun.
        cursor: a place whose turn must be looked up before anything else is sent: where the client began, or where a
            run's log ended before the run did; THREAD_START for none.
        seq: the place of the newest turn that the client was told of; 0 before the first.
        is_joined: the client gets the events of `run_id`.
        is_outdated: the thread must be read.
        is_over: the end of a stream that is `is_until_idle` has come.
        version: of the thread as it was last read.
        gone: runs that were deleted since then.
    """

    __slots__ = (
        "_buffer_max_bytes",
        "_frames",
        "cursor",
        "gone",
        "is_joined",
        "is_outdated",
        "is_over",
        "is_until_idle",
        "is_until_read",
        "seq",
        "stages_started",
        "thread_key",
        "version",
    )

    def __init__(
        self,
        thread_key: str,
        owner: RunOwner,
        cursor: ThreadCursor,
        buffer_max_bytes: int,
        *,
        is_until_idle: bool = False,
        is_until_read: bool = False,
        stages_started: Sequence[StoredEvent] | None = None,
    ) -> None:
        super().__init__("", Subscription(START, RUN_EVENTS, buffer_max_bytes), owner=owner)
        self._buffer_max_bytes = buffer_max_bytes
        self._frames: list[bytes] = []
        self.thread_key = thread_key
        self.is_until_idle = is_until_idle
        self.is_until_read = is_until_read
        self.stages_started = stages_started
        self.cursor = cursor
        self.seq = 0
        self.is_joined = False
        self.is_outdated = True
        self.is_over = False
        self.version: ThreadVersion | None = None
        self.gone: tuple[str, ...] = ()

    @property
    def has_work(self) -> bool:
        """True if there is something to do for the generator."""
        is_run_ready = self.is_joined and self.subscription.is_ready
        return bool(is_run_ready or self.is_outdated or self._frames or self.is_closed or self.notice)

    def begin_turn(self, turn: StoredTurn, cursor: EventId, view: EventView) -> None:
        """Begins to follow a turn's run after an event. The hub's `join_run` comes next."""
        if self.stages_started is not None:
            view, self.stages_started = FullChunksView(view, self.stages_started), ()
        self.run_id = turn.run_id
        self.stages_begun = ()
        self.subscription = Subscription(cursor, view, self._buffer_max_bytes)
        self.is_joined = True

    def end_turn(self) -> None:
        """Stops to follow the run, after the hub's `leave_run`; the thread is read next."""
        self.run_id = ""
        self.is_joined = False
        self.is_outdated = True

    def is_same_life(self, version: ThreadVersion) -> bool:
        """Returns whether the thread is still the one that was read first."""
        return self.version is None or self.version.life_id == version.life_id

    def forget_version(self) -> None:
        """Makes the check of quiet streams find a difference, so that the thread is read again."""
        if self.version is not None:
            self.version = self.version._replace(turn_count=-1)

    def put(self, frames: bytes) -> None:
        """Sends frames before everything else."""
        self._frames.append(frames)

    def take(self) -> bytes:
        """Returns the bytes to send next."""
        if not self._frames:
            return super().take()
        data = b"".join(self._frames)
        self._frames.clear()
        self._record(data)
        return data

    def hear(self, message: bytes) -> None:
        """Takes a message of the thread's channel."""
        if message.startswith(GONE):
            self.gone = (*self.gone, message.removeprefix(GONE).decode(errors="replace"))
        self.look_again()

    def look_again(self) -> None:
        """Reads the thread, which may have changed."""
        self.is_outdated = True
        self.wake()

    def catch_up(self) -> None:
        """Reads the thread, and the log of the run, because messages may have been missed."""
        self.is_outdated = True
        super().catch_up()
