"""One client's open stream: its subscription, and the wake-up of the generator that yields its bytes.

A client that keeps up gets a live batch in the same event loop iteration that read it from Redis: `deliver` writes
it to the socket. The generator (`Hub.relay`) does everything else: log pages, pings, slow clients, the end.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from stagebus.gateway.streaming.stream_writer import StreamWriter
from stagebus.gateway.streaming.subscription import Subscription
from stagebus.shared.domain.events import StreamStatus, WaitingFor
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.log import log_reader
from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.log_page import Page
from stagebus.shared.log.sse import PING, encode_without_id
from stagebus.shared.storage import keys
from stagebus.shared.storage.pipelined import ReadConnection

# After this long without an event the stall monitor checks the run; that of a new stream may have been silent before.
SILENCE_S: Final = 3.0
SILENCE_AT_START_S: Final = 1.0


class ClientStream:
    """The hub's record of one client.

    Attributes:
        writer: writes to the client's socket; None on a server where all bytes go through the generator.
        owner: whose run it must be, or None for anyone's. The first log page is read before anything else is sent, and
            the read fails for a run of another owner.
        stages_begun: the stages that the run has begun, as far as is known; a log page is read with them.
        notice: a ping or a status to be sent unless events come first; empty if there is none.
        quiet_since: the loop time at which bytes were last sent.
        check_at: the loop time from which on the stall monitor checks the run.
        waiting_for: what the client was told since that its run waits for.
        subscribing: ends when the subscription of the run's channel is confirmed; None from then on.
        is_strict: the client would take an early end of its stream for the run's, and does not know `retry:`. A stream
            that cannot open fails before its response begins, and one that has to end early is torn.
        ends_at: the loop time at which the stream ends. Its client takes a clean end for a request to come back, so the
            stream is never torn. None: no such time.
    """

    __slots__ = (
        "_loop",
        "_wakeup",
        "check_at",
        "ends_at",
        "is_closed",
        "is_strict",
        "notice",
        "owner",
        "quiet_since",
        "run_id",
        "sent_bytes",
        "stage_id",
        "stages_begun",
        "subscribing",
        "subscription",
        "waiting_for",
        "writer",
    )

    def __init__(
        self,
        run_id: str,
        subscription: Subscription,
        *,
        stage_id: str | None = None,
        owner: RunOwner | None = None,
        stages_begun: Sequence[str] = (),
        is_strict: bool = False,
        life_s: float | None = None,
    ) -> None:
        self.run_id = run_id
        self.subscription = subscription
        self.stage_id = stage_id
        self.owner = owner
        self.stages_begun = stages_begun
        self.is_strict = is_strict
        self.writer: StreamWriter | None = None
        self.is_closed = False
        self.notice = b""
        self.sent_bytes = 0
        self._loop = asyncio.get_running_loop()
        self.quiet_since = self._loop.time()
        self.check_at = self.quiet_since + SILENCE_AT_START_S
        self.ends_at = None if life_s is None else self.quiet_since + life_s
        self.waiting_for: WaitingFor | None = None
        self.subscribing: asyncio.Task[None] | None = None
        self._wakeup: asyncio.Future[None] | None = None

    @property
    def source(self) -> str:
        """The run whose events the stream shows; streams of one source share a subscription."""
        return self.run_id

    @property
    def channel(self) -> str:
        """The channel of the run's live batches."""
        return keys.live(self.run_id)

    async def read_page(self, connection: ReadConnection, limit: int) -> Page:
        """Reads the next page of the log.

        Raises:
            RunNotFound: the owner has no such run.
        """
        page = await log_reader.read_page(
            connection,
            self.run_id,
            self.subscription.position,
            limit,
            stage_id=self.stage_id,
            owner=self.owner,
            stage_ids=self.stages_begun,
        )
        self.stages_begun = page.stage_ids
        return page

    def count_events(self, batch: LiveBatch) -> int:
        """Returns the number of events of a live batch."""
        return batch.last.sequence - batch.before.sequence

    def attach(self, writer: StreamWriter) -> None:
        """Sends live batches through the writer while the client keeps up, and closes when the client disconnects."""
        self.writer = writer
        writer.on_disconnect = self.close

    def deliver(self, batch: LiveBatch) -> None:
        """Sends a live batch, or hands it to the subscription if something must be sent before it."""
        if (writer := self._idle_writer) is not None and (data := self.subscription.forward(batch)) is not None:
            if data:
                self._record(data)
                self._record_events()
                writer.write(data)
            if not self.subscription.is_ended:
                return
        else:
            self.subscription.add_batch(batch)
        self.wake()

    def ping(self) -> None:
        """Sends a ping, immediately if nothing is to be sent before it."""
        if not self.notice:
            self._notify(PING)

    def report(self, waiting_for: WaitingFor | None) -> None:
        """Tells the client what its run waits for, if that has changed and the client's protocol has a frame for it."""
        if waiting_for != self.waiting_for and not self.is_strict:
            self.waiting_for = waiting_for
            status = StreamStatus(waiting_for=waiting_for)
            self._notify(encode_without_id(status.event, status.model_dump_json()))

    def _notify(self, notice: bytes) -> None:
        if (writer := self._idle_writer) is not None and not self.subscription.is_ready:
            self._record(notice)
            writer.write(notice)
        else:
            self.notice = notice
            self.wake()

    @property
    def _idle_writer(self) -> StreamWriter | None:
        """The writer if it may be used now: the generator waits, and the socket has room."""
        if self.writer is None or self._wakeup is None or self._wakeup.done() or not self.writer.is_writable:
            return None
        return self.writer

    def catch_up(self) -> None:
        """Reads the log, because live batches may have been missed."""
        self.subscription.catch_up()
        self.wake()

    def close(self) -> None:
        """Ends the stream after the bytes that are being sent. A client that is still there reconnects elsewhere."""
        self.is_closed = True
        self.wake()

    @property
    def has_work(self) -> bool:
        """True if there is something to do for the generator."""
        return self.subscription.is_ready or self.is_closed or bool(self.notice)

    @property
    def is_behind(self) -> bool:
        """True if the stream has to wait for its subscription, or to read the log."""
        return self.subscribing is not None or not self.subscription.is_live

    def wake(self) -> None:
        """Resumes the generator if it waits."""
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def take(self) -> bytes:
        """Returns the bytes to send next: buffered events, or else the notice, or nothing."""
        events = self.subscription.take()
        data = events or self.notice
        if data:
            self._record(data)
        if events:
            self._record_events()
        return data

    async def wait(self) -> None:
        """Waits until there is something to do for the generator."""
        if self.has_work:
            return
        self._wakeup = self._loop.create_future()
        try:
            await self._wakeup
        finally:
            self._wakeup = None

    def _record(self, data: bytes) -> None:
        self.quiet_since = self._loop.time()
        self.notice = b""
        self.sent_bytes += len(data)

    def _record_events(self) -> None:
        self.check_at = self.quiet_since + SILENCE_S
        self.waiting_for = None
