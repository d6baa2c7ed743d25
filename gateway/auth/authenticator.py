"""The gateway that knows its clients: by what a request carries, it tells who makes it.

    Authorization: Bearer sbk_…      an API key         everywhere
    Authorization: Bearer eyJ…       an issuer's JWT    everywhere
    ?ticket=eyJ…                     a ticket           on the run that it was made for
    Cookie: __Host-stagebus=eyJ…     a session          for pages of ours

The first that is there counts, alone: a bad key is not made good by a cookie.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from starlette.requests import Request

from stagebus.gateway.auth import tickets
from stagebus.gateway.auth.api_key_cache import ApiKeyCache
from stagebus.gateway.auth.csrf import SAFE_METHODS, is_own_page
from stagebus.gateway.auth.principal import Ahead, Principal
from stagebus.gateway.auth.revocations import Revocations
from stagebus.gateway.auth.sessions import Sessions
from stagebus.gateway.auth.tickets import Tickets
from stagebus.shared.access_errors import CrossSite, Unauthenticated
from stagebus.shared.store.api_keys import PREFIX, ApiKey

if TYPE_CHECKING:
    from stagebus.gateway.auth.jwt_verifier import JwtVerifier

CREDENTIAL_MAX_CHARS: Final = 8192


class CredentialAuthenticator:
    """Takes what the settings say that it takes."""

    def __init__(
        self,
        *,
        key_ring: ApiKeyCache,
        revocations: Revocations,
        sessions: Sessions,
        tickets: Tickets,
        tokens: "JwtVerifier | None",
        takes_keys: bool,
    ) -> None:
        """Without `tokens` no JWTs are taken."""
        self._key_ring = key_ring
        self._revocations = revocations
        self._sessions = sessions
        self._tickets = tickets
        self._tokens = tokens
        self._takes_keys = takes_keys

    async def authenticate(self, request: Request, *, takes_ticket: bool, ahead: Ahead) -> Principal:
        """The one whose credential the request carries.

        Raises:
            Unauthenticated: it carries none, or one that does not hold.
            CrossSite: it rests on a cookie alone, and no page of ours made it.
            StorageUnavailable, IssuerUnavailable: it cannot be told at the moment.
        """
        header = request.headers.get("authorization")
        if header is not None:
            return await self._of_header(header, ahead)
        ticket = getattr(request.state, tickets.STATE, None) if takes_ticket else None
        if ticket is not None:
            return await self._of_ticket(ticket, ahead)
        return await self._of_session(request, ahead)

    async def _of_header(self, header: str, ahead: Ahead) -> Principal:
        scheme, _, token = header.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > CREDENTIAL_MAX_CHARS:
            raise Unauthenticated("the Authorization header has to be `Bearer ` and a key or token")
        if token.startswith(PREFIX) and self._takes_keys:
            record = await self._key_ring.open(token, ahead)
            if record is not None:
                return of_key(record)
        elif not token.startswith(PREFIX) and self._tokens is not None:
            return await self._tokens.open(token)
        raise Unauthenticated("this key is not known here: it never was, was revoked, or has expired")

    async def _of_ticket(self, text: str, ahead: Ahead) -> Principal:
        holder = self._tickets.open(text) if len(text) <= CREDENTIAL_MAX_CHARS else None
        if holder is None or not await self._holds(holder, ahead):
            raise Unauthenticated("this ticket has expired or was taken back: ask for another one")
        return holder

    async def _holds(self, holder: Principal, ahead: Ahead) -> bool:
        """Whether neither the ticket nor the key that it was made with was revoked: asked side by side."""
        has_key = not holder.key_id or self._key_ring.remembers(holder.key_id)
        # Who holds what was taken back costs the tenant nothing.
        if has_key and self._revocations.remembers_good(holder.run_id, holder.ticket_id):
            ahead(holder.tenant)
        is_revoked, key = await asyncio.gather(
            self._revocations.has(holder.run_id, holder.ticket_id),
            self._key_ring.find(holder.key_id) if holder.key_id else _nothing(),
        )
        return not is_revoked and (key is not None or not holder.key_id)

    async def _of_session(self, request: Request, ahead: Ahead) -> Principal:
        holder = self._sessions.open(request)
        if holder is None:
            raise Unauthenticated(
                "send a key as `Authorization: Bearer …`; the command line reads STAGEBUS_API_KEY", is_bad_token=False
            )
        if request.method not in SAFE_METHODS and not is_own_page(request):
            raise CrossSite
        if not holder.key_id:
            return holder
        record = await self._key_ring.find(holder.key_id, ahead)
        if record is None:
            raise Unauthenticated("the key that this session began with was revoked or has expired")
        return of_key(record, holder.expires_at)


async def _nothing() -> None:
    pass


def of_key(record: ApiKey, expires_at: float | None = None) -> Principal:
    """The holder of a key."""
    return Principal(record.tenant, f"key:{record.key_id}", record.scopes, record.key_id, expires_at)
