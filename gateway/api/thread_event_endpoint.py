"""The event stream of a thread."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, nullcontext, suppress
from typing import Final, NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.event_endpoints import (
    PAGE_LIMIT_DEFAULT,
    PAGE_LIMIT_MAX,
    STREAM_HEADERS,
    STREAM_SCHEMA,
    read_first_events,
)
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.held_request import closed_on_disconnect
from stagebus.gateway.api.params import (
    limit_parameter,
    read_chunks,
    read_limit,
    read_wait,
    wait_parameter,
    wants_stream,
)
from stagebus.gateway.api.responses import EVENT_STREAM, JSON
from stagebus.gateway.api.schemas.thread_page import ThreadEventPage
from stagebus.gateway.api.thread_params import (
    THREAD_ID,
    THREAD_STREAM_PARAMETERS,
    THREAD_USER,
    read_thread_cursor,
    read_thread_identity,
    read_until_idle,
)
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming.response import EventStream
from stagebus.gateway.streaming.thread_stream import ThreadStream
from stagebus.shared.access_errors import TooManyStreams
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.domain.thread_cursor import THREAD_START, ThreadCursor
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.errors import InvalidRequest, RunNotFound, StorageUnavailable
from stagebus.shared.log import sse
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import thread_news
from stagebus.shared.store.thread_news import ThreadTip
from stagebus.shared.thread_errors import BadThreadCursor, ThreadNotFound

# A page comes from memory and a few reads; Redis is down if it takes longer.
PAGE_TIMEOUT_S: Final = 10.0


class _Ask(NamedTuple):
    """A request for the stream of a thread, or for a page of it."""

    identity: ThreadIdentity
    cursor: ThreadCursor
    is_until_idle: bool
    stages_started: Sequence[StoredEvent] | None

    def new_stream(self, request: Request, *, is_until_read: bool = False) -> ThreadStream:
        """Returns a stream that answers it."""
        return gateway_of(request).threads.new_stream(
            keys.thread(self.identity), principal_of(request).owner, self.cursor, is_until_idle=self.is_until_idle,
            is_until_read=is_until_read, stages_started=self.stages_started,
        )  # fmt: skip


async def stream_thread(request: Request) -> Response:
    """Stream a thread's turns: those after the cursor, then live ones for as long as the thread exists.

    Each turn begins with the frame `turn`, and the events of its run follow. Turns of all branches come in the order in
    which they became active. The cursor is a run's id and an event's id, so a client resumes at any event of any turn.
    `waiting` tells which runs wait for their turn, `turn_snapshot` replaces a turn whose log has expired, `turn_deleted` one
    that was deleted, and `gap` tells that the cursor is not in the thread. With `Accept: application/json` the response is a
    page of the stream; with `wait` as well it waits for the next event (long polling).
    """
    gateway, principal = gateway_of(request), principal_of(request)
    cursor, is_until_idle, chunks = read_thread_cursor(request), read_until_idle(request), read_chunks(request)
    limit, wait_s = read_limit(request, PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX), read_wait(request)
    identity = read_thread_identity(request)
    stages_started = await _read_stages_started(request, cursor) if chunks == "full" else None
    ask = _Ask(identity, cursor, is_until_idle, stages_started)
    if not wants_stream(request):
        return await _answer_page(request, ask, limit, wait_s)
    tip = await _read_tip(request, identity)
    if tip is not None and is_until_idle and tip.is_idle and cursor == tip.cursor:
        return Response(status_code=204)
    # For clients other than EventSource: when to consider the connection dead, and which events are history.
    headers = {"X-Ping-S": f"{gateway.settings.ping_s:g}"}
    if tip is not None:
        headers["X-Last-Event-Id"] = str(tip.cursor)
    stream = ask.new_stream(request)
    admission = gateway.admit_stream(principal, stream.close)
    return EventStream(gateway.hub, stream, admission, headers, gateway.threads)


async def _read_stages_started(request: Request, cursor: ThreadCursor) -> list[StoredEvent]:
    """Reads the first event of each stage of the cursor's run, which has what the stage's chunks leave out."""
    try:
        return await read_first_events(request, cursor.run_id) if cursor != THREAD_START else []
    except RunNotFound:
        return []


async def _answer_page(request: Request, ask: _Ask, limit: int, wait_s: int) -> Response:
    page = await _read_page(request, ask, limit)
    if wait_s and not page.is_ended and not page.has_events:
        await _wait_for_event(request, ask, wait_s)
        page = await _read_page(request, ask, limit)
    return Response(page.encode(), media_type=JSON)


class _Page(NamedTuple):
    """A page of a stream; see `ThreadEventPage`."""

    frames: list[sse.Frame]
    last_id: str
    has_more: bool
    is_ended: bool

    @property
    def has_events(self) -> bool:
        """Returns whether the page moves the cursor."""
        return any(frame.id for frame in self.frames)

    def encode(self) -> bytes:
        """Returns the response's body."""
        frames = [{"id": one.id or None, "event": one.event, "data": orjson.Fragment(one.data)} for one in self.frames]
        return orjson.dumps(
            {"frames": frames, "last_event_id": self.last_id, "has_more": self.has_more, "is_ended": self.is_ended}
        )


