"""Authentication by the credential that a request carries.

    Authorization: Bearer sbk_…      an API key         for every endpoint
    Authorization: Bearer eyJ…       an issuer's JWT    for every endpoint
    ?ticket=eyJ…                     a ticket           for the events of its run
    Cookie: __Host-stagebus=eyJ…     a session          for pages of this origin

Only the first one present counts: a valid cookie does not make up for a bad key.
"""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from starlette.requests import Request

from stagebus.gateway.auth import tickets
from stagebus.gateway.auth.api_key_cache import ApiKeyCache
from stagebus.gateway.auth.csrf import SAFE_METHODS, is_same_origin
from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.auth.revocations import Revocations
from stagebus.gateway.auth.sessions import SessionCookies
from stagebus.gateway.auth.tickets import TicketSigner
from stagebus.shared.access_errors import CrossSite, Unauthenticated
from stagebus.shared.domain.tenants import expand_scopes
from stagebus.shared.store.api_keys import PREFIX, ApiKey

if TYPE_CHECKING:
    from stagebus.gateway.auth.jwt_verifier import JwtVerifier

CREDENTIAL_MAX_CHARS: Final = 8192


class CredentialAuthenticator:
    """Accepts the kinds of credentials that the settings allow."""

    def __init__(
        self,
        *,
        api_keys: ApiKeyCache,
        revocations: Revocations,
        sessions: SessionCookies,
        tickets: TicketSigner,
        jwt_verifier: "JwtVerifier | None",
        takes_keys: bool,
    ) -> None:
        """Without a `jwt_verifier`, JWTs are refused."""
        self._api_keys = api_keys
        self._revocations = revocations
        self._sessions = sessions
        self._tickets = tickets
        self._jwt_verifier = jwt_verifier
        self._takes_keys = takes_keys

    async def authenticate(self, request: Request, *, takes_ticket: bool) -> Principal:
        """Returns the principal of the request's credential.

        Raises:
            Unauthenticated: there is no credential, or it is not valid.
            CrossSite: a session cookie came with a request that another site's page may have made.
            StorageUnavailable, IssuerUnavailable: the credential cannot be checked at the moment.
        """
        header = request.headers.get("authorization")
        if header is not None:
            return await self._verify_header(header)
        ticket = getattr(request.state, tickets.STATE, None) if takes_ticket else None
        if ticket is not None:
            return await self._verify_ticket(ticket)
        return await self._verify_session(request)

    async def _verify_header(self, header: str) -> Principal:
        scheme, _, token = header.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > CREDENTIAL_MAX_CHARS:
            raise Unauthenticated("the Authorization header must be `Bearer ` and a key or token")
        if token.startswith(PREFIX) and self._takes_keys:
            record = await self._api_keys.verify(token)
            if record is not None:
                return _principal_of_key(record)
        elif not token.startswith(PREFIX) and self._jwt_verifier is not None:
            return await self._jwt_verifier.verify(token)
        raise Unauthenticated("this key is unknown, revoked or expired")

    async def _verify_ticket(self, text: str) -> Principal:
        holder = self._tickets.verify(text) if len(text) <= CREDENTIAL_MAX_CHARS else None
        if holder is None or not await self._is_valid(holder):
            raise Unauthenticated("this ticket is expired or revoked: ask for another one")
        return holder

    async def _is_valid(self, holder: Principal) -> bool:
        """Returns whether neither the ticket nor its key is revoked. The two look-ups run concurrently."""
        is_revoked, key = await asyncio.gather(
            self._revocations.is_revoked(holder.ticket_for, holder.ticket_id, holder.ticket_life_id),
            self._find_key(holder),
        )
        return not is_revoked and (key is not None or not holder.key_id)

    async def _find_key(self, holder: Principal) -> ApiKey | None:
        return await self._api_keys.find(holder.key_id) if holder.key_id else None

    async def _verify_session(self, request: Request) -> Principal:
        holder = self._sessions.verify(request)
        if holder is None:
            raise Unauthenticated(
                "send a key as `Authorization: Bearer …`; the command line reads STAGEBUS_API_KEY", is_bad_token=False
            )
        if request.method not in SAFE_METHODS and not is_same_origin(request):
            raise CrossSite
        is_revoked, record = await asyncio.gather(
            self._revocations.is_session_revoked(holder.session_id), self._find_key(holder)
        )
        if is_revoked:
            raise Unauthenticated("the session was ended")
        if not holder.key_id:
            return holder
        if record is None:
            raise Unauthenticated("the session's key is revoked or expired")
        principal = _principal_of_key(record)
        if holder.user:
            principal = principal.acting_for(holder.user)
        return replace(principal, expires_at=holder.expires_at, session_id=holder.session_id)


def _principal_of_key(record: ApiKey) -> Principal:
    return Principal(record.tenant, f"key:{record.key_id}", expand_scopes(record.scopes), record.key_id)
