"""Runs: create, list, get, cancel, delete."""

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api import run_creation
from stagebus.gateway.api.body import BODY_ERRORS, read_json
from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.event_endpoints import NOTHING_LEFT, STREAM_HEADERS, STREAM_SCHEMA, answer_stream
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import (
    BEFORE,
    FILTER_PARAMETERS,
    IDEMPOTENCY_KEY,
    PREFER,
    RUN_ID,
    STREAM_PARAMETERS,
    accepts,
    limit_parameter,
    read_before,
    read_chunks,
    read_cursor,
    read_limit,
    read_preferred_wait,
    read_run_filter,
    read_wait,
    wait_parameter,
)
from stagebus.gateway.api.responses import EVENT_STREAM, JSON, json_response
from stagebus.gateway.api.run_waiting import read_run, view_of, wait_for_pause
from stagebus.gateway.api.schemas.answers import RunAccepted, RunList, RunSummary, RunView
from stagebus.gateway.api.schemas.cancel_request import CancelRequest
from stagebus.gateway.api.schemas.create_run import CreateRun
from stagebus.gateway.api.schemas.validation import parse_form
from stagebus.gateway.api.urls import urls_of
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.access_errors import TooManyStreams
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import BadCursor, Draining, InvalidRequest, RunDeleted, RunNotFound, StorageUnavailable
from stagebus.shared.observability.audit import audit
from stagebus.shared.store import run_deletion, run_list, run_store, thread_news
from stagebus.shared.thread_errors import RunMerged

LIST_LIMIT_DEFAULT: Final = 20
LIST_LIMIT_MAX: Final = 100


async def create_run(request: Request) -> Response:
    """Create a run and queue it.

    The same `Idempotency-Key` with the same body returns the same run instead of creating another one.
    With `Accept: text/event-stream` the response is the run's event stream. After a disconnect, repeat the request
    with the same key and a cursor to resume it. With `Prefer: wait=30` the response comes when the run has ended or waits
    for a person, and is the run as `GET /runs/{run_id}` returns it.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    is_stream = accepts(request, EVENT_STREAM)
    if is_stream:
        principal.check(Scope.RUNS_READ)
    cursor, chunks = read_cursor(request), read_chunks(request)
    wait_s = read_preferred_wait(request) if Scope.RUNS_READ in principal.scopes else 0
    body = await read_json(request, gateway.settings.body_max_bytes)
    run_id = await run_creation.create_run(request, body)
    location = {"Location": urls_of(request).run(run_id)}
    try:
        if is_stream:
            return await answer_stream(request, run_id, cursor, chunks, headers={**location, "X-Run-Id": run_id})
        if wait_s:
            return await _answer_waiting(request, run_id, wait_s, location)
        return await _answer_accepted(request, run_id, location)
    except RunNotFound:
        # Somebody deleted it meanwhile, or its thread. The same request gets the same answer from now on.
        raise RunDeleted(run_id) from None


async def _answer_accepted(request: Request, run_id: str, location: Mapping[str, str]) -> Response:
    redis = gateway_of(request).redis
    run = await run_store.get_run(redis, run_id)
    place = await thread_news.read_place(redis, run.thread_key, run_id)
    return json_response(RunAccepted.of(run, urls_of(request), place), 202, location)


async def _answer_waiting(request: Request, run_id: str, wait_s: int, location: Mapping[str, str]) -> Response:
    """Answers with the created run once it has ended or waits for a person.

    The run exists, so the answer is no error: where waiting is not possible, or no longer, the client gets the run as it
    was before the wait, without `Preference-Applied`, and asks for it elsewhere.
    """
    run = await read_run(request, run_id)
    view = await view_of(request, run)
    try:
        run = await wait_for_pause(request, run, wait_s)
        view = await view_of(request, run)
    except (TooManyStreams, Draining, StorageUnavailable):
        return json_response(view, 202, location)
    headers = {**location, "Preference-Applied": f"wait={wait_s}"}
    return json_response(view, 200 if run.is_at_pause else 202, headers)


async def list_runs(request: Request) -> Response:
    """List runs, newest first.

    A run is listed if it matches every given filter. Pass the `next` of a page as `before` to get the page after it.
    """
    gateway = gateway_of(request)
    limit = read_limit(request, LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX)
    before_id, run_filter = read_before(request), read_run_filter(request)
    page = await run_list.list_runs(gateway.redis, principal_of(request).owner, limit, before_id, run_filter)
    urls = urls_of(request)
    return json_response(RunList(runs=[RunSummary.of(run, urls) for run in page.runs], next=page.next_id))


async def get_run(request: Request) -> Response:
    """Get a run with its stages, its pending approvals and its result.

    With `wait` the response comes when the run has ended or waits for a person (`pending_approvals`), or after that time.
    """
    wait_s = read_wait(request)
    run = await read_run(request, request.path_params["run_id"])
    if wait_s:
        run = await wait_for_pause(request, run, wait_s)
    return json_response(await view_of(request, run))


async def cancel_run(request: Request) -> Response:
    """Cancel a run in any state.

    Safe to repeat.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    run_id = request.path_params["run_id"]
    body = await read_json(request, gateway.settings.body_max_bytes, is_optional=True)
    reason = parse_form(CancelRequest, body).reason or ""
    await run_store.cancel_run(gateway.redis, gateway.settings, run_id, principal.owner, reason)
    audit("run.cancel", subject=principal.subject, tenant=principal.tenant, run=run_id)
    run = await run_store.get_run(gateway.redis, run_id, principal.owner)
    return json_response(RunAccepted.of(run, urls_of(request)), 200 if run.is_terminal else 202)


