"""The events of a run or of one stage, as an event stream or as JSON pages."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.held_request import closed_on_disconnect
from stagebus.gateway.api.params import (
    RUN_ID,
    STAGE_ID,
    STREAM_PARAMETERS,
    limit_parameter,
    read_chunks,
    read_cursor,
    read_limit,
    read_stage_id,
    read_wait,
    wait_parameter,
    wants_stream,
)
from stagebus.gateway.api.responses import EVENT_STREAM, JSON
from stagebus.gateway.api.schemas.event_page import EventPage
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming.response import EventStream
from stagebus.gateway.streaming.views import FullChunksView, stored_view
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import WaitingFor
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import BadCursor, InvalidRequest, RunNotFound, StageNotFound, StorageUnavailable
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import Page, StoredEvent
from stagebus.shared.log.log_reader import Head
from stagebus.shared.storage.redis_client import storage_errors

PAGE_LIMIT_DEFAULT: Final = 100
PAGE_LIMIT_MAX: Final = 1000


async def stream_run(request: Request) -> Response:
    """Stream a run's events: those after the cursor, then live ones until the run ends.

    The stream starts with `gap` if the cursor is not in the log, so a client can tell lost events from no events.
    204 tells an `EventSource` to stop reconnecting. With `Accept: application/json` the response is a page of events;
    with `wait` as well it waits for the next event (long polling), for networks that hold streams back.
    `/schema/events.json` describes the `data` of each event.
    """
    return await _answer(request, None)


async def stream_stage(request: Request) -> Response:
    """Stream one stage's events, and the event that ends the run.

    Otherwise like the run's stream.
    """
    return await _answer(request, read_stage_id(request))


async def _answer(request: Request, stage_id: str | None) -> Response:
    run_id = request.path_params["run_id"]
    cursor, chunks = read_cursor(request), read_chunks(request)
    limit = read_limit(request, PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX)
    wait_s = read_wait(request)
    if not wants_stream(request):
        waiting_for = await _wait_for_news(request, run_id, stage_id, cursor, wait_s) if wait_s else None
        return await _answer_page(request, run_id, stage_id, cursor, limit, chunks, waiting_for)
    return await answer_stream(request, run_id, cursor, chunks, stage_id=stage_id)


async def answer_stream(
    request: Request,
    run_id: str,
    cursor: EventId,
    chunks: str,
    *,
    stage_id: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Streams the events after the cursor, or answers 204 if the run has ended and there are none."""
    gateway = gateway_of(request)
    head = await _read_head(request, run_id)
    if head is not None and head.is_ended and cursor == head.last_id:
        return Response(status_code=204, headers=headers)
    view = stored_view(stage_id)
    if chunks == "full":
        view = FullChunksView(view, await read_first_events(request, run_id))
    # For clients other than EventSource: when to consider the connection dead, and which events are history.
    stream_headers = {"X-Ping-S": f"{gateway.settings.ping_s:g}", **(headers or {})}
    if head is not None:
        stream_headers["X-Last-Event-Id"] = str(head.last_id)
    principal = principal_of(request)
    stream = gateway.hub.new_stream(
        run_id, cursor, view, stage_id=stage_id, owner=principal.owner, stages_begun=head.stage_ids if head else ()
    )
    return EventStream(gateway.hub, stream, gateway.admit_stream(principal, stream.close), stream_headers)


async def read_first_events(request: Request, run_id: str) -> list[StoredEvent]:
    """Reads the first event of each stage that has started.

    Raises:
        RunNotFound: the caller has no such run.
        StorageUnavailable: Redis is down.
    """
    redis = gateway_of(request).redis
    with storage_errors():
        head = await log_reader.read_head(redis, run_id, principal_of(request).owner)
        ends = await log_reader.read_stage_ends(redis, run_id, head.stage_ids)
    return [first for first, _ in ends]


async def _read_head(request: Request, run_id: str) -> Head | None:
    """Reads where the log ends; None while Redis is unavailable."""
    try:
        with storage_errors():
            connection = gateway_of(request).hub.log_connection
            return await log_reader.read_head(connection, run_id, principal_of(request).owner)
    except StorageUnavailable:
        # Open the stream and wait there: any status but 200 would end the browser's EventSource for good.
        return None


