"""The event stream of a thread."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.event_endpoints import STREAM_HEADERS, STREAM_SCHEMA
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.responses import EVENT_STREAM
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
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.errors import InvalidRequest, StorageUnavailable
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import thread_news
from stagebus.shared.store.thread_news import ThreadTip
from stagebus.shared.thread_errors import BadThreadCursor, ThreadNotFound


async def stream_thread(request: Request) -> Response:
    """Stream a thread's turns: those after the cursor, then live ones for as long as the thread exists.

    Each turn begins with the frame `turn`, and the events of its run follow. Turns of all branches come in the order in
    which they became active. The cursor is a run's id and an event's id, so a client resumes at any event of any turn.
    `waiting` tells which runs wait for their turn, `turn_snapshot` replaces a turn whose log has expired, `turn_deleted` one
    that was deleted, and `gap` tells that the cursor is not in the thread.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    cursor, is_until_idle = read_thread_cursor(request), read_until_idle(request)
    identity = read_thread_identity(request)
    tip = await _read_tip(request, identity)
    if tip is not None and is_until_idle and tip.is_idle and cursor == tip.cursor:
        return Response(status_code=204)
    # For clients other than EventSource: when to consider the connection dead, and which events are history.
    headers = {"X-Ping-S": f"{gateway.settings.ping_s:g}"}
    if tip is not None:
        headers["X-Last-Event-Id"] = str(tip.cursor)
    stream = gateway.threads.new_stream(keys.thread(identity), principal.owner, cursor, is_until_idle=is_until_idle)
    admission = gateway.admit_stream(principal, stream.close)
    return EventStream(gateway.hub, stream, admission, headers, gateway.threads)


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
            200: ResponseSpec("The event stream.", {EVENT_STREAM: STREAM_SCHEMA}, STREAM_HEADERS),
            204: ResponseSpec("With `until=idle`: the cursor is at the end, no run is active and none waits."),
        },
        [THREAD_ID, THREAD_USER, *THREAD_STREAM_PARAMETERS], is_stream=True,
        errors=[BadThreadCursor, ThreadNotFound, InvalidRequest, StorageUnavailable],
    ),
)  # fmt: skip
