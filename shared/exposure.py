"""Who can reach a gateway: this machine alone, or others, which an open one must not be."""

from ipaddress import ip_address

from shared.refusals import GatewayExposed
from shared.settings import Settings


def is_loopback(host: str) -> bool:
    """Whether an address, or the name that every machine has for itself, is this machine's own."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(settings: Settings, host: str) -> None:
    """Refuse to listen where others can reach a gateway that asks nobody who he is.

    Raises:
        GatewayExposed: it would be so; the message says what to set.
    """
    if settings.auth == "open" and not settings.insecure and not is_loopback(host):
        raise GatewayExposed(host)
