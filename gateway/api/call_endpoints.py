"""Calls that wait for a result from outside: who runs them, and the results."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.body import BODY_ERRORS, read_json
from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import RUN_ID, WAITING_CALL_ID
from stagebus.gateway.api.responses import json_response
from stagebus.gateway.api.schemas.call_result import CallClaim, ClaimCall, GiveResult, ResultAccepted, parse_result
from stagebus.gateway.api.schemas.validation import parse_form
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.call_errors import CallClaimed, CallHasResult, CallNotFound, ResultTooLarge
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import RunEnded, RunNotFound, StorageUnavailable
from stagebus.shared.observability.audit import audit
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import parking, run_store, waiting_calls


async def give_result(request: Request) -> Response:
    """Give the result of a call that waits for it.

    The first result is final. Safe to repeat: the same result gets the same response. A call token may stand in
    `Authorization` or as `?ticket=`.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    run_id, call_id = request.path_params["run_id"], request.path_params["call_id"]
    body = await read_json(request, gateway.settings.body_max_bytes)
    result, ref = parse_result(body, gateway.settings.tool_result_max_bytes)
    with storage_errors():
        run = await run_store.get_run(gateway.redis, run_id, principal.owner)
        if principal.call is None:
            ref = (await waiting_calls.find(gateway.redis, run_id, call_id, ref)).ref
        else:
            if principal.call.call_id != call_id or ref not in (None, principal.call.ref):
                raise CallNotFound(run_id, call_id)
            await waiting_calls.check_token(gateway.redis, run, principal.call)
            ref = principal.call.ref
        await waiting_calls.give_result(gateway.redis, run_id, ref, call_id, result)
    audit("call.result", subject=principal.subject, tenant=principal.tenant, run=run_id, call=call_id)
    return json_response(ResultAccepted(run_id=run_id, call_id=call_id), 202)


async def claim_call(request: Request) -> Response:
    """Claim a call of a client tool for 30 s, so that no other client runs it meanwhile; or renew the claim.

    A claim decides who runs the call, never whose result counts. A call of a tool with `once` has one holder for good, and
    fails when its claim lapses.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    run_id, call_id = request.path_params["run_id"], request.path_params["call_id"]
    form = parse_form(ClaimCall, await read_json(request, gateway.settings.body_max_bytes))
    with storage_errors():
        await run_store.get_run(gateway.redis, run_id, principal.owner)
        call = await waiting_calls.find(gateway.redis, run_id, call_id, form.ref)
        if call.kind != "client":
            raise CallNotFound(run_id, call_id)
        until = await parking.lease_call(
            gateway.redis, run_id, call.ref, call_id, holder=form.holder, is_once=call.once
        )
    return json_response(CallClaim(until=until))


_ERRORS: Final = (*BODY_ERRORS, RunNotFound, CallNotFound, CallHasResult, RunEnded, StorageUnavailable)

ENDPOINTS: Final = (
    Endpoint(
        # The id of a call is the provider's own and may contain a slash.
        "POST", "/runs/{run_id}/calls/{call_id:path}/result", give_result,
        needs(Scope.CALLS, takes_ticket=True, takes_call_token=True),
        {202: ResponseSpec.json("The call has this result, and the run continues with it.", ResultAccepted)},
        [RUN_ID, WAITING_CALL_ID], GiveResult, errors=[*_ERRORS, ResultTooLarge],
    ),
    Endpoint(
        "POST", "/runs/{run_id}/calls/{call_id:path}/claim", claim_call, needs(Scope.CALLS, takes_ticket=True),
        {200: ResponseSpec.json("The client may run the call.", CallClaim)},
        [RUN_ID, WAITING_CALL_ID], ClaimCall, errors=[*_ERRORS, CallClaimed],
    ),
)  # fmt: skip
