"""What a run asks persons: decided here, carried out by a worker."""

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.body import read_json
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.responses import answer
from stagebus.gateway.api.schemas.answers import RunAccepted
from stagebus.gateway.api.schemas.approval_decision import parse_decide
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.observability.audit import audit
from stagebus.shared.store import approvals, run_store


@needs(Scope.APPROVALS)
async def decide_call(request: Request) -> Response:
    """POST /runs/{run_id}/approvals/{call_id}: approve or deny a call, or answer the model's question.

    202 once the decision stands; the run goes on with it. The same once more is the same
    answer; 200 where the run has ended since.
    Errors: bad_json 400, run_not_found and approval_not_found 404, approval_conflict and run_ended 409,
    body_too_large 413, unsupported_media_type 415, invalid_request 422, storage_unavailable 503.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    run_id, call_id = request.path_params["run_id"], request.path_params["call_id"]
    run = await run_store.get_run(gateway.redis, run_id, principal.tenant)
    decision = parse_decide(await read_json(request, gateway.settings.body_max_bytes))
    await approvals.decide(gateway.redis, run, call_id, decision)
    audit(f"call.{decision.decision}", subject=principal.subject, tenant=principal.tenant, run=run_id, call=call_id)
    run = await run_store.get_run(gateway.redis, run_id, principal.tenant)
    return answer(RunAccepted.of(run), 200 if run.is_terminal else 202)
