"""The producer: the one object in a worker that appends a run's events.

Idempotent and fenced, as a Kafka producer is: it says which sequence its batch follows,
and the log takes of it what is not there yet. It batches by itself: what has piled up
while the last append was under way goes out as the next one, so one event travels alone
at once and a burst travels together. There are no timers.
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
from stagebus.shared.storage.redis_client import REDIS_AWAY, is_passing
from stagebus.shared.storage.run_scripts import LogEntry, TerminalState

logger = logging.getLogger(__name__)

BATCH_EVENTS_MAX: Final = 512
BATCH_BYTES_MAX: Final = 1 << 20
BACKOFF_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0


class _RetainedEvent(NamedTuple):
    """An event that may have to be sent again: kept until its stage is complete."""

    entry: LogEntry
    is_stage_end: bool
    end: TerminalState | None


def _ignore(*_: object) -> None:
    pass


class Producer:
    """Appends one attempt's events in order, each exactly once, through lost replies and lost tails."""

    def __init__(
        self,
        connection: ScriptConnection,
        run_id: str,
        attempt: int,
        last_id: EventId,
        *,
        stage_ids: Sequence[str],
        ttl_s: float,
        pending_max_bytes: int,
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._attempt = attempt
        self._ttl_s = ttl_s
        self._pending_max_bytes = pending_max_bytes
        # Set by the owner: an append's reply tells of a cancel, perhaps more than once; nothing more can be written.
        self.on_cancel: Callable[[], None] = _ignore
        self.on_failure: Callable[[StagebusError], None] = _ignore
        # Likewise: so many events went into an append, which took so many seconds. None costs nothing.
        self.on_appended: Callable[[int, float], None] | None = None
        self._base = last_id  # the id before the first kept event
        self._kept: list[_RetainedEvent] = []
        self._stored = 0  # how many of the kept events stand in the log
        self._advanced_at = -math.inf  # when an append last said so; monotonic
        self._pending_bytes = 0
        self._wake = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []  # until an append has come to something
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
        """The sequence that the next event gets."""
        return self._base.sequence + len(self._kept) + 1

    def put(self, event: Event, end: TerminalState | None = None) -> EventId:
        """Take an event; it is on its way when this returns.

        Args:
            end: with a terminal event, what it sets in the record.

        Raises:
            Fenced, RunEnded, TailLost: an earlier event could not be appended; stop.
        """
        self._raise_failure()
        event_id = EventId(self._attempt, self.next_sequence)
        # Stamped and encoded once: what is sent again is the same to the byte.
        entry = LogEntry(event.stage_id, event.event, event.stamped(wall_ms()).data())
        if event.stage_id not in self.stage_ids:
            self.stage_ids.append(event.stage_id)
        self._kept.append(_RetainedEvent(entry, isinstance(event, StageCompleted), end))
        self._pending_bytes += len(entry.data)
        self._wake.set()
        return event_id

    @property
    def is_full(self) -> bool:
        """Whether so much is pending that the model has to wait."""
        return self._pending_bytes > self._pending_max_bytes

    async def wait_for_room(self) -> None:
        """Hold the model back while Redis is away and too much is pending.

        Raises:
            Fenced, RunEnded, TailLost: as `put`.
        """
        await self._wait_until(lambda: not self.is_full)

    async def flush(self) -> None:
        """Wait until every event put so far stands in the log.

        Raises:
            Fenced, RunEnded, TailLost: as `put`.
        """
        goal = self.next_sequence - 1
        await self._wait_until(lambda: self._base.sequence + self._stored >= goal)

    def compare(self, last_id: EventId, asked_at: float = math.inf) -> None:
        """DecisionSnapshot at where the log ends, as a lease's renewal tells: a lost tail is sent again.

        Args:
            asked_at: the monotonic time at which that was asked for; an answer that an append
                overtook on its way is older than what is known here.
        """
        if asked_at > self._advanced_at and last_id.sequence < self._base.sequence + self._stored:
            self._rewind(last_id)
            self._wake.set()

    async def _wait_until(self, is_reached: Callable[[], bool]) -> None:
        while self._failure is None and not is_reached():
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        self._raise_failure()

    def _tell_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self, failure: StagebusError) -> None:
        self._failure = failure
        self._tell_waiting()
        self.on_failure(failure)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _send_forever(self) -> None:
        backoff_s = BACKOFF_S
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._stored < len(self._kept) and self._failure is None:
                try:
                    await self._send_batch()
                    backoff_s = BACKOFF_S
                except StagebusError as exc:
                    self._fail(exc)
                except Exception as exc:
                    if isinstance(exc, REDIS_AWAY) and is_passing(exc):
                        logger.warning("run %s: append waits for Redis: %s", self._run_id, exc)
                        await asyncio.sleep(backoff_s)
                        backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
                        continue
                    # Nobody foresaw it; the same batch would fail for ever and its run hang.
                    logger.exception("run %s: the producer failed; its worker claims anew", self._run_id)
                    self._fail(TailLost(self._run_id, str(self._id_at(self._stored))))

    async def _send_batch(self) -> None:
        batch = self._next_batch()
        before = self._id_at(self._stored)
        entries = [kept.entry for kept in batch]
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
            ttl_s=self._ttl_s,
            end=end,
            stage_ids=self.stage_ids if end is not None else (),
        )
        if appended.is_behind:
            self._rewind(appended.last_id)
            return
        self._advance(appended.last_id.sequence - self._base.sequence)
        if self.on_appended is not None:
            self.on_appended(len(batch), time.monotonic() - began_at)
        if appended.cancel:
            self.on_cancel()

    def _next_batch(self) -> list[_RetainedEvent]:
        pending = self._kept[self._stored : self._stored + BATCH_EVENTS_MAX]
        if len(pending) == 1:
            return pending
        batch: list[_RetainedEvent] = []
        size = 0
        for kept in pending:
            size += len(kept.entry.data)
            if batch and size > BATCH_BYTES_MAX:
                break
            batch.append(kept)
        return batch

    def _advance(self, stored: int) -> None:
        """So many of the kept events stand; those of complete stages need not be kept any longer."""
        done = 0
        for count, kept in enumerate(self._kept[self._stored : stored], self._stored + 1):
            self._pending_bytes -= len(kept.entry.data)
            if kept.is_stage_end:
                done = count
        self._stored = stored
        self._advanced_at = time.monotonic()
        if done:
            self._forget(done)
        if self._waiting:
            self._tell_waiting()

    def _forget(self, count: int) -> None:
        self._base = self._id_at(count)
        del self._kept[:count]
        self._stored -= count

    def _rewind(self, last_id: EventId) -> None:
        """The log lost its tail: send again from there, with the same ids."""
        stored = last_id.sequence - self._base.sequence
        if last_id != self._base and not (last_id.attempt == self._attempt and 0 < stored <= len(self._kept)):
            self._fail(TailLost(self._run_id, str(last_id)))
            return
        logger.warning("run %s: the log lost its tail; sending again from %s", self._run_id, last_id)
        self._pending_bytes += sum(len(kept.entry.data) for kept in self._kept[stored : self._stored])
        self._stored = stored

    def _id_at(self, count: int) -> EventId:
        """The id of the last of the first `count` kept events."""
        return EventId(self._attempt, self._base.sequence + count) if count else self._base
