"""The host names under which a gateway answers.

By DNS rebinding a site's own name resolves to the gateway's address, and the site's pages may then read the answers as
their own. The Host header still has the site's name. An IP address needs no check: no site has one as its name.
"""

from ipaddress import ip_address

from starlette.requests import Request

from stagebus.shared.access_errors import HostNotAllowed
from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.net import normal_host


def check_host(request: Request, settings: Settings) -> None:
    """Checks the request's Host header against `STAGEBUS_ALLOWED_HOSTS`.

    Without this setting a gateway with authentication answers under any name, since a foreign page has no credential.
    An open gateway that is not `insecure` is stricter, see `AnonymousAuthenticator`.

    Raises:
        HostNotAllowed: the host is neither an address nor `localhost` nor an allowed name.
    """
    if settings.auth == "open" and not settings.insecure:
        return
    if settings.auth != "open" and not settings.allowed_hosts:
        return
    host = normal_host(request.url.hostname or "")
    if host != "localhost" and host not in settings.allowed_hosts and not _is_address(host):
        raise HostNotAllowed


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
