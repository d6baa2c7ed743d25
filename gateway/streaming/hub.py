"""All open streams of this process over one pub/sub connection.

    live channel ──▶ hub ──▶ subscription ──▶ stream ──▶ client
    log ─────────────────────────▲ pages, where a client is behind

A stream subscribes first and reads the log second. An event appended between the two
then comes twice and its position drops the second copy; in the other order it would
never come.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from functools import partial
from typing import Final

from stagebus.gateway.streaming.client_stream import OpenStream
from stagebus.gateway.streaming.stream_writer import StreamWriter
from stagebus.gateway.streaming.subscription import Subscription, View
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.log import live_batch, log_reader
from stagebus.shared.log.sse import PING
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.pubsub import Channels
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis

logger = logging.getLogger(__name__)

TICK_S: Final = 0.5
AWAY_BACKOFF_S: Final = (0.2, 1.0)  # spread, so that thousands of streams do not ask at once
# Pages of the log that are read at once: each is in memory as reply, events and frames. A hundred
# slow clients that fell behind together grew the process by 87 MiB where eight at a time grew it by 61.
PAGES_AT_ONCE_MAX: Final = 8
# Their answers come in one turn of the event loop, in which nobody else is served. Pages of many events, some 2 us
# each, are two at a time; a client that comes back to a run reads a short one.
LONG_PAGES_AT_ONCE_MAX: Final = 2
LONG_PAGE_EVENTS: Final = 200


class Hub:
    """Receives the live events of every run that a client here watches, and hands them out."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._streams: dict[str, set[OpenStream]] = {}
        self._channels = Channels(redis, self._catch_up_all)
        self.line = PipelinedConnection(
            redis, settings.redis_timeout_s
        )  # for what is read of a log before and between live batches
        self._ticker: asyncio.Task[None] | None = None
        self._short_pages = asyncio.Semaphore(PAGES_AT_ONCE_MAX - LONG_PAGES_AT_ONCE_MAX)
        self._long_pages = asyncio.Semaphore(LONG_PAGES_AT_ONCE_MAX)
        self.is_draining = False
        self.open_streams = 0
        self.events_relayed = 0
        self._bytes_of_closed = 0

    async def start(self) -> None:
        """Open the pub/sub connection and start the clock of pings."""
        await self._channels.start()
        self._ticker = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        """Close what `start` opened; open streams end at once."""
        self._close_streams(list(self._all_streams()))
        if self._ticker is not None:
            await cancel_and_wait(self._ticker)
        await self._channels.stop()
        await self.line.aclose()

    @property
    def bytes_relayed(self) -> int:
        """Bytes sent on streams so far."""
        return self._bytes_of_closed + sum(stream.sent_bytes for stream in self._all_streams())

    def begin_drain(self) -> None:
        """From now on this process says that it is not ready."""
        self.is_draining = True

    async def drain(self) -> None:
        """End the open streams, spread over `drain_spread_s`, so that clients do not come back all at once."""
        self.begin_drain()
        rounds = max(1, round(self._settings.drain_spread_s / TICK_S))
        for remaining in range(rounds, 0, -1):
            streams = list(self._all_streams())
            self._close_streams(streams[: -(-len(streams) // remaining)])
            if remaining > 1 and self.open_streams:
                await asyncio.sleep(TICK_S)

    def new_stream(
        self,
        run_id: str,
        cursor: EventId,
        view: View,
        outlet: StreamWriter,
        stage_id: str | None = None,
        tenant: str | None = None,
        stages_begun: Sequence[str] = (),
    ) -> OpenStream:
        """A stream of the run from the cursor on; `relay` feeds it.

        Args:
            tenant: whose the run has to be; None: anybody's. The log's first page is read before
                anything is relayed, and tells.
            stages_begun: by the run, as far as is known; a page of the log is read by them.
        """
        subscription = Subscription(cursor, view, self._settings.stream_buffer_max_bytes)
        return OpenStream(run_id, stage_id, tenant, subscription, outlet, stages_begun)

    async def relay(self, stream: OpenStream) -> None:
        """Send the stream's events until the run ends or the stream is closed.

        Redis being away costs a wait with pings, never the stream: any status but 200
        would make a browser give up for good.
        """
        self.open_streams += 1
        streams = self._streams.setdefault(stream.run_id, set())
        streams.add(stream)
        try:
            await self._subscribe(stream)
            await self._relay(stream)
        finally:
            self.open_streams -= 1
            self._bytes_of_closed += stream.sent_bytes
            streams.discard(stream)
            if not streams and self._streams.get(stream.run_id) is streams:
                del self._streams[stream.run_id]
                await self._channels.unsubscribe(keys.live(stream.run_id))

    async def _relay(self, stream: OpenStream) -> None:
        subscription = stream.subscription
        while not stream.is_closed:
            data = subscription.take()
            if data:
                await stream.send(data)
            elif subscription.is_live and subscription.is_ended:
                return
            elif not subscription.is_live:
                await self._read_page(stream)
            else:
                await stream.wait()
                await self._send_ping(stream)

    async def _subscribe(self, stream: OpenStream) -> None:
        # The first stream of a run subscribes its channel; a later one may come before that
        # is confirmed, so each asks: a second SUBSCRIBE is answered like the first.
        streams = self._streams[stream.run_id]
        asked = asyncio.ensure_future(
            self._channels.subscribe(keys.live(stream.run_id), partial(self._deliver, streams))
        )
        asked.add_done_callback(lambda _: stream.wake())
        try:
            while not asked.done() and not stream.is_closed:
                await asyncio.wait([asked], timeout=TICK_S)
                await self._send_ping(stream)
        finally:
            asked.cancel()

    async def _read_page(self, stream: OpenStream) -> None:
        subscription = stream.subscription
        is_short = subscription.events_of_page(self._settings.page_max_events) < LONG_PAGE_EVENTS
        pages = self._short_pages if is_short else self._long_pages
        if not await _may_read_page(pages):
            await self._send_ping(stream)
            return
        events_max = subscription.begin_page(self._settings.page_max_events)
        try:
            page = await log_reader.read_page(
                self.line,
                stream.run_id,
                subscription.position,
                events_max,
                stage_id=stream.stage_id,
                tenant=stream.tenant,
                stage_ids=stream.stages_begun,
            )
            stream.stages_begun = page.stage_ids
            subscription.read(page)
            self.events_relayed += page.event_count
            is_away = False
        except REDIS_AWAY:
            is_away = True
        finally:
            pages.release()
        if is_away:
            await asyncio.sleep(random.uniform(*AWAY_BACKOFF_S))  # noqa: S311 - jitter
            await self._send_ping(stream)

    async def _send_ping(self, stream: OpenStream) -> None:
        if stream.ping_due:
            await stream.send(PING)

    def _deliver(self, streams: set[OpenStream], message: bytes) -> None:
        try:
            batch = live_batch.decode(message)
        except ValueError:
            logger.warning("a message that is no batch on a live channel; its streams read the log")
            for stream in streams:
                stream.fall_behind()
            return
        self.events_relayed += (batch.last.sequence - batch.before.sequence) * len(streams)
        for stream in streams:
            try:
                stream.deliver(batch)
            except Exception:
                # Of this stream alone: the run's others get the batch, and this one reads the log.
                logger.exception("run %s: a stream could not take a batch", stream.run_id)
                stream.fall_behind()

    def _catch_up_all(self) -> None:
        """Messages may have been missed: every stream looks into the log."""
        for stream in self._all_streams():
            stream.fall_behind()

    async def _tick(self) -> None:
        """Give quiet streams a ping, and look whether their runs are quiet, too."""
        while True:
            await asyncio.sleep(TICK_S)
            now = asyncio.get_running_loop().time()
            quiet = [s for s in self._all_streams() if now - s.quiet_since >= self._settings.ping_s and not s.ping_due]
            try:
                await self._compare(quiet)
            except REDIS_AWAY:
                logger.debug("Redis is away; quiet streams are not compared")
            except Exception:
                # Without the ticker no stream of this process would ever get a ping again.
                logger.exception("quiet streams could not be compared")
            for stream in quiet:
                stream.ping()

    async def _compare(self, quiet: list[OpenStream]) -> None:
        last_ids = await log_reader.read_last_ids(self._redis, [stream.run_id for stream in quiet])
        for stream, last_id in zip(quiet, last_ids, strict=True):
            if stream.subscription.is_live and last_id != stream.subscription.position:
                stream.subscription.fall_behind()

    def _all_streams(self) -> list[OpenStream]:
        return [stream for streams in self._streams.values() for stream in streams]

    def _close_streams(self, streams: list[OpenStream]) -> None:
        for stream in streams:
            stream.close()


async def _may_read_page(pages: asyncio.Semaphore) -> bool:
    """Wait for the right to read a page, but not so long that a ping comes late; who gets it releases it."""
    try:
        async with asyncio.timeout(TICK_S):
            return await pages.acquire()
    except TimeoutError:
        return False
