"""Tickets: short-lived access to one run, for an `EventSource` or for a link to share."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.body import BODY_ERRORS, read_json
from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import RUN_ID, TICKET_ID, read_ticket_id
from stagebus.gateway.api.responses import json_response
from stagebus.gateway.api.schemas.answers import TicketView
from stagebus.gateway.api.schemas.ticket_request import TicketRequest, parse_ticket_request
from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.api.urls import urls_of
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.access_errors import TooManyRevoked
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import InvalidRequest, RunNotFound, StorageUnavailable
from stagebus.shared.log import log_reader
from stagebus.shared.observability.audit import audit
from stagebus.shared.storage.redis_client import storage_errors


async def create_ticket(request: Request) -> Response:
    """Create a ticket that gives access to this run only: to read it, and with `calls` to give the results of its calls.

    Use it in the query of an `EventSource`, which cannot send headers, or share its `page` link.
    """
    gateway, principal, run_id = gateway_of(request), principal_of(request), request.path_params["run_id"]
    body = await read_json(request, gateway.settings.body_max_bytes, is_optional=True)
    options = parse_ticket_request(body, gateway.settings)
    if options.calls:
        principal.check(Scope.CALLS)
    with storage_errors():
        await log_reader.read_head(gateway.redis, run_id, principal.owner)
    ticket = gateway.auth.tickets.issue(principal, run_id, options.ttl_s, calls=options.calls)
    audit(
        "ticket.create", subject=principal.subject, tenant=principal.tenant, run=run_id, share=options.share,
        ttl_s=options.ttl_s, ticket=ticket.ticket_id,
    )  # fmt: skip
    return json_response(TicketView.of(ticket, run_id, urls_of(request)))


async def revoke_ticket(request: Request) -> Response:
    """Revoke a ticket and close the streams that it opened.

    Safe to repeat.
    """
    gateway, principal, run_id = gateway_of(request), principal_of(request), request.path_params["run_id"]
    ticket_id = read_ticket_id(request)
    if not gateway.auth.tickets.is_own_id(ticket_id, run_id, principal.tenant):
        with storage_errors():
            await log_reader.read_head(gateway.redis, run_id, principal.owner)
        raise invalid_fields([("ticket_id", "no ticket of this run has this id")])
    await gateway.auth.revocations.revoke(run_id, principal.owner, ticket_id, by=principal.subject)
    audit("ticket.revoke", subject=principal.subject, tenant=principal.tenant, run=run_id, ticket=ticket_id)
    gateway.auth.credential_monitor.end_ticket(run_id, ticket_id)
    return Response(status_code=204)


ENDPOINTS: Final = (
    Endpoint(
        "POST", "/runs/{run_id}/ticket", create_ticket, needs(Scope.RUNS_READ),
        {200: ResponseSpec.json("The ticket and its links.", TicketView)},
        [RUN_ID], TicketRequest, is_body_optional=True,
        errors=[*BODY_ERRORS, RunNotFound, StorageUnavailable],
    ),
    Endpoint(
        "DELETE", "/runs/{run_id}/ticket/{ticket_id}", revoke_ticket, needs(Scope.RUNS_READ),
        {204: ResponseSpec("The ticket is revoked.")},
        [RUN_ID, TICKET_ID], errors=[RunNotFound, TooManyRevoked, InvalidRequest, StorageUnavailable],
    ),
)  # fmt: skip
