"""Browser sessions, and the caller's own identity."""

import time
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs, public
from stagebus.gateway.api.responses import json_response
from stagebus.gateway.api.schemas.answers import SessionView
from stagebus.gateway.auth.csrf import is_cross_site
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.access_errors import CrossSite, Unauthenticated
from stagebus.shared.errors import StorageUnavailable
from stagebus.shared.observability.audit import audit


async def create_session(request: Request) -> Response:
    """Start a browser session: exchange an API key for a cookie.

    For pages of this origin, so that they need not store the key. Scripts cannot read the cookie.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    if is_cross_site(request):
        raise CrossSite
    if gateway.settings.auth == "open":
        return json_response(SessionView.of(principal))
    if "authorization" not in request.headers:
        raise Unauthenticated("a session starts with a key: send it as `Authorization: Bearer …`", is_bad_token=False)
    session = gateway.auth.sessions.create(principal)
    audit("session.create", subject=principal.subject, tenant=principal.tenant)
    response = json_response(SessionView.of(session.holder))
    gateway.auth.sessions.set_cookie(request, response, session)
    return response


async def get_session(request: Request) -> Response:
    """Get the caller's tenant, subject and scopes."""
    return json_response(SessionView.of(principal_of(request)))


async def end_session(request: Request) -> Response:
    """End the browser session: revoke it and delete its cookie."""
    if is_cross_site(request):
        raise CrossSite
    auth = gateway_of(request).auth
    holder = auth.sessions.verify(request)
    if holder is not None and holder.expires_at is not None:
        await auth.revocations.revoke_session(holder.session_id, holder.expires_at - time.time())
        auth.credential_monitor.end_session(holder.session_id)
        audit("session.end", subject=holder.subject or f"key:{holder.key_id}", tenant=holder.tenant)
    response = Response(status_code=204)
    auth.sessions.delete_cookie(request, response)
    return response


ENDPOINTS: Final = (
    Endpoint(
        "POST", "/session", create_session, needs(None),
        {200: ResponseSpec.json("The session's principal.", SessionView, {"Set-Cookie": "The session."})},
        errors=[CrossSite, StorageUnavailable],
    ),
    Endpoint(
        "GET", "/session", get_session, needs(None),
        {200: ResponseSpec.json("The current principal.", SessionView)},
        errors=[StorageUnavailable],
    ),
    Endpoint(
        # Public: a browser can drop the cookie of a session that has expired.
        "DELETE", "/session", end_session, public,
        {204: ResponseSpec("The session has ended.", headers={"Set-Cookie": "Deletes the session cookie."})},
        errors=[CrossSite, StorageUnavailable],
    ),
)  # fmt: skip
