"""A run's events: the merged stream or one stage's, as server-sent events or as a JSON page."""

from collections.abc import Iterable, Mapping
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import read_chunks, read_cursor, read_limit, wants_stream
from stagebus.gateway.api.responses import JSON
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming.full_view import FullChunksView
from stagebus.gateway.streaming.response import EventStream, view_of
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.runs import STAGE_IDS
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import StageNotFound, StorageUnavailable
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import Page, StoredEvent
from stagebus.shared.log.log_reader import Head
from stagebus.shared.storage.redis_client import storage_errors

PAGE_LIMIT_DEFAULT: Final = 100
PAGE_LIMIT_MAX: Final = 1000


@needs(Scope.RUNS_READ, takes_ticket=True)
async def stream_run(request: Request) -> Response:
    """GET /runs/{run_id}/events: the log after the cursor, then live.

    200 text/event-stream, opening with `gap` if the cursor does not stand in the log: a
    client never mistakes loss for silence. 204 when the run is over and the cursor at its
    end, which tells an EventSource to stop reconnecting. A JSON page for those who accept
    application/json.
    Errors: bad_cursor 400, run_not_found 404, invalid_request 422.
    """
    return await _answer(request, None)


@needs(Scope.RUNS_READ, takes_ticket=True)
async def stream_stage(request: Request) -> Response:
    """GET /runs/{run_id}/stages/{stage_id}/events: one stage's events and the run's terminal one.

    Errors: as `stream_run`, and stage_not_found 404.
    """
    stage_id = request.path_params["stage_id"]
    if stage_id not in STAGE_IDS:
        raise StageNotFound(stage_id)
    return await _answer(request, stage_id)


async def _answer(request: Request, stage_id: str | None) -> Response:
    run_id = request.path_params["run_id"]
    cursor, chunks = read_cursor(request), read_chunks(request)
    limit = read_limit(request, PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX)
    if not wants_stream(request):
        return await _answer_page(request, run_id, stage_id, cursor, limit, chunks)
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
    """The stream after the cursor, or 204 where nothing is left of it."""
    gateway = gateway_of(request)
    head = await _read_head(request, run_id)
    if head is not None and head.is_ended and cursor == head.last_id:
        return Response(status_code=204, headers=headers)  # there is nothing left to stream, ever
    view = view_of(stage_id)
    if chunks == "full":
        view = FullChunksView(view, await _read_begun(request, run_id))
    # What a client that is no EventSource can go by: when to think the connection dead, and what of it is history.
    news = {"X-Ping-S": f"{gateway.settings.ping_s:g}"} | ({"X-Last-Event-Id": str(head.last_id)} if head else {})
    return EventStream(
        gateway, principal_of(request), run_id, cursor, stage_id=stage_id, view=view, headers={**news, **(headers or {})},
        stages_begun=head.stage_ids if head else (),
    )  # fmt: skip


async def _read_begun(request: Request, run_id: str) -> list[StoredEvent]:
    """The first event of each stage so far."""
    redis = gateway_of(request).redis
    with storage_errors():
        head = await log_reader.read_head(redis, run_id, principal_of(request).tenant)
        ends = await log_reader.read_stage_ends(redis, run_id, head.stage_ids)
    return [first for first, _ in ends]


async def _read_head(request: Request, run_id: str) -> Head | None:
    """Where the log ends; None while Redis is away."""
    try:
        with storage_errors():
            return await log_reader.read_head(gateway_of(request).hub.line, run_id, principal_of(request).tenant)
    except StorageUnavailable:
        # A passing trouble answers 200 and waits: any other status would end the
        # browser's EventSource for good.
        return None


async def _answer_page(
    request: Request, run_id: str, stage_id: str | None, cursor: EventId, limit: int, chunks: str
) -> Response:
    tenant = principal_of(request).tenant
    with storage_errors():
        page = await log_reader.read_page(
            gateway_of(request).redis, run_id, cursor, limit, stage_id=stage_id, tenant=tenant
        )
    events: Iterable[StoredEvent] = page.events
    if chunks == "full":
        events = FullChunksView(view_of(stage_id), await _read_begun(request, run_id)).of_events(events)
    return Response(_encode_page(page, events), media_type=JSON)


def _encode_page(page: Page, events: Iterable[StoredEvent]) -> bytes:
    gap = page.lost and {name: str(event_id) for name, event_id in page.lost._asdict().items()}
    return orjson.dumps(
        {
            "events": [
                {"id": event.id.decode(), "event": event.event.decode(), "data": orjson.Fragment(event.data)}
                for event in events
            ],
            # Not the last event's: a stage's page may be empty and yet not the last.
            "last_event_id": str(page.position),
            "has_more": not page.is_last,
            "is_ended": page.is_last and page.is_ended,
            **({"gap": gap} if gap else {}),
        }
    )
