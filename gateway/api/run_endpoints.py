"""Runs as a whole: created, listed, looked at, cancelled."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api import routes
from stagebus.gateway.api.body import read_json
from stagebus.gateway.api.event_endpoints import answer_stream
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import (
    accepts,
    read_before,
    read_chunks,
    read_cursor,
    read_idempotency_key,
    read_limit,
    read_run_filter,
)
from stagebus.gateway.api.responses import answer
from stagebus.gateway.api.schemas.answers import RunAccepted, RunList, RunSummary, RunView
from stagebus.gateway.api.schemas.create_run import named_tools, parse_create_run, unknown_tools
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import Gateway, gateway_of
from stagebus.gateway.streaming.response import EventStream
from stagebus.shared.domain.requests import RunRequest
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.observability.audit import audit
from stagebus.shared.store import approvals, run_list, run_store, tool_catalog

LIST_LIMIT_DEFAULT: Final = 20
LIST_LIMIT_MAX: Final = 100


@needs(Scope.RUNS_WRITE)
async def create_run(request: Request) -> Response:
    """POST /runs: make a run and put it into the queue.

    202 with the run's id, status and links; 200 and the run's stream itself for those who
    accept text/event-stream. The same Idempotency-Key and body give the same run again, and
    its stream goes on after a cursor.
    Errors: bad_json, bad_cursor and bad_idempotency_key 400, body_too_large 413, unsupported_media_type
    415, invalid_request and idempotency_conflict 422, too_many_runs and tokens_used_up 429,
    storage_full and storage_unavailable 503.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    is_stream = accepts(request, EventStream.media_type)
    if is_stream:
        principal.check(Scope.RUNS_READ)
    idempotency_key, cursor, chunks = read_idempotency_key(request), read_cursor(request), read_chunks(request)
    body = await read_json(request, gateway.settings.body_max_bytes)
    asked = parse_create_run(body, gateway.settings, gateway.providers)
    await _check_tools(gateway, asked)
    run_id = await run_store.create_run(
        gateway.redis,
        gateway.settings,
        tenant=principal.tenant,
        model=asked.model_text,
        request=asked.model_dump(mode="json"),
        idempotency_key=idempotency_key,
        trace=request.state.trace,
    )
    audit("run.create", subject=principal.subject, tenant=principal.tenant, run=run_id)
    location = {"Location": routes.run_url(run_id)}
    if is_stream:
        return await answer_stream(request, run_id, cursor, chunks, headers={**location, "X-Run-Id": run_id})
    run = await run_store.get_run(gateway.redis, run_id)
    return answer(RunAccepted.of(run), 202, location)


async def _check_tools(gateway: Gateway, asked: RunRequest) -> None:
    """Refuse tools that no worker has published."""
    unknown = await tool_catalog.find_unknown(gateway.redis, named_tools(asked))
    if unknown:
        raise unknown_tools(asked, unknown)


@needs(Scope.RUNS_READ)
async def list_runs(request: Request) -> Response:
    """GET /runs: newest first, all or those that the filters want; `before` goes on after the page that named it.

    Errors: invalid_request 422.
    """
    gateway = gateway_of(request)
    limit = read_limit(request, LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX)
    before_id, wanted = read_before(request), read_run_filter(request)
    page = await run_list.list_runs(gateway.redis, principal_of(request).tenant, limit, before_id, wanted)
    return answer(RunList(runs=[RunSummary.of(run) for run in page.runs], next=page.next_id))


@needs(Scope.RUNS_READ, takes_ticket=True)
async def get_run(request: Request) -> Response:
    """GET /runs/{run_id}: the record, the stages and what they came to, and what it asks persons.

    Errors: run_not_found 404.
    """
    gateway = gateway_of(request)
    run = await run_store.get_run(gateway.redis, request.path_params["run_id"], principal_of(request).tenant)
    stages = await run_store.read_stages(gateway.redis, run.run_id)
    return answer(RunView.of_stages(run, stages, await approvals.read_pending(gateway.redis, run)))


@needs(Scope.RUNS_CANCEL)
async def cancel_run(request: Request) -> Response:
    """POST /runs/{run_id}/cancel: stop a run in whatever state it is; safe to repeat.

    202 while its worker ends it, 200 once it has ended, in whatever way.
    Errors: run_not_found 404.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    run_id = request.path_params["run_id"]
    await run_store.cancel_run(gateway.redis, gateway.settings, run_id, principal.tenant)
    audit("run.cancel", subject=principal.subject, tenant=principal.tenant, run=run_id)
    run = await run_store.get_run(gateway.redis, run_id, principal.tenant)
    return answer(RunAccepted.of(run), 200 if run.is_terminal else 202)
