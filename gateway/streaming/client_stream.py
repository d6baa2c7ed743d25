"""One open stream: a client's subscription, the way to it, and the task that is woken when that is not enough.

A client that keeps up is sent a live batch as it comes, within the turn of the event loop
that read it from Redis. The stream's task is for all else: pages of the log, pings, a
client that reads slowly, the end.
"""

import asyncio
from collections.abc import Sequence

from stagebus.gateway.streaming.stream_writer import StreamWriter
from stagebus.gateway.streaming.subscription import Subscription
from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.sse import PING


class OpenStream:
    """What the hub holds for a client."""

    __slots__ = (
        "_loop",
        "_waiting",
        "is_closed",
        "outlet",
        "ping_due",
        "quiet_since",
        "run_id",
        "sent_bytes",
        "stage_id",
        "stages_begun",
        "subscription",
        "tenant",
    )

    def __init__(
        self,
        run_id: str,
        stage_id: str | None,
        tenant: str | None,
        subscription: Subscription,
        outlet: StreamWriter,
        stages_begun: Sequence[str],
    ) -> None:
        self.run_id = run_id
        self.stage_id = stage_id
        self.tenant = tenant
        self.stages_begun = stages_begun
        self.subscription = subscription
        self.outlet = outlet
        self.is_closed = False
        self.ping_due = False
        self.sent_bytes = 0
        self._loop = asyncio.get_running_loop()
        self.quiet_since = self._loop.time()
        self._waiting: asyncio.Future[None] | None = None
        outlet.on_lost = self.close

    def deliver(self, batch: LiveBatch) -> None:
        """A batch came over the live channel."""
        if self._is_idle and self.outlet.is_free and (data := self.subscription.pass_on(batch)) is not None:
            if data:
                self._note(data)
                self.outlet.write(data)
            if not self.subscription.is_ended:
                return
        else:
            self.subscription.deliver(batch)
        self.wake()

    def ping(self) -> None:
        """The stream was quiet for long: at once where nothing is to be done before it, without the task."""
        if self._is_idle and self.outlet.is_free and not self.subscription.is_ready:
            self._note(PING)
            self.outlet.write(PING)
        else:
            self.ping_due = True
            self.wake()

    @property
    def _is_idle(self) -> bool:
        """Whether the task sleeps; else it is at work and will see what came."""
        return self._waiting is not None and not self._waiting.done()

    def fall_behind(self) -> None:
        """Something may have been missed: look into the log."""
        self.subscription.fall_behind()
        self.wake()

    def close(self) -> None:
        """End the stream after what it is sending; the client, if there is one, comes back to another gateway."""
        self.is_closed = True
        self.wake()

    def wake(self) -> None:
        """Something is to be done: the task goes round."""
        if self._is_idle and self._waiting is not None:
            self._waiting.set_result(None)

    async def send(self, data: bytes) -> None:
        """Send bytes; a ping that was due is not any more."""
        self._note(data)
        await self.outlet.send(data)

    async def wait(self) -> None:
        """Sleep until there is something for the task to do."""
        if self.subscription.is_ready or self.is_closed or self.ping_due:
            return
        self._waiting = self._loop.create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _note(self, data: bytes) -> None:
        self.quiet_since = self._loop.time()
        self.ping_due = False
        self.sent_bytes += len(data)
