"""Tickets: signed, time-limited access to one run, to read it or also to give results, carried in the URL.

    GET /runs/01M8…/events?ticket=eyJ…

An EventSource cannot send headers, and a person who opens a shared link has no API key. So a
ticket, unlike a key, may stand in the query. It is removed from there before anything else
sees the request, so that no log contains it. A ticket depends on the key that it was made
with, and stops working when that key is revoked. It acts for the user who made it.
"""

import secrets
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_plus

from starlette.types import Scope as AsgiScope

from stagebus.gateway.auth.principal import Principal
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.runtime.signing import Signer, expiry

PARAMETER: Final = "ticket"
# The name in the request's state under which `take_from_query` puts the ticket.
STATE: Final = "ticket"

# An id is a random number and a tag that binds it to its run: only ids that were issued can be revoked.
ID_BYTES: Final = 8
ID_PATTERN: Final = "[0-9a-f]{32}"
SCOPES: Final = frozenset({Scope.RUNS_READ})


class SignedTicket(NamedTuple):
    """A ticket's text, the id by which it can be revoked, and its end, Unix s."""

    text: str
    ticket_id: str
    expires_at: float


class TicketSigner:
    """Issues tickets and verifies them."""

    def __init__(self, settings: Settings) -> None:
        self._signer = Signer("ticket", settings.secrets)
        self._id_signer = Signer("ticket id", settings.secrets)

    def issue(
        self, principal: Principal, ticket_for: str, ttl_s: float, *, calls: bool = False, life_id: str = ""
    ) -> SignedTicket:
        """Issues a ticket in a principal's name; it does not outlive the principal's own credential.

        Args:
            ticket_for: the id of a run, or the Redis key of a thread.
            calls: the holder may also give the results of the run's calls.
            life_id: of the thread: a new one of the same id, after its deletion, is another one.
        """
        expires_at = expiry(ttl_s, principal.expires_at)
        number = secrets.token_hex(ID_BYTES)
        ticket_id = number + self._id_signer.tag(f"{principal.tenant} {ticket_for} {number}")
        claims: dict[str, Any] = {
            "run": ticket_for,
            "tenant": principal.tenant,
            "sub": principal.subject,
            "key": principal.key_id,
        }
        if principal.user:
            claims |= {"user": principal.user, "own": Scope.RUNS_OWN in principal.scopes}
        claims |= {"calls": True} if calls else {}
        claims |= {"life": life_id} if life_id else {}
        return SignedTicket(self._signer.sign({**claims, "jti": ticket_id}, expires_at), ticket_id, expires_at)

    def is_own_id(self, ticket_id: str, ticket_for: str, tenant: str) -> bool:
        """Returns whether a ticket with this id was issued for the tenant's run or thread."""
        number, tag = ticket_id[: 2 * ID_BYTES], ticket_id[2 * ID_BYTES :]
        return self._id_signer.has_tag(f"{tenant} {ticket_for} {number}", tag)

    def verify(self, text: str) -> Principal | None:
        """Returns the principal of a ticket's holder, or None if the ticket is invalid or expired.

        The principal has no `expires_at`, so a stream that was opened in time stays open: an EventSource
        cannot change its URL, and would give up for good.
        """
        claims = self._signer.verify(text)
        if claims is None:
            return None
        subject = f"ticket of {claims['sub']}"
        ticket_id = claims.get("jti", "")  # tickets of older versions have none
        granted = {Scope.CALLS: claims.get("calls"), Scope.RUNS_OWN: claims.get("own")}
        scopes = SCOPES | {scope for scope, is_granted in granted.items() if is_granted}
        return Principal(
            claims["tenant"], subject, scopes, key_id=claims["key"], ticket_for=claims["run"], ticket_id=ticket_id,
            user=claims.get("user", ""), ticket_life_id=claims.get("life", ""),
        )  # fmt: skip


def take_from_query(scope: AsgiScope) -> None:
    """Moves a ticket from the query, which servers and proxies log, into the request's state."""
    query: bytes = scope.get("query_string", b"")
    if not query:
        return
    rest = []
    for part in query.split(b"&"):
        name, _, value = part.decode("latin-1").partition("=")
        if unquote_plus(name) == PARAMETER:
            scope.setdefault("state", {})[STATE] = unquote_plus(value)
        else:
            rest.append(part)
    scope["query_string"] = b"&".join(rest)
