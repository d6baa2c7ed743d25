"""Tickets: one run, to look at, for a time, in an address.

    GET /runs/01M8…/events?ticket=eyJ…

An EventSource cannot send headers, and whom a link is shown to has no key. So a ticket
stands in the query, where keys never do; it is taken out of there before anything else sees
the request, so that no log has it. It rests on the key that it was made with, and is
worthless once that one is.
"""

import secrets
from typing import Final, NamedTuple
from urllib.parse import unquote_plus

from starlette.types import Scope as AsgiScope

from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.auth.signing import Signer, until
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope

PARAMETER: Final = "ticket"
# Where the ticket is found once it is out of the query: in the request's state.
STATE: Final = "ticket"

ID_BYTES: Final = 8
ID_PATTERN: Final = "[0-9a-f]{16}"
SCOPES: Final = frozenset({Scope.RUNS_READ})


class Ticket(NamedTuple):
    """A ticket, the id by which it can be taken back, and its end, Unix s."""

    text: str
    ticket_id: str
    expires_at: float


class Tickets:
    """Makes tickets and takes them."""

    def __init__(self, settings: Settings) -> None:
        self._signer = Signer("ticket", settings.secrets)

    def make(self, principal: Principal, run_id: str, ttl_s: float) -> Ticket:
        """A ticket in somebody's name, which does not outlive their own."""
        expires_at = until(ttl_s, principal.expires_at)
        ticket_id = secrets.token_hex(ID_BYTES)
        claims = {"run": run_id, "tenant": principal.tenant, "sub": principal.subject, "key": principal.key_id}
        return Ticket(self._signer.sign({**claims, "jti": ticket_id}, expires_at), ticket_id, expires_at)

    def open(self, text: str) -> Principal | None:
        """The holder of a ticket; None where it is none, or its time is over.

        A stream that was opened in time goes on: an EventSource cannot change its address, and
        would give up for good.
        """
        claims = self._signer.read(text)
        if claims is None:
            return None
        subject = f"ticket of {claims['sub']}"
        ticket_id = claims.get("jti", "")  # none in those of older versions
        return Principal(
            claims["tenant"], subject, SCOPES, key_id=claims["key"], run_id=claims["run"], ticket_id=ticket_id
        )


def take_from_query(scope: AsgiScope) -> None:
    """Move a ticket out of the query, which servers and proxies log, into the request's state."""
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
