"""Decisions on calls that wait for a person: stored here, carried out by a worker."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.body import BODY_ERRORS, read_json
from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import CALL_ID, RUN_ID
from stagebus.gateway.api.responses import json_response
from stagebus.gateway.api.schemas.answers import RunAccepted
from stagebus.gateway.api.schemas.approval_decision import Decide, parse_decide
from stagebus.gateway.api.urls import urls_of
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import ApprovalConflict, ApprovalNotFound, RunEnded, RunNotFound, StorageUnavailable
from stagebus.shared.observability.audit import audit
from stagebus.shared.store import approvals, run_store


async def decide_call(request: Request) -> Response:
    """Approve or deny a pending call, or answer the model's question.

    Safe to repeat: the same decision gets the same response.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    run_id, call_id = request.path_params["run_id"], request.path_params["call_id"]
    run = await run_store.get_run(gateway.redis, run_id, principal.owner)
    decision = parse_decide(await read_json(request, gateway.settings.body_max_bytes))
    await approvals.decide(gateway.redis, run, call_id, decision)
    audit(f"call.{decision.decision}", subject=principal.subject, tenant=principal.tenant, run=run_id, call=call_id)
    run = await run_store.get_run(gateway.redis, run_id, principal.owner)
    return json_response(RunAccepted.of(run, urls_of(request)), 200 if run.is_terminal else 202)


ENDPOINTS: Final = (
    Endpoint(
        # The id of a call is the provider's own and may contain a slash.
        "POST", "/runs/{run_id}/approvals/{call_id:path}", decide_call, needs(Scope.APPROVALS),
        {
            202: ResponseSpec.json("The decision is stored, and the run continues with it.", RunAccepted),
            200: ResponseSpec.json("The same decision was stored before, and the run has ended since.", RunAccepted),
        },
        [RUN_ID, CALL_ID], Decide,
        errors=[*BODY_ERRORS, RunNotFound, ApprovalNotFound, ApprovalConflict, RunEnded, StorageUnavailable],
    ),
)  # fmt: skip
