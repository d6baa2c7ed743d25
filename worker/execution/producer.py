"""The producer: the only object in a worker that appends a run's events.

It is idempotent and fenced, like a Kafka producer: each batch names the sequence that it follows, and
the log takes the events that it does not have yet. Batches form by themselves: events that arrive
during an append go out together as the next one. So a single event is sent immediately and a burst
is sent together, without timers.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Self

from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import Event, StageCompleted
from stagebus.shared.errors import StagebusError, TailLost
from stagebus.shared.log import live_batch, sse
from stagebus.shared.runtime.clock import wall_ms
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import run_scripts
from stagebus.shared.storage.lua_script import ScriptConnection
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down
from stagebus.shared.storage.run_scripts import LogEntry, TerminalState
from stagebus.worker.execution.attempt_listener import AttemptListener

logger = logging.getLogger(__name__)

BATCH_EVENTS_MAX: Final = 512
BATCH_BYTES_MAX: Final = 1 << 20
BACKOFF_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0


class _RetainedEvent(NamedTuple):
    """An event that may have to be sent again; retained until its stage is complete."""

    entry: LogEntry
    is_stage_end: bool
    end: TerminalState | None


class Producer:
    """Appends one attempt's events in order and exactly once, despite lost replies and lost tails."""

    def __init__(
        self,
        connection: ScriptConnection,
        run_id: str,
        attempt: int,
        last_id: EventId,
        *,
        stage_ids: Sequence[str],
        pending_max_bytes: int,
        listener: AttemptListener | None = None,
        on_appended: Callable[[int, float], None] | None = None,
        count_tokens: Callable[[], int | None] = lambda: None,
        tenant: str = "",
    ) -> None:
        """Nothing is sent before the producer is entered.

        Args:
            last_id: the last id in the log when the run was claimed.
            stage_ids: the stages begun so far.
            pending_max_bytes: `is_full` above this.
            listener: told when an append fails for good or its reply shows a cancel.
            on_appended: called after each append with its number of events and its seconds; None costs nothing.
            count_tokens: returns the tokens that the run has used so far, to be stored with each append.
            tenant: the run's owner, whose feed tells of the run.
        """
        self._connection = connection
        self._run_id = run_id
        self._attempt = attempt
        self._pending_max_bytes = pending_max_bytes
        self._listener = listener
        self._on_appended = on_appended
        self._count_tokens = count_tokens
        self._tenant = tenant
        self._base = last_id  # the id before the first retained event
        self._retained: list[_RetainedEvent] = []
        self._stored = 0  # how many of the retained events are in the log
        self._advanced_at = -math.inf  # when an append last confirmed that; monotonic
        self._pending_bytes = 0
        self._wake = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []  # resolved by each append that succeeds or fails for good
        self._failure: StagebusError | None = None
        self._task: asyncio.Task[None] | None = None
        self.stage_ids = list(stage_ids)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._send_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await cancel_and_wait(self._task)

    @property
    def next_sequence(self) -> int:
        """Sequence number of the next event."""
        return self._base.sequence + len(self._retained) + 1

    def put(self, event: Event, end: TerminalState | None = None) -> EventId:
        """Accepts an event; the producer sends it as soon as it can.

        Args:
            end: for a terminal event, the fields that it sets in the run's record.

        Raises:
            Fenced, RunEnded, TailLost: an earlier event could not be appended; stop producing.
        """
        self._raise_failure()
        event_id = EventId(self._attempt, self.next_sequence)
        # Stamped and encoded once, so an event that is sent again is identical to the byte.
        items = event.items_data() if isinstance(event, StageCompleted) else b""
        entry = LogEntry(event.stage_id, event.event, event.stamped(wall_ms()).data(), items)
        if event.stage_id not in self.stage_ids:
            self.stage_ids.append(event.stage_id)
        self._retained.append(_RetainedEvent(entry, isinstance(event, StageCompleted), end))
        self._pending_bytes += entry.size
        self._wake.set()
        return event_id

    @property
    def is_full(self) -> bool:
        """True while so much is pending that the model has to wait."""
        return self._pending_bytes > self._pending_max_bytes

    async def wait_for_room(self) -> None:
        """Waits until the pending events fit: holds the model back while Redis is down.

        Raises:
            Fenced, RunEnded, TailLost: as `put`.
        """
        await self._wait_until(lambda: not self.is_full)

    async def flush(self) -> None:
        """Waits until every event put so far is in the log.

        Raises:
            Fenced, RunEnded, TailLost: as `put`.
        """
        goal = self.next_sequence - 1
        await self._wait_until(lambda: self._base.sequence + self._stored >= goal)

    @property
    def last_id(self) -> EventId:
        """Returns the id of the last event that was put, or of the log's last event before this attempt."""
        return self._id_at(len(self._retained))

    def continue_after(self, event_id: EventId) -> None:
        """Continues behind an event that another script has appended. Everything put before is in the log.

        Events up to there cannot be sent again from now on: a log that loses them fails the attempt with `TailLost`.
        """
        assert self._stored == len(self._retained), "flush first"
        assert event_id == EventId(self._attempt, self.next_sequence), "the event is the log's next one"
        self._retained.clear()
        self._stored = 0
        self._base = event_id
        self._advanced_at = time.monotonic()

    def check_log_end(self, last_id: EventId, asked_at: float = math.inf) -> None:
        """Compares the log's end, as a lease renewal returned it, with what was appended; sends a lost tail again.

        Args:
            asked_at: the monotonic time at which the renewal was sent. If an append finished after that, the
                answer may be older than what the producer knows, and is ignored.
        """
        if asked_at > self._advanced_at and last_id.sequence < self._base.sequence + self._stored:
            self._rewind(last_id)
            self._wake.set()

    async def _wait_until(self, is_reached: Callable[[], bool]) -> None:
        while self._failure is None and not is_reached():
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        self._raise_failure()

    def _notify_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self, failure: StagebusError) -> None:
        self._failure = failure
        self._notify_waiting()
        if self._listener is not None:
            self._listener.on_failure(failure)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _send_forever(self) -> None:
        name = f"run {self._run_id}: append"
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._stored < len(self._retained) and self._failure is None:
                try:
                    await retry_while_redis_is_down(
                        self._send_batch, name, backoff_s=BACKOFF_S, backoff_max_s=BACKOFF_MAX_S
                    )
                except StagebusError as exc:
                    self._fail(exc)
                except Exception:
                    # Unexpected. The same batch would fail forever and the run would hang.
                    logger.exception("run %s: the producer failed; its worker claims the run again", self._run_id)
                    self._fail(TailLost(self._run_id, str(self._id_at(self._stored))))

    async def _send_batch(self) -> None:
        if self._failure is not None:  # found by a lease renewal while Redis was down for appends
            return
        batch = self._next_batch()
        before = self._id_at(self._stored)
        entries = [item.entry for item in batch]
        end = batch[-1].end
        last = EventId(self._attempt, before.sequence + len(batch))
        frames = [
            sse.encode(b"%d-%d" % (self._attempt, sequence), entry.event.encode(), entry.data)
            for sequence, entry in enumerate(entries, before.sequence + 1)
        ]
        began_at = time.monotonic()
        appended = await run_scripts.append(
            self._connection,
            self._run_id,
            attempt=self._attempt,
            before=before,
            entries=entries,
            message=live_batch.encode(before, last, [e.stage_id for e in entries], frames, is_end=end is not None),
            end=end,
            stage_ids=self.stage_ids if end is not None else (),
            tokens=self._count_tokens(),
            tenant=self._tenant,
        )
        if appended.is_behind:
            self._rewind(appended.last_id)
            return
        self._advance(appended.last_id.sequence - self._base.sequence)
        if self._on_appended is not None:
            self._on_appended(len(batch), time.monotonic() - began_at)
        if appended.cancel and self._listener is not None:
            self._listener.on_cancel()

    def _next_batch(self) -> list[_RetainedEvent]:
        pending = self._retained[self._stored : self._stored + BATCH_EVENTS_MAX]
        if len(pending) == 1:
            return pending
        batch: list[_RetainedEvent] = []
        size = 0
        for item in pending:
            size += item.entry.size
            if batch and size > BATCH_BYTES_MAX:
                break
            batch.append(item)
            if item.entry.items:
                break
        return batch

    def _advance(self, stored: int) -> None:
        """Records that the first `stored` retained events are in the log; releases those of complete stages."""
        done = 0
        for count, item in enumerate(self._retained[self._stored : stored], self._stored + 1):
            self._pending_bytes -= item.entry.size
            if item.is_stage_end:
                done = count
        self._stored = stored
        self._advanced_at = time.monotonic()
        if done:
            self._release(done)
        if self._waiting:
            self._notify_waiting()

    def _release(self, count: int) -> None:
        self._base = self._id_at(count)
        del self._retained[:count]
        self._stored -= count

    def _rewind(self, last_id: EventId) -> None:
        """Sends again, with the same ids, what comes after `last_id`: the log lost its tail."""
        stored = last_id.sequence - self._base.sequence
        if last_id != self._base and not (last_id.attempt == self._attempt and 0 < stored <= len(self._retained)):
            self._fail(TailLost(self._run_id, str(last_id)))
            return
        logger.warning("run %s: the log lost its tail; sending again from %s", self._run_id, last_id)
        self._pending_bytes += sum(item.entry.size for item in self._retained[stored : self._stored])
        self._stored = stored

    def _id_at(self, count: int) -> EventId:
        """Returns the id of the last of the first `count` retained events."""
        return EventId(self._attempt, self._base.sequence + count) if count else self._base
