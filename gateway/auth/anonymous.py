"""The open gateway's authenticator: local requests may do everything, all others are refused.

A loopback address alone does not prove that a request is meant for this gateway. Any site's
page can send requests to localhost from its visitor's browser, and a site whose DNS name
resolves to 127.0.0.1 can even read the answers (DNS rebinding). So the Host header is checked
too, and for requests that change something, what the browser says about the page.
"""

from typing import Final

from starlette.requests import Request

from stagebus.gateway.auth.csrf import SAFE_METHODS, has_loopback_host, is_cross_site
from stagebus.gateway.auth.principal import Principal
from stagebus.shared.access_errors import CrossSite, LoopbackOnly
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import DEFAULT_TENANT, TENANT_WIDE
from stagebus.shared.runtime.net import is_loopback, normal_host

ANYONE: Final = Principal(DEFAULT_TENANT, "anyone", TENANT_WIDE)


class AnonymousAuthenticator:
    """Accepts every request from this machine as the same principal, `ANYONE`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def authenticate(self, request: Request, *, takes_ticket: bool) -> Principal:  # noqa: ARG002 - of the protocol
        """Returns `ANYONE`.

        Raises:
            LoopbackOnly: the request came in at another address, or its Host is not a name of this machine.
            CrossSite: another site's page wants to change something.
        """
        if not (self._settings.insecure or self._is_local(request)):
            raise LoopbackOnly
        if request.method not in SAFE_METHODS and self._is_cross_site(request):
            raise CrossSite
        return ANYONE

    def _is_cross_site(self, request: Request) -> bool:
        """Returns whether a page of another site makes the request, not that of a development server on this machine.

        The proxy of such a server, such as Vite's, may replace the Host and keep the Origin. The browser still says that
        the page asked its own server.
        """
        is_own_page = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
        if is_own_page and self._is_local(request) and has_loopback_host(request):
            return False
        return is_cross_site(request, self._settings.cors_origins)

    def _is_local(self, request: Request) -> bool:
        server = request.scope.get("server")  # None on a Unix socket
        host = normal_host(request.url.hostname or "")
        is_own_name = is_loopback(host) or host in self._settings.allowed_hosts
        return is_own_name and (server is None or is_loopback(server[0]))
