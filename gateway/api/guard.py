"""The checks before an endpoint: authentication, the tenant's rate limit, the scope and the run's id.

An endpoint without a guard cannot be routed to.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.auth.allowed_hosts import check_host
from stagebus.gateway.auth.on_behalf import act_for_user
from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.context import gateway_of
from stagebus.shared.access_errors import RateLimited
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.domain.threads import is_thread_id
from stagebus.shared.errors import RunNotFound
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.thread_errors import ThreadNotFound

Handler = Callable[[Request], Awaitable[Response]]

RUN_ID: Final = "run_id"  # the path parameters' names
THREAD_ID: Final = "thread_id"
PART: Final = "part"


class Guarded:
    """A handler together with the conditions under which it may be called."""

    def __init__(
        self,
        handler: Handler,
        *,
        is_public: bool = False,
        scope: Scope | None = None,
        takes_ticket: bool = False,
        takes_call_token: bool = False,
        run_prefix: str = "",
        has_parts: bool = False,
        unless: Callable[[Settings], bool] | None = None,
    ) -> None:
        self.handler = handler
        self.is_public = is_public
        self.unless = unless
        self.scope = scope
        self.takes_ticket = takes_ticket
        self.takes_call_token = takes_call_token
        self.run_prefix = run_prefix
        self.has_parts = has_parts

    async def __call__(self, request: Request) -> Response:
        """Runs the checks, then the handler.

        Raises:
            HostNotAllowed: the gateway does not answer under this host name.
            Unauthenticated, LoopbackOnly, CrossSite: the request's caller is not known here.
            RateLimited: the tenant, or its ticket's holder, exceeds the rate limit.
            Forbidden: the credential lacks the scope.
            NotOnBehalf, BadUser, UserRequired: the request may not be made for this user, or needs one.
            RunNotFound: the path has no valid run id, or the ticket is for another run.
            ThreadNotFound: the path has no valid thread id, or the ticket is not for this thread.
        """
        if not (self.is_public or (self.unless and self.unless(gateway_of(request).settings))):
            await self._check(request)
        return await self.handler(request)

    async def _check(self, request: Request) -> None:
        gateway = gateway_of(request)
        check_host(request, gateway.settings)
        principal = await gateway.auth.call_tokens.verify(request) if self.takes_call_token else None
        if principal is None:
            principal = await gateway.auth.authenticator.authenticate(request, takes_ticket=self.takes_ticket)
        request.state.principal = principal
        quota = await gateway.limiter.count_request(principal.tenant, principal.ticket_id)
        if quota is not None:
            request.state.quota = quota
            if not quota.is_allowed:
                raise RateLimited(quota.retry_after_s, is_ticket=bool(principal.ticket_id))
        principal = request.state.principal = act_for_user(principal, request)
        if self.scope is not None:
            principal.check(self.scope)
        if (name := request.path_params.get(RUN_ID)) is not None:
            run_id = name.removeprefix(self.run_prefix)
            if not name.startswith(self.run_prefix):
                raise RunNotFound(name)
            if self.has_parts:
                run_id, _, request.path_params[PART] = run_id.partition("_")
            await check_run(request, run_id)
            request.path_params[RUN_ID] = run_id
        if (thread_id := request.path_params.get(THREAD_ID)) is not None:
            check_thread(principal, thread_id)


async def check_run(request: Request, run_id: str) -> None:
    """Checks that a name is a run's id, and that a ticket is for this run or its thread. It may not exist.

    Raises:
        RunNotFound: it is not. For a ticket's holder all other runs do not exist, as another tenant's runs do not.
    """
    ticket_for: str = request.state.principal.ticket_for
    if not ids.is_run_id(run_id) or not (keys.is_thread(ticket_for) or ticket_for in ("", run_id)):
        raise RunNotFound(run_id)
    if keys.is_thread(ticket_for):
        with storage_errors():
            thread_key = await gateway_of(request).redis.hget(keys.run(run_id), "thread")  # type: ignore[misc]
        if thread_key != ticket_for.encode():
            raise RunNotFound(run_id)


def check_thread(principal: Principal, thread_id: str) -> None:
    """Checks that a text can be a thread's id, and that the caller's ticket, if it is one, is for a thread.

    It does not check which thread; `read_thread_identity` does.

    Raises:
        ThreadNotFound: otherwise.
    """
    if not is_thread_id(thread_id) or (principal.ticket_for and not keys.is_thread(principal.ticket_for)):
        raise ThreadNotFound(thread_id)


def public(handler: Handler) -> Guarded:
    """Makes an endpoint public: no authentication and no rate limit."""
    return Guarded(handler, is_public=True)


def needs(
    scope: Scope | None,
    *,
    takes_ticket: bool = False,
    takes_call_token: bool = False,
    run_prefix: str = "",
    has_parts: bool = False,
    unless: Callable[[Settings], bool] | None = None,
) -> Callable[[Handler], Guarded]:
    """Restricts an endpoint to authenticated callers.

    Args:
        scope: the scope that the credential must have; with None any credential will do.
        takes_ticket: whether a ticket for the run in the path is accepted, too.
        takes_call_token: whether a call token for the run in the path is accepted, too.
        run_prefix: what stands before the run's id in the path; the handler finds the id without it.
        has_parts: whether `_<part>` may follow the run's id; the handler finds it under `PART`, empty if there is none.
        unless: makes the endpoint public where it returns true for the settings.
    """
    return lambda handler: Guarded(
        handler,
        scope=scope,
        takes_ticket=takes_ticket,
        takes_call_token=takes_call_token,
        run_prefix=run_prefix,
        has_parts=has_parts,
        unless=unless,
    )