async def delete_run(request: Request) -> Response:
    """Delete a run in any state, and everything that is stored of it.

    A run that has not ended is cancelled first. From then on the run does not exist (404). Safe to repeat for an hour. As
    long, a `POST /runs` under the run's `Idempotency-Key` is answered with 410 and creates no other run. A run of a thread
    leaves its place there, without messages. If its messages joined another run, they are deleted with that one.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    run_id = request.path_params["run_id"]
    await run_deletion.delete_run(gateway.redis, gateway.settings, run_id, principal.owner)
    audit("run.delete", subject=principal.subject, tenant=principal.tenant, run=run_id)
    return Response(status_code=204)


_LOCATION: Final = {"Location": "The run's URL."}
_APPLIED: Final = {"Preference-Applied": "`wait=<seconds>` if the response waited."}

ENDPOINTS: Final = (
    Endpoint(
        "POST", "/runs", create_run, needs(Scope.RUNS_WRITE),
        {
            202: ResponseSpec.json(
                "The run is stored and queued. With `Prefer: wait` it has not ended in that time, and the body is as with 200.",
                RunAccepted, {**_LOCATION, **_APPLIED},
            ),
            200: ResponseSpec(
                "With `Accept: text/event-stream`: the run's event stream, after the cursor if the `Idempotency-Key` is "
                "that of an earlier request. With `Prefer: wait`: the run, which has ended or waits for a person.",
                {EVENT_STREAM: STREAM_SCHEMA, JSON: RunView},
                {**_LOCATION, **_APPLIED, "X-Run-Id": "The run's id.", **STREAM_HEADERS},
            ),
            204: NOTHING_LEFT,
        },
        [IDEMPOTENCY_KEY, PREFER, *STREAM_PARAMETERS], CreateRun,
        errors=[*BODY_ERRORS, BadCursor, *run_creation.CREATION_ERRORS],
    ),
    Endpoint(
        "GET", "/runs", list_runs, needs(Scope.RUNS_READ),
        {200: ResponseSpec.json("A page of runs.", RunList)},
        [limit_parameter("The maximum number of runs.", LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX), BEFORE, *FILTER_PARAMETERS],
        errors=[InvalidRequest, StorageUnavailable],
    ),
    Endpoint(
        "GET", "/runs/{run_id}", get_run, needs(Scope.RUNS_READ, takes_ticket=True),
        {200: ResponseSpec.json("The run.", RunView)},
        [RUN_ID, wait_parameter("Seconds to wait for the run's end, or for a request to a person.")],
        errors=[RunNotFound, InvalidRequest, TooManyStreams, Draining, StorageUnavailable],
    ),
    Endpoint(
        "POST", "/runs/{run_id}/cancel", cancel_run, needs(Scope.RUNS_CANCEL),
        {
            202: ResponseSpec.json("A worker is stopping the run.", RunAccepted),
            200: ResponseSpec.json("The run has ended, cancelled or otherwise.", RunAccepted),
        },
        [RUN_ID], CancelRequest, is_body_optional=True, errors=[*BODY_ERRORS, RunNotFound, StorageUnavailable],
    ),
    Endpoint(
        "DELETE", "/runs/{run_id}", delete_run, needs(Scope.RUNS_CANCEL),
        {204: ResponseSpec("The run is deleted, or was in the last hour.")},
        [RUN_ID], errors=[RunNotFound, RunMerged, StorageUnavailable],
    ),
)  # fmt: skip
