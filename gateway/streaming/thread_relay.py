"""The stream of a thread: its turns by activation, each with the events of its run, then the runs that wait.

    event: turn                                        no id: it is made from the thread, and may come again
    data: {"run_id":"01J9…","parent_run_id":null,"seq":1,"messages":[{"role":"user","content":"Hello"}]}

    id: 01J9….5204-2
    event: stage_started
    …

    turn 1 ─▶ its log ─▶ live ─▶ done ─▶ read the thread ─▶ turn 2 … ─▶ nothing follows: wait for the channel

The script that ends a run also begins the next turn, so a client that has the end of a run finds its successor, or waits.
A message of the thread's channel only says that the thread should be read; the check of quiet streams replaces lost ones.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from stagebus.gateway.streaming.hub import Hub, refusal_of
from stagebus.gateway.streaming.page_reader import acquire_for_a_while, back_off
from stagebus.gateway.streaming.thread_stream import ThreadStream, TurnStep, step_for
from stagebus.gateway.streaming.thread_view import (
    TurnEventsViews,
    encode_deleted,
    encode_deleted_in_place,
    encode_snapshot,
    encode_thread_gap,
    encode_turn,
    encode_waiting,
)
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.domain.thread_cursor import THREAD_START, ThreadCursor
from stagebus.shared.errors import RunNotFound
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.storage.redis_client import REDIS_AWAY
from stagebus.shared.store import thread_news
from stagebus.shared.store.thread_news import StoredTurn, ThreadNews
from stagebus.shared.thread_errors import ThreadNotFound

# A read of a thread may bring the messages of a turn, which have up to a few MiB.
CONCURRENT_LOOKS_MAX: Final = 8


class ThreadRelay:
    """The streams of threads of this process. Their runs' events come through the hub."""

    def __init__(self, hub: Hub, settings: Settings) -> None:
        self._hub = hub
        self._settings = settings
        self._views = TurnEventsViews()
        self._looks = asyncio.Semaphore(CONCURRENT_LOOKS_MAX)

    def new_stream(
        self,
        thread_key: str,
        owner: RunOwner,
        cursor: ThreadCursor = THREAD_START,
        *,
        is_until_idle: bool = False,
        is_until_read: bool = False,
        stages_started: Sequence[StoredEvent] | None = None,
    ) -> ThreadStream:
        """Returns a stream of the thread's turns after the cursor; `relay` sends it. Args: see `ThreadStream`."""
        buffer_max_bytes = self._settings.stream_buffer_max_bytes
        return ThreadStream(
            thread_key, owner, cursor, buffer_max_bytes, is_until_idle=is_until_idle, is_until_read=is_until_read,
            stages_started=stages_started,
        )  # fmt: skip

    async def relay(
        self, stream: ThreadStream, admission: AbstractAsyncContextManager[bool]
    ) -> AsyncGenerator[bytes, None]:
        """Yields the body of the stream's response, as `Hub.relay` does for a run."""
        hub = self._hub
        async with admission as is_admitted:
            if not hub.has_room(is_admitted=is_admitted):
                yield refusal_of(stream)
                return
            hub.open_thread(stream)
            try:
                yield hub.retry_frame
                while not stream.is_closed:
                    if data := stream.take():
                        yield data
                    elif stream.subscribing is not None or (stream.is_joined and stream.is_behind):
                        await self._catch_up(stream)
                    elif stream.is_outdated:
                        await self._look(stream)
                    elif stream.is_joined and stream.subscription.is_ended:
                        await self._leave(stream)
                    elif stream.is_over or stream.is_until_read:
                        return
                    else:
                        await stream.wait()
            except ThreadNotFound:
                pass  # deleted, or its retention ended; the client's next request gets 404
            finally:
                if stream.is_joined:
                    await hub.leave_run(stream)
                await hub.close_thread(stream)

    async def _catch_up(self, stream: ThreadStream) -> None:
        """Waits for a subscription, or reads the run's log. A log that is gone leads back to the thread."""
        try:
            await self._hub.catch_up(stream)
        except RunNotFound:
            stream.cursor = ThreadCursor(stream.run_id, stream.subscription.position)
            await self._leave(stream)

    async def _leave(self, stream: ThreadStream) -> None:
        await self._hub.leave_run(stream)
        stream.end_turn()

    async def _look(self, stream: ThreadStream) -> None:
        """Reads the thread, and goes on to its next turn if the client has the one before.

        Raises:
            ThreadNotFound: the thread is gone.
        """
        if not await acquire_for_a_while(self._looks):
            return
        stream.is_outdated = False  # first: a message that comes during the read sets it again
        try:
            await self._read(stream)
            return
        except REDIS_AWAY:
            stream.is_outdated = True
        finally:
            self._looks.release()
        await back_off()

    async def _read(self, stream: ThreadStream) -> None:
        news = await thread_news.read_news(self._hub.log_connection, stream.thread_key, stream.seq)
        if news is None or not stream.is_same_life(news.version):
            raise ThreadNotFound(stream.thread_key)
        await self._tell_deleted(stream)
        await self._tell_waiting(stream, news)
        stream.version = news.version
        if stream.is_joined:
            return
        if stream.cursor != THREAD_START:
            await self._resume(stream)
        elif news.next_run_id:
            turn = await self._read_turn(stream, news.next_run_id)
            if turn is not None:
                await self._begin(stream, turn, START)
        elif stream.is_until_idle:
            stream.is_over = news.is_idle

    async def _resume(self, stream: ThreadStream) -> None:
        """Continues in the turn of the client's cursor."""
        cursor = stream.cursor
        turn = await self._read_turn(stream, cursor.run_id)
        if turn is None:
            stream.put(encode_thread_gap(cursor, None))
            stream.cursor = THREAD_START
            stream.is_outdated = True
        else:
            await self._begin(stream, turn, cursor.event_id)

    async def _begin(self, stream: ThreadStream, turn: StoredTurn, cursor: EventId) -> None:
        """Sends what the client gets of a turn, see `step_for`."""
        step = step_for(turn, cursor)
        if step is TurnStep.WAIT:
            stream.forget_version()
            return
        frames = []
        if step is TurnStep.FOLLOW:
            frames = [encode_turn(turn)]
        elif step is TurnStep.TELL_DELETED:
            # A turn that is not closed yet has no cursor after it; its end comes with the next look. A client that has
            # that cursor is told without one: the same place in each page would let it read that page forever.
            is_passed = cursor == turn.end_id
            frames = [encode_deleted_in_place(turn) if turn.status and not is_passed else encode_deleted(turn)]
        elif step is TurnStep.SNAPSHOT:
            gap = [] if cursor == START else [encode_thread_gap(ThreadCursor(turn.run_id, cursor), turn)]
            result = await thread_news.read_result(self._hub.log_connection, stream.thread_key, turn.run_id)
            frames = [*gap, encode_snapshot(turn, result)]
        # Not before the last read: if it fails, all of this is done again.
        for frame in frames:
            stream.put(frame)
        stream.cursor = THREAD_START
        stream.seq = turn.seq
        if step is TurnStep.FOLLOW:
            stream.begin_turn(turn, cursor, self._views.of(turn.run_id))
            self._hub.join_run(stream)
        else:
            stream.is_outdated = True

    async def _tell_deleted(self, stream: ThreadStream) -> None:
        """Tells the client of turns that it has and that were deleted since."""
        while stream.gone:
            turn = await self._read_turn(stream, stream.gone[0])
            if turn is not None and turn.is_deleted and turn.seq <= stream.seq:
                stream.put(encode_deleted(turn))
            stream.gone = stream.gone[1:]

    async def _tell_waiting(self, stream: ThreadStream, news: ThreadNews) -> None:
        """Tells the client of the waiting runs if they have changed, and at its start if there are any.

        A client that resumes may know of runs that have left since, so it is told in any case.
        """
        run_ids = news.version.waiting_ids
        is_resumed = stream.version is None and stream.cursor != THREAD_START
        if is_resumed or run_ids != (stream.version.waiting_ids if stream.version else ()):
            runs = await thread_news.read_waiting(self._hub.log_connection, stream.thread_key, run_ids)
            stream.put(encode_waiting(runs))

    async def _read_turn(self, stream: ThreadStream, run_id: str) -> StoredTurn | None:
        return await thread_news.read_turn(self._hub.log_connection, stream.thread_key, run_id)
