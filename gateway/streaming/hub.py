"""All open streams of this process over one pub/sub connection.

    live channel ──▶ hub ──▶ subscription ──▶ stream ──▶ client
    log ─────────────────────────▲ pages, for a client that is behind

A stream subscribes first and reads the log second. An event appended between the two arrives twice, and its
position drops the second copy. In the other order it would never arrive.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from functools import partial
from typing import Final

from stagebus.gateway.streaming.client_stream import ClientStream
from stagebus.gateway.streaming.feed_stream import read_ends
from stagebus.gateway.streaming.folded_view import Folds
from stagebus.gateway.streaming.page_reader import PageReader
from stagebus.gateway.streaming.stall_monitor import StallMonitor
from stagebus.gateway.streaming.stream_writer import StreamTorn
from stagebus.gateway.streaming.subscription import Subscription
from stagebus.gateway.streaming.thread_stream import ThreadStream
from stagebus.gateway.streaming.views import EventView
from stagebus.shared.access_errors import TooManyStreams
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import RunNotFound
from stagebus.shared.log import live_batch
from stagebus.shared.log.log_page import Page
from stagebus.shared.log.sse import PING, encode_retry
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys
from stagebus.shared.storage.connections import open_channels, open_pipelined
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.shared.store import thread_news

logger = logging.getLogger(__name__)

TICK_S: Final = 0.5
# After how long a client reconnects for which there was no room.
FULL_RETRY_MS: Final = 5000


class Hub:
    """Receives the live events of all watched runs and hands them to the streams."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self.retry_frame = encode_retry(settings.sse_retry_ms)
        self._streams_by_run: dict[str, set[ClientStream]] = {}  # those of a feed by its key
        self._streams_by_thread: dict[str, set[ThreadStream]] = {}
        self.folds = Folds()
        self._channels = open_channels(redis)
        # Reads the log, and what a request needs to know of it before its stream begins.
        self.log_connection = open_pipelined(redis, settings.redis_timeout_s)
        self._stall_monitor = StallMonitor(redis, settings.lease_s, self._streams_by_run)
        self._tickers: list[asyncio.Task[None]] = []
        self.page_reader = PageReader(self.log_connection, settings)
        self.write_timeout_s = settings.write_timeout_s
        self.drain_spread_s = settings.drain_spread_s
        self.is_draining = False
        self.open_streams = 0
        self.events_relayed = 0
        self._bytes_of_closed = 0

    async def start(self) -> None:
        """Opens the pub/sub connection and starts to watch for quiet streams."""
        await self._channels.start()
        self._tickers = [
            asyncio.create_task(self._ping_quiet_streams()),
            asyncio.create_task(self._stall_monitor.run()),
        ]

    async def stop(self) -> None:
        """Closes what `start` opened and ends the open streams immediately."""
        self._close_streams(self._all_streams())
        await cancel_and_wait(*self._tickers)
        await self._channels.stop()
        await self.log_connection.aclose()

    @property
    def bytes_relayed(self) -> int:
        """The number of bytes sent on all streams so far."""
        return self._bytes_of_closed + sum(stream.sent_bytes for stream in self._all_streams())

    def begin_drain(self) -> None:
        """Marks this process as draining: it reports that it is not ready."""
        self.is_draining = True

    async def drain(self) -> None:
        """Ends the open streams, spread over `drain_spread_s` so that their clients do not reconnect all together."""
        self.begin_drain()
        rounds = max(1, round(self.drain_spread_s / TICK_S))
        for remaining in range(rounds, 0, -1):
            streams = self._all_streams()
            self._close_streams(streams[: -(-len(streams) // remaining)])
            if remaining > 1 and self.open_streams:
                await asyncio.sleep(TICK_S)

    def new_stream(
        self,
        run_id: str,
        cursor: EventId,
        view: EventView,
        *,
        stage_id: str | None = None,
        owner: RunOwner | None = None,
        stages_begun: Sequence[str] = (),
        is_strict: bool = False,
        life_s: float | None = None,
    ) -> ClientStream:
        """Returns a stream of the run's events after the cursor; `relay` sends it. Args: see `ClientStream`.

        `life_s` is the most seconds until the stream's end.
        """
        subscription = Subscription(cursor, view, self._settings.stream_buffer_max_bytes)
        return ClientStream(
            run_id, subscription, stage_id=stage_id, owner=owner, stages_begun=stages_begun, is_strict=is_strict,
            life_s=life_s,
        )  # fmt: skip

    async def relay(
        self, stream: ClientStream, admission: AbstractAsyncContextManager[bool]
    ) -> AsyncGenerator[bytes, None]:
        """Yields the body of the stream's response, and holds all that the stream needs from its start to its end.

        The states, in order; a lost message leads from live back to reading:

            admitted ─▶ subscribing ─▶ reading ◀─▶ live ─▶ ended

        While Redis is down the stream stays open and sends pings: any status but 200 would make a browser give up.

        Args:
            admission: returns whether the stream may open. It is entered first and left last, whatever happens.

        Raises:
            TooManyStreams: a strict stream is not admitted. The first item of one that is has no bytes.
            StreamTorn: a strict stream has to end before the run.
        """
        async with admission as is_admitted:
            if not self.has_room(is_admitted=is_admitted):
                yield refusal_of(stream)
                return
            self.open_streams += 1
            self.join_run(stream)
            try:
                yield b"" if stream.is_strict else self.retry_frame
                while not stream.is_closed:
                    if data := stream.take():
                        yield data
                    elif stream.is_behind:
                        await self.catch_up(stream)
                    elif stream.subscription.is_ended:
                        return
                    else:
                        await stream.wait()
                if stream.ends_at is not None and not stream.sent_bytes and (data := stream.take()):
                    yield data  # a clean end tells the client to continue, and its first bytes say where
            except RunNotFound:
                pass  # its retention ended, or another one owns it; the client's next request gets 404
            finally:
                self._count_closed(stream)
                await self.leave_run(stream)
            _end_early(stream)

    def check_room(self, *, is_admitted: bool) -> None:
        """Checks that one more stream may open, as `relay` does.

        Raises:
            TooManyStreams: it may not.
        """
        if not self.has_room(is_admitted=is_admitted):
            raise TooManyStreams

    def has_room(self, *, is_admitted: bool) -> bool:
        """Returns whether one more stream may open."""
        return is_admitted and self.open_streams < self._settings.streams_max

    async def wait_for_news(
        self, stream: ClientStream, admission: AbstractAsyncContextManager[bool], timeout_s: float
    ) -> None:
        """Returns once the stream would have sent an event or a status, at its end, or after `timeout_s`.

        It also returns if the stream may not open; a strict one raises `TooManyStreams`. Args: see `relay`.
        """
        async with aclosing(self.relay(stream, admission)) as body:
            with suppress(TimeoutError, StreamTorn):
                async with asyncio.timeout(timeout_s):
                    async for data in body:
                        if data not in (b"", self.retry_frame, PING):
                            return

    def open_thread(self, stream: ThreadStream) -> None:
        """Counts the stream as open and subscribes to its thread's channel, as `join_run` does for a run."""
        self.open_streams += 1
        streams = self._streams_by_thread.setdefault(stream.thread_key, set())
        streams.add(stream)
        channel = keys.thread_live(stream.thread_key)
        subscribing = self._channels.subscribe(channel, partial(_hear, streams), partial(_catch_up, streams))
        stream.subscribing = asyncio.create_task(subscribing)

    async def close_thread(self, stream: ThreadStream) -> None:
        """Undoes `open_thread`."""
        self._count_closed(stream)
        if stream.subscribing is not None:
            stream.subscribing.cancel()
        streams = self._streams_by_thread[stream.thread_key]
        streams.discard(stream)
        if not streams:
            del self._streams_by_thread[stream.thread_key]
            await self._channels.unsubscribe(keys.thread_live(stream.thread_key))

    def _count_closed(self, stream: ClientStream) -> None:
        self.open_streams -= 1
        self._bytes_of_closed += stream.sent_bytes

    def join_run(self, stream: ClientStream) -> None:
        """Registers the stream and subscribes to its run's channel; `stream.subscribing` ends when that is confirmed.

        The first stream of a run subscribes its channel. A second one may come before that is confirmed, so each
        stream subscribes: Redis answers a repeated SUBSCRIBE like the first.
        """
        streams = self._streams_by_run.setdefault(stream.source, set())
        streams.add(stream)
        deliver, catch_up = partial(self._deliver, streams), partial(_catch_up, streams)
        subscribing = self._channels.subscribe(stream.channel, deliver, catch_up)
        stream.subscribing = asyncio.create_task(subscribing)

    async def leave_run(self, stream: ClientStream) -> None:
        """Undoes `join_run`."""
        if stream.subscribing is not None:
            stream.subscribing.cancel()
            stream.subscribing = None
        streams = self._streams_by_run[stream.source]
        streams.discard(stream)
        if not streams:
            del self._streams_by_run[stream.source]
            await self._channels.unsubscribe(stream.channel)

    async def catch_up(self, stream: ClientStream) -> None:
        """Waits for the stream's subscription, or reads the next page of its log; returns soon, so that no ping is late.

        Raises:
            RunNotFound: the run is gone, or belongs to another owner.
        """
        if stream.subscribing is None:
            count = await self.page_reader.read_next(stream)  # `+= await` would add to what the number was before
            self.events_relayed += count
            return
        await asyncio.wait([stream.subscribing], timeout=TICK_S)
        if stream.subscribing.done():
            stream.subscribing = None

    def pages(self, run_id: str, owner: RunOwner) -> AsyncGenerator[Page, None]:
        """Yields the log as it is now, page by page. Raises: see `PageReader.pages`."""
        return self.page_reader.pages(run_id, owner)

    def _deliver(self, streams: set[ClientStream], message: bytes) -> None:
        """Hands a message of a run's channel to the run's streams."""
        try:
            batch = live_batch.decode(message)
        except ValueError:
            logger.warning("a message on a live channel is not a batch; the run's streams read the log instead")
            for stream in streams:
                stream.catch_up()
            return
        self.events_relayed += sum(stream.count_events(batch) for stream in streams)
        for stream in streams:
            try:
                stream.deliver(batch)
            except Exception:
                # The run's other streams get the batch; this one reads it from the log.
                logger.exception("run %s: a stream failed to take a live batch", stream.run_id)
                stream.catch_up()

    async def _ping_quiet_streams(self) -> None:
        """Pings the streams that sent nothing for `ping_s`, and checks that their runs are quiet, too.

        Streams whose time is over are ended.
        """
        while True:
            await asyncio.sleep(TICK_S)
            now, streams = asyncio.get_running_loop().time(), self._all_streams()
            self._close_streams([stream for stream in streams if stream.ends_at is not None and stream.ends_at <= now])
            quiet = [
                stream for stream in streams if now - stream.quiet_since >= self._settings.ping_s and not stream.notice
            ]
            try:
                await self._check_positions([stream for stream in quiet if stream.source])
                await self._check_threads([stream for stream in quiet if isinstance(stream, ThreadStream)])
            except REDIS_AWAY:
                logger.debug("Redis is down; the positions of quiet streams are not checked")
            except Exception:
                # If this task ended, no stream of this process would get a ping again.
                logger.exception("the positions of quiet streams could not be checked")
            for stream in quiet:
                stream.ping()

    async def _check_positions(self, quiet: list[ClientStream]) -> None:
        """Makes a quiet stream read the log if its run has newer events: the last live message was lost."""
        last_ids = await read_ends(self._redis, quiet)
        for stream, last_id in zip(quiet, last_ids, strict=True):
            if stream.subscription.is_live and last_id != stream.subscription.position:
                stream.subscription.catch_up()

    async def _check_threads(self, quiet: list[ThreadStream]) -> None:
        """Makes a quiet stream read its thread if that has changed: the message that said so was lost."""
        if not quiet:
            return
        versions = await thread_news.read_versions(self._redis, [stream.thread_key for stream in quiet])
        for stream, version in zip(quiet, versions, strict=True):
            if version != stream.version:
                stream.look_again()

    def _all_streams(self) -> list[ClientStream]:
        between_runs = [
            stream for streams in self._streams_by_thread.values() for stream in streams if not stream.is_joined
        ]
        return between_runs + [stream for streams in self._streams_by_run.values() for stream in streams]

    def _close_streams(self, streams: list[ClientStream]) -> None:
        for stream in streams:
            stream.close()


def refusal_of(stream: ClientStream) -> bytes:
    """Returns the body of a stream that may not open.

    Raises:
        TooManyStreams: its client would take it for a stream that has ended.
    """
    if stream.is_strict:
        raise TooManyStreams
    return encode_retry(FULL_RETRY_MS)


def _hear(streams: set[ThreadStream], message: bytes) -> None:
    """Hands a message of a thread's channel to the thread's streams."""
    for stream in streams:
        stream.hear(message)


def _catch_up(streams: Iterable[ClientStream]) -> None:
    """Makes the streams of a channel read the log, because messages of it may have been missed."""
    for stream in streams:
        stream.catch_up()


def _end_early(stream: ClientStream) -> None:
    if stream.is_strict and stream.ends_at is None:
        raise StreamTorn
