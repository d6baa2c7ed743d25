"""The authenticated caller of a request, and the interface of authenticators."""

from dataclasses import dataclass, replace
from typing import Protocol

from starlette.requests import Request

from stagebus.shared.access_errors import Forbidden, UserRequired
from stagebus.shared.domain.tenants import INCLUDED_IN, OWN_SCOPES, RunOwner, Scope
from stagebus.shared.runtime.call_tokens import CallIdentity


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller: the tenant whose runs it sees, and the scopes it has there.

    `subject` names it in logs: `key:3f9c0a5d77e1`, `jwt:alice`, `anyone`. `user` is the person within the tenant who
    makes the request, as far as is known; the runs that it creates are that user's. A ticket's holder
    may see `ticket_for` alone, the id of a run or the Redis key of a thread with its runs, of the life `ticket_life_id`, and has
    a `ticket_id`, by which the ticket may be revoked; a session's holder has a `session_id`. `key_id` is set if the credential depends on an API key, and
    `expires_at` (Unix s) if it expires by itself: open streams end with either. A call token's holder has a `call`, whose
    result it may give.
    """

    tenant: str
    subject: str
    scopes: frozenset[Scope]
    key_id: str = ""
    expires_at: float | None = None
    ticket_for: str = ""
    ticket_id: str = ""
    ticket_life_id: str = ""
    session_id: str = ""
    user: str = ""
    call: CallIdentity | None = None

    @property
    def owner(self) -> RunOwner:
        """Returns whose runs the principal may see and change."""
        return RunOwner(self.tenant, self.user if Scope.RUNS_OWN in self.scopes else None)

    def acting_for(self, user: str) -> "Principal":
        """Returns the principal as it acts for one user, and for no other from then on."""
        subject, scopes = f"{self.subject} for {user}", self.scopes - {Scope.ON_BEHALF}
        return replace(self, user=user, subject=subject, scopes=scopes)

    def check(self, scope: Scope) -> None:
        """Checks that the principal has a scope.

        Raises:
            Forbidden: it does not.
            UserRequired: it has it for the runs of its own user, and has no user.
        """
        if scope not in self.scopes and INCLUDED_IN.get(scope) not in self.scopes:
            raise Forbidden(scope)
        if scope in OWN_SCOPES and Scope.RUNS_OWN in self.scopes and not self.user:
            raise UserRequired


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
