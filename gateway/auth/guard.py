"""What stands before a handler: who may call it. A handler without a guard cannot be routed to."""

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.context import gateway_of
from stagebus.shared.access_errors import RateLimited
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import RunNotFound

Handler = Callable[[Request], Awaitable[Response]]

RUN_ID: Final = "run_id"  # what paths call it


class Guarded:
    """A handler, and what it takes to get to it."""

    def __init__(
        self,
        handler: Handler,
        *,
        is_public: bool = False,
        scope: Scope | None = None,
        takes_ticket: bool = False,
        unless: Callable[[Settings], bool] | None = None,
    ) -> None:
        self.handler = handler
        self.is_public = is_public
        self.unless = unless
        self.scope = scope
        self.takes_ticket = takes_ticket

    async def __call__(self, request: Request) -> Response:
        """Let the request through, or not.

        Raises:
            Unauthenticated, Forbidden, LoopbackOnly, CrossSite: it has no business here.
            RateLimited: its tenant asks too often.
        """
        if not (self.is_public or (self.unless and self.unless(gateway_of(request).settings))):
            await self._check(request)
        return await self.handler(request)

    async def _check(self, request: Request) -> None:
        gateway = gateway_of(request)
        async with gateway.limiter.request() as counted:
            principal = await gateway.auth.authenticator.authenticate(
                request, takes_ticket=self.takes_ticket, ahead=counted.begin
            )
            request.state.principal = principal
            quota = await counted.for_tenant(principal.tenant)
        if quota is not None:
            request.state.quota = quota
            if not quota.is_kept:
                raise RateLimited(quota.retry_in_s)
        if self.scope is not None:
            principal.check(self.scope)
        asked = request.path_params.get(RUN_ID)
        # A ticket's holder hears of other runs what anybody hears of a run that is not theirs.
        if asked is not None and (not ids.is_run_id(asked) or principal.run_id not in ("", asked)):
            raise RunNotFound(asked)


def public(handler: Handler) -> Guarded:
    """For everybody, known or not."""
    return Guarded(handler, is_public=True)


def needs(
    scope: Scope | None, *, takes_ticket: bool = False, unless: Callable[[Settings], bool] | None = None
) -> Callable[[Handler], Guarded]:
    """For those who are known and have the scope; None: for all who are known.

    Args:
        takes_ticket: also for those who hold a ticket for the run that the path names.
        unless: the settings that make it public.
    """
    return lambda handler: Guarded(handler, scope=scope, takes_ticket=takes_ticket, unless=unless)