async def _wait_for_news(
    request: Request, run_id: str, stage_id: str | None, cursor: EventId, wait_s: int
) -> WaitingFor | None:
    """Waits until there is an event after the cursor, the run has ended, or it waits for something; returns for what."""
    gateway, principal = gateway_of(request), principal_of(request)
    stream = gateway.hub.new_stream(run_id, cursor, stored_view(stage_id), stage_id=stage_id, owner=principal.owner)
    async with closed_on_disconnect(request, stream):
        await gateway.hub.wait_for_news(stream, gateway.admit_stream(principal, stream.close), wait_s)
    return stream.waiting_for


async def _answer_page(
    request: Request,
    run_id: str,
    stage_id: str | None,
    cursor: EventId,
    limit: int,
    chunks: str,
    waiting_for: WaitingFor | None,
) -> Response:
    owner = principal_of(request).owner
    with storage_errors():
        page = await log_reader.read_page(
            gateway_of(request).redis, run_id, cursor, limit, stage_id=stage_id, owner=owner
        )
    events: Iterable[StoredEvent] = page.events
    if chunks == "full":
        events = FullChunksView(stored_view(stage_id), await read_first_events(request, run_id)).complete_events(events)
    return Response(_encode_page(page, events, waiting_for), media_type=JSON)


def event_objects(events: Iterable[StoredEvent]) -> list[dict[str, Any]]:
    """Returns the events as they stand in JSON documents, for orjson."""
    return [
        {"id": event.id.decode(), "event": event.event.decode(), "data": orjson.Fragment(event.data)}
        for event in events
    ]


def _encode_page(page: Page, events: Iterable[StoredEvent], waiting_for: WaitingFor | None) -> bytes:
    gap = page.gap and {name: str(event_id) for name, event_id in page.gap._asdict().items()}
    return orjson.dumps(
        {
            "events": event_objects(events),
            # Not the id of the last event: a page of a stage may be empty without being the last one.
            "last_event_id": str(page.position),
            "has_more": not page.is_last,
            "is_ended": page.is_last and page.is_ended,
            **({"gap": gap} if gap else {}),
            **({"waiting_for": waiting_for} if waiting_for else {}),
        }
    )


NOTHING_LEFT: Final = ResponseSpec("The run has ended and the cursor is at its last event. Do not reconnect.")
# OpenAPI 3.1 cannot describe the events of a stream; /schema/events.json does.
STREAM_SCHEMA: Final[dict[str, Any]] = {}
STREAM_HEADERS: Final = {
    "X-Last-Event-Id": "Streams only: the id of the log's last event when the stream opened. Events up to it are history.",
    "X-Ping-S": "Streams only: the stream sends something, if only a comment, at least this often, in seconds.",
}
_RESPONSES: Final = {
    200: ResponseSpec(
        "The events after the cursor: an event stream, or a page of events as JSON.",
        {EVENT_STREAM: STREAM_SCHEMA, JSON: EventPage},
        STREAM_HEADERS,
    ),
    204: NOTHING_LEFT,
}
_PARAMETERS: Final = (
    *STREAM_PARAMETERS,
    limit_parameter("The maximum number of events in a JSON page.", PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX),
    wait_parameter("JSON pages only: seconds to wait for an event if there is none after the cursor (long polling)."),
)

ENDPOINTS: Final = (
    Endpoint(
        "GET", "/runs/{run_id}/events", stream_run, needs(Scope.RUNS_READ, takes_ticket=True),
        _RESPONSES, [RUN_ID, *_PARAMETERS],
        errors=[BadCursor, RunNotFound, InvalidRequest, StorageUnavailable], is_stream=True,
    ),
    Endpoint(
        "GET", "/runs/{run_id}/stages/{stage_id}/events", stream_stage, needs(Scope.RUNS_READ, takes_ticket=True),
        _RESPONSES, [RUN_ID, STAGE_ID, *_PARAMETERS],
        errors=[BadCursor, RunNotFound, StageNotFound, InvalidRequest, StorageUnavailable], is_stream=True,
    ),
)  # fmt: skip
