"""Ways in that are made of others: tickets out of keys, sessions out of keys, and who one is."""

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api import routes
from stagebus.gateway.api.body import read_json
from stagebus.gateway.api.guard import needs, public
from stagebus.gateway.api.params import read_ticket_id
from stagebus.gateway.api.responses import answer
from stagebus.gateway.api.schemas.answers import SessionView, TicketLinks, TicketView
from stagebus.gateway.api.schemas.ticket_request import parse_ticket_request
from stagebus.gateway.auth.anonymous import ANYONE
from stagebus.gateway.auth.csrf import is_cross_site
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.access_errors import CrossSite, Unauthenticated
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.log import log_reader
from stagebus.shared.observability.audit import audit
from stagebus.shared.storage.redis_client import storage_errors


@needs(Scope.RUNS_READ)
async def create_ticket(request: Request) -> Response:
    """POST /runs/{run_id}/ticket: a ticket for whoever is to see this run, and nothing else.

    Errors: bad_json 400, run_not_found 404, body_too_large 413, unsupported_media_type 415,
    invalid_request 422.
    """
    gateway, principal, run_id = gateway_of(request), principal_of(request), request.path_params["run_id"]
    body = await read_json(request, gateway.settings.body_max_bytes, is_optional=True)
    asked = parse_ticket_request(body, gateway.settings)
    with storage_errors():
        await log_reader.read_head(gateway.redis, run_id, principal.tenant)
    ticket = gateway.auth.tickets.issue(principal, run_id, asked.ttl_s)
    audit(
        "ticket.create", subject=principal.subject, tenant=principal.tenant, run=run_id, share=asked.share,
        ttl_s=asked.ttl_s, ticket=ticket.ticket_id,
    )  # fmt: skip
    links = TicketLinks(**routes.ticket_links(run_id, ticket.text))
    return answer(TicketView.of(ticket, links))


@needs(Scope.RUNS_READ)
async def revoke_ticket(request: Request) -> Response:
    """DELETE /runs/{run_id}/ticket/{ticket_id}: take a ticket back; safe to repeat. Streams that it opened end.

    Errors: run_not_found 404, too_many_revoked 409, invalid_request 422.
    """
    gateway, principal, run_id = gateway_of(request), principal_of(request), request.path_params["run_id"]
    ticket_id = read_ticket_id(request)
    await gateway.auth.revocations.revoke(run_id, principal.tenant, ticket_id)
    audit("ticket.revoke", subject=principal.subject, tenant=principal.tenant, run=run_id, ticket=ticket_id)
    gateway.auth.credential_monitor.end_ticket(run_id, ticket_id)
    return Response(status_code=204)


@needs(None)
async def create_session(request: Request) -> Response:
    """POST /session: let this browser's pages in with a cookie instead of the key.

    Errors: unauthenticated 401, cross_site 403.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    if is_cross_site(request):
        raise CrossSite
    if principal is ANYONE:
        return answer(SessionView.of(principal))
    if "authorization" not in request.headers:
        raise Unauthenticated("a session begins with a key: send it as `Authorization: Bearer …`", is_bad_token=False)
    session = gateway.auth.sessions.create(principal)
    audit("session.create", subject=principal.subject, tenant=principal.tenant)
    response = answer(SessionView.of(session.holder))
    gateway.auth.sessions.set_cookie(request, response, session)
    return response


@public
async def end_session(request: Request) -> Response:
    """DELETE /session: have this browser forget its session.

    Errors: cross_site 403.
    """
    if is_cross_site(request):
        raise CrossSite
    response = Response(status_code=204)
    gateway_of(request).auth.sessions.delete_cookie(response)
    return response


@needs(None)
async def get_session(request: Request) -> Response:
    """GET /session: who one is here, and what one may do."""
    return answer(SessionView.of(principal_of(request)))
