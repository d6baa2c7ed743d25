"""Tickets for threads: short-lived access to a thread and its runs."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.body import BODY_ERRORS, read_json
from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import TICKET_ID, read_ticket_id
from stagebus.gateway.api.responses import json_response
from stagebus.gateway.api.schemas.thread_answers import ThreadTicket
from stagebus.gateway.api.schemas.ticket_request import TicketRequest, parse_ticket_request
from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.api.thread_params import THREAD_ID, THREAD_USER, read_thread_identity
from stagebus.gateway.api.urls import urls_of
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.access_errors import TooManyRevoked
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.errors import InvalidRequest, RunNotFound, StorageUnavailable
from stagebus.shared.observability.audit import audit
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import thread_list
from stagebus.shared.thread_errors import ThreadNotFound


async def create_thread_ticket(request: Request) -> Response:
    """Create a ticket that gives read access to this thread, its stream and its runs, also to later ones.

    Use it in the query of an `EventSource`, which cannot send headers.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    body = await read_json(request, gateway.settings.body_max_bytes, is_optional=True)
    options = parse_ticket_request(body, gateway.settings)
    if options.calls:
        principal.check(Scope.CALLS)
    identity, life_id = await _find(request)
    ticket = gateway.auth.tickets.issue(
        principal, keys.thread(identity), options.ttl_s, calls=options.calls, life_id=life_id
    )
    audit(
        "ticket.create", subject=principal.subject, tenant=principal.tenant, thread=identity.thread_id,
        share=options.share, ttl_s=options.ttl_s, ticket=ticket.ticket_id,
    )  # fmt: skip
    user = "" if identity.user == principal.user else identity.user
    return json_response(ThreadTicket.of(ticket, urls_of(request).thread_events(identity.thread_id, user)))


async def revoke_thread_ticket(request: Request) -> Response:
    """Revoke a ticket for a thread and close the streams that it opened.

    Safe to repeat.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    ticket_id, (identity, _) = read_ticket_id(request), await _find(request)
    thread_key = keys.thread(identity)
    if not gateway.auth.tickets.is_own_id(ticket_id, thread_key, principal.tenant):
        raise invalid_fields([("ticket_id", "no ticket of this thread has this id")])
    try:
        await gateway.auth.revocations.revoke(thread_key, principal.owner, ticket_id, by=principal.subject)
    except RunNotFound:
        raise ThreadNotFound(identity.thread_id) from None
    audit(
        "ticket.revoke", subject=principal.subject, tenant=principal.tenant, thread=identity.thread_id, ticket=ticket_id
    )
    gateway.auth.credential_monitor.end_ticket(thread_key, ticket_id)
    return Response(status_code=204)


async def _find(request: Request) -> tuple[ThreadIdentity, str]:
    """Returns the identity of the thread in the path, and the id of its life.

    Raises:
        ThreadNotFound: there is no such thread.
    """
    identity = read_thread_identity(request)
    with storage_errors():
        thread = await thread_list.find_thread(gateway_of(request).redis, identity)
    return identity, thread.life_id


ENDPOINTS: Final = (
    Endpoint(
        "POST", "/threads/{thread_id}/ticket", create_thread_ticket, needs(Scope.RUNS_READ),
        {200: ResponseSpec.json("The ticket and its link.", ThreadTicket)},
        [THREAD_ID, THREAD_USER], TicketRequest, is_body_optional=True,
        errors=[*BODY_ERRORS, ThreadNotFound, StorageUnavailable],
    ),
    Endpoint(
        "DELETE", "/threads/{thread_id}/ticket/{ticket_id}", revoke_thread_ticket, needs(Scope.RUNS_READ),
        {204: ResponseSpec("The ticket is revoked.")},
        [THREAD_ID, THREAD_USER, TICKET_ID], errors=[ThreadNotFound, TooManyRevoked, InvalidRequest, StorageUnavailable],
    ),
)  # fmt: skip
