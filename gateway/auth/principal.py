"""The authenticated caller of a request, and the interface of authenticators."""

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from stagebus.shared.access_errors import Forbidden
from stagebus.shared.domain.tenants import Scope


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller: the tenant whose runs it sees, and the scopes it has there.

    `subject` names it in logs: `key:3f9c0a5d77e1`, `jwt:alice`, `anyone`. A ticket's holder
    has a `run_id`, the only run that it may see, and a `ticket_id`, by which the ticket may be
    revoked; a session's holder has a `session_id`. `key_id` is set if the credential depends on an API key, and `expires_at` (Unix s)
    if it expires by itself: open streams end with either.
    """

    tenant: str
    subject: str
    scopes: frozenset[Scope]
    key_id: str = ""
    expires_at: float | None = None
    run_id: str = ""
    ticket_id: str = ""
    session_id: str = ""

    def check(self, scope: Scope) -> None:
        """Checks that the principal has a scope.

        Raises:
            Forbidden: it does not.
        """
        if scope not in self.scopes:
            raise Forbidden(scope)


class Authenticator(Protocol):
    """Finds out who makes a request. The settings decide which implementation a gateway has."""

    async def authenticate(self, request: Request, *, takes_ticket: bool) -> Principal:
        """Returns the request's principal.

        Args:
            takes_ticket: whether the endpoint accepts a ticket for one run.

        Raises:
            Unauthenticated: no valid credential.
            LoopbackOnly, CrossSite: not accepted from this address or page.
            StorageUnavailable, IssuerUnavailable: the credential cannot be checked at the moment.
        """
        ...


def principal_of(request: Request) -> Principal:
    """Returns the principal that the endpoint's guard authenticated."""
    principal: Principal = request.state.principal
    return principal
