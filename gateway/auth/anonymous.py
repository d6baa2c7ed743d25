"""The open gateway: everybody on this machine may do everything, and nobody else anything.

An address of this machine alone is not enough. A page of any site may send requests to
localhost out of its visitor's browser, and one whose name its owner lets point to 127.0.0.1
may even read the answers. So the name that was asked for counts, and what browsers say of
the page that asks.
"""

from typing import Final

from starlette.requests import Request

from stagebus.gateway.auth.csrf import SAFE_METHODS, is_foreign
from stagebus.gateway.auth.principal import Ahead, Principal
from stagebus.shared.access_errors import CrossSite, LoopbackOnly
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import DEFAULT_TENANT, Scope
from stagebus.shared.runtime.net import is_loopback

ANYONE: Final = Principal(DEFAULT_TENANT, "anyone", frozenset(Scope))


class AnonymousAuthenticator:
    """Lets in whoever is on this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def authenticate(self, request: Request, *, takes_ticket: bool, ahead: Ahead) -> Principal:  # noqa: ARG002 - nobody needs either
        """Everybody is the same.

        Raises:
            LoopbackOnly: the request came in by another address, or under a name that is not this machine's.
            CrossSite: another site's page wants to change something.
        """
        if not (self._settings.insecure or _is_local(request)):
            raise LoopbackOnly
        if request.method not in SAFE_METHODS and is_foreign(request, self._settings.cors_origins):
            raise CrossSite
        return ANYONE


def _is_local(request: Request) -> bool:
    server = request.scope.get("server")  # None on a Unix socket
    return (server is None or is_loopback(server[0])) and is_loopback(request.url.hostname or "")
