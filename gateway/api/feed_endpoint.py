"""The feed of a tenant's runs, as an event stream or as JSON pages."""

from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.event_endpoints import PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX, STREAM_HEADERS, STREAM_SCHEMA
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.held_request import closed_on_disconnect
from stagebus.gateway.api.params import (
    FEED_CURSOR,
    cursor_parameters,
    limit_parameter,
    read_cursor,
    read_limit,
    read_wait,
    wait_parameter,
    wants_stream,
)
from stagebus.gateway.api.responses import EVENT_STREAM, JSON
from stagebus.gateway.api.schemas.feed_page import FeedPage
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming.feed_stream import FeedStream, FeedView, entries_of
from stagebus.gateway.streaming.response import EventStream
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import BadCursor, InvalidRequest, StorageUnavailable
from stagebus.shared.log import feed_reader
from stagebus.shared.log.log_page import Page
from stagebus.shared.position_errors import BadFeedCursor
from stagebus.shared.storage.partition_keys import partitioning_of
from stagebus.shared.storage.redis_client import storage_errors


async def stream_runs(request: Request) -> Response:
    """Stream what happens to the tenant's runs: created, started, waiting, ended, deleted.

    `run_started` comes whenever a worker begins or continues a run, `run_waiting` when the run waits for a person or
    another system. Without a cursor the stream begins with what happens next, with the cursor `0` at the oldest entry that
    is kept: the last 10,000 or so of a tenant, for a day after the last one. If the cursor is older, the first frame is
    `gap`: list the runs again. With `Accept: application/json` the response is a page, and with `wait` as well it waits
    for the next entry.
    """
    if partitioning_of(gateway_of(request).redis).tags:
        raise InvalidRequest("the feed of a tenant is not available with partitions")
    cursor = _read_cursor(request)
    limit, wait_s = read_limit(request, PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX), read_wait(request)
    view = FeedView(principal_of(request).owner.user)
    if wants_stream(request):
        return await _stream(request, cursor, view)
    page = await _read_page(request, cursor, limit)
    if wait_s and page.gap is None and not view.visible(page.events):
        await _wait_for_news(request, page.position, view, wait_s)
        page = await _read_page(request, page.position, limit)
    return Response(_encode_page(page, view), media_type=JSON)


def _read_cursor(request: Request) -> EventId:
    is_given = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    try:
        return read_cursor(request) if is_given else feed_reader.NOW
    except BadCursor:
        raise BadFeedCursor from None


async def _stream(request: Request, cursor: EventId, view: FeedView) -> Response:
    gateway, principal = gateway_of(request), principal_of(request)
    headers = {"X-Ping-S": f"{gateway.settings.ping_s:g}"}
    first = b""
    try:
        page = await _read_page(request, feed_reader.NOW, 1)
    except StorageUnavailable:
        pass  # the stream opens and waits: after an error status a browser gives up
    else:
        headers["X-Last-Event-Id"] = str(page.position)
        if cursor == feed_reader.NOW:
            # A frame without data moves the client's cursor: after a loss it continues here, also before the first entry.
            cursor, first = page.position, b"id: %b\n\n" % str(page.position).encode()
    stream = FeedStream(principal.tenant, cursor, view, gateway.settings.stream_buffer_max_bytes)
    stream.subscription.begin_with(first)
    return EventStream(gateway.hub, stream, gateway.admit_stream(principal, stream.close), headers)


async def _read_page(request: Request, cursor: EventId, limit: int) -> Page:
    with storage_errors():
        return await feed_reader.read_page(
            gateway_of(request).hub.log_connection, principal_of(request).tenant, cursor, limit
        )


async def _wait_for_news(request: Request, cursor: EventId, view: FeedView, wait_s: int) -> None:
    gateway, principal = gateway_of(request), principal_of(request)
    stream = FeedStream(principal.tenant, cursor, view, gateway.settings.stream_buffer_max_bytes)
    async with closed_on_disconnect(request, stream):
        await gateway.hub.wait_for_news(stream, gateway.admit_stream(principal, stream.close), wait_s)


def _encode_page(page: Page, view: FeedView) -> bytes:
    answer: dict[str, Any] = {
        "events": entries_of(page, view),
        "last_event_id": str(page.position),
        "has_more": not page.is_last,
    }
    if page.gap is not None:
        answer["gap"] = {name: str(event_id) for name, event_id in page.gap._asdict().items()}
    return orjson.dumps(answer)


ENDPOINTS: Final = (
    Endpoint(
        "GET", "/runs/events", stream_runs, needs(Scope.RUNS_READ),
        {
            200: ResponseSpec(
                "The entries after the cursor: an event stream, or a page as JSON.",
                {EVENT_STREAM: STREAM_SCHEMA, JSON: FeedPage},
                STREAM_HEADERS,
            ),
        },
        [
            *cursor_parameters(FEED_CURSOR),
            limit_parameter("The maximum number of entries in a JSON page.", PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX),
            wait_parameter("JSON pages only: seconds to wait for an entry if there is none after the cursor (long polling)."),
        ],
        errors=[BadFeedCursor, InvalidRequest, StorageUnavailable], is_stream=True,
    ),
)  # fmt: skip
