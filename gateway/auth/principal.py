"""Who makes a request, as every other part of the gateway sees them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from stagebus.shared.access_errors import Forbidden
from stagebus.shared.domain.tenants import Scope


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who was let in: whose runs they see, and what they may do there.

    `subject` names them in logs: `key:3f9c0a5d77e1`, `jwt:alice`, `anyone`. A ticket's holder has
    `run_id` and sees nothing but that run, and `ticket_id`, by which the ticket may be taken back. `key_id` is set where all rests on an API key, and
    `expires_at` (Unix s) where it ends by itself: open streams end with either.
    """

    tenant: str
    subject: str
    scopes: frozenset[Scope]
    key_id: str = ""
    expires_at: float | None = None
    run_id: str = ""
    ticket_id: str = ""

    def check(self, scope: Scope) -> None:
        """Refuse what the principal may not do.

        Raises:
            Forbidden: they lack the scope.
        """
        if scope not in self.scopes:
            raise Forbidden(scope)


# Told of the tenant as soon as it is all but certain, and before it is: what is begun for it then costs no wait.
Ahead = Callable[[str], None]


class Authenticator(Protocol):
    """Tells who makes a request; which one a gateway has is a matter of its settings."""

    async def authenticate(self, request: Request, *, takes_ticket: bool, ahead: Ahead) -> Principal:
        """The one who asks.

        Args:
            takes_ticket: whether a ticket for one run is good enough here.
            ahead: called with the tenant, if it is known, before Redis is asked whether all still holds.

        Raises:
            Unauthenticated: nobody that we know.
            LoopbackOnly, CrossSite: not from there.
            StorageUnavailable: it cannot be told at the moment.
        """
        ...


def principal_of(request: Request) -> Principal:
    """The one whom `guard` let in."""
    principal: Principal = request.state.principal
    return principal