async def _read_page(request: Request, ask: _Ask, limit: int) -> _Page:
    """Reads what a stream would send now, up to the event of that number.

    Raises:
        ThreadNotFound, TooManyStreams, StorageUnavailable: it cannot be read.
    """
    gateway = gateway_of(request)
    if await _read_tip(request, ask.identity) is None:
        raise StorageUnavailable
    gateway.hub.check_room(is_admitted=True)
    stream = ask.new_stream(request, is_until_read=True)
    frames: list[sse.Frame] = []
    count, last_id = 0, str(ask.cursor)
    try:
        async with (
            asyncio.timeout(PAGE_TIMEOUT_S),
            aclosing(gateway.threads.relay(stream, nullcontext(enter_result=True))) as body,
        ):
            async for data in body:
                for frame in sse.decode(data):
                    if count < limit:
                        frames.append(frame)
                        last_id = frame.id or last_id
                    count += bool(frame.id)
                if count > limit:
                    break
    except TimeoutError:
        raise StorageUnavailable from None
    return _Page(frames, last_id, has_more=count > limit, is_ended=stream.is_over and count <= limit)


async def _wait_for_event(request: Request, ask: _Ask, wait_s: int) -> None:
    """Returns once the stream would send an event, at its end, or after that time."""
    gateway = gateway_of(request)
    stream = ask.new_stream(request)
    body = gateway.threads.relay(stream, gateway.admit_stream(principal_of(request), stream.close))
    async with closed_on_disconnect(request, stream), aclosing(body):
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                async for data in body:
                    if any(frame.id for frame in sse.decode(data)):
                        return


async def _read_tip(request: Request, identity: ThreadIdentity) -> ThreadTip | None:
    """Reads the end of the thread; None while Redis is unavailable.

    Raises:
        ThreadNotFound: there is no such thread.
    """
    try:
        with storage_errors():
            tip = await thread_news.read_tip(gateway_of(request).hub.log_connection, keys.thread(identity))
    except StorageUnavailable:
        # Open the stream and wait there: any status but 200 would end the browser's EventSource for good.
        return None
    if tip is None:
        raise ThreadNotFound(identity.thread_id)
    return tip


ENDPOINTS: Final = (
    Endpoint(
        "GET", "/threads/{thread_id}/events", stream_thread, needs(Scope.RUNS_READ, takes_ticket=True),
        {
            200: ResponseSpec(
                "The event stream, or a page of it.", {EVENT_STREAM: STREAM_SCHEMA, JSON: ThreadEventPage}, STREAM_HEADERS
            ),
            204: ResponseSpec("A stream with `until=idle`: the cursor is at the end, no run is active and none waits."),
        },
        [
            THREAD_ID, THREAD_USER, *THREAD_STREAM_PARAMETERS,
            limit_parameter("The maximum number of events of a page.", PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX),
            wait_parameter("Seconds that an empty page waits for the next event."),
        ],
        is_stream=True,
        errors=[BadThreadCursor, ThreadNotFound, InvalidRequest, TooManyStreams, StorageUnavailable],
    ),
)  # fmt: skip
