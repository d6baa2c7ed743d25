"""Decides which network addresses tools may connect to; sans-IO.

Allowed are public addresses and those that the operator adds. The arguments of a tool come from a model, and so from the
author of the prompt: they must not give access to the worker's network or to the metadata service of its cloud.

    10.0.0.0/8          all addresses of a network
    127.0.0.1:8001      one address and port
    wiki.internal       all addresses of a host
    wiki.internal:443   all addresses of a host, one port

Source: https://www.iana.org/assignments/iana-ipv6-special-registry/
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple, Self

Address = IPv4Address | IPv6Address

# Not public, although the registries (or Python 3.11's copy of them) say so.
_REFUSED: Final = tuple(
    ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's metadata and health service
        "192.0.0.0/24",  # IETF protocol assignments, which include another metadata service
        "192.88.99.0/24",  # deprecated 6to4 relays
        "64:ff9b:1::/48",  # NAT64 of a local network
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing inside a network
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")
_HOST_AND_PORT: Final = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]+):(?P<port>\d{1,5})")
_HOST_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_-]{1,63})*")
_PORT_MAX: Final = 65535


def is_public(address: Address) -> bool:
    """Returns whether an address is public, and also the IPv4 address inside it, if there is one."""
    inner = _inner(address)
    if inner is not None:
        return is_public(inner)
    is_special = address.is_multicast or address.is_reserved or address.is_link_local or address.is_unspecified
    if isinstance(address, IPv6Address) and address.is_site_local:
        return False
    return address.is_global and not is_special and not any(address in network for network in _REFUSED)


def _inner(address: Address) -> IPv4Address | None:
    """Returns the IPv4 address to which an IPv6 address is translated, or None."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


class AllowedTarget(NamedTuple):
    """One entry of `STAGEBUS_EGRESS_ALLOW`."""

    network: IPv4Network | IPv6Network | None
    host: str  # empty if there is a network
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses an entry.

        Raises:
            ValueError: the text is neither a network nor an address nor a host.
        """
        try:
            return cls(ip_network(text), "", None)
        except ValueError:
            if "/" in text:
                raise
        match = _HOST_AND_PORT.fullmatch(text)
        host, port = (match["host"].strip("[]"), int(match["port"])) if match else (text, None)
        if port is not None and not 0 < port <= _PORT_MAX:
            raise ValueError(f"{text!r}: a port is 1 to {_PORT_MAX}")
        try:
            return cls(ip_network(host), "", port)
        except ValueError:
            name = normal_host(host)
        if not _HOST_NAME.fullmatch(name):
            raise ValueError(f"{text!r} is neither a network such as 10.0.0.0/8 nor a host such as wiki.internal:443")
        return cls(None, name, port)

    def covers(self, host: str, port: int, address: Address) -> bool:
        """Returns whether this entry allows the address to which `host` was resolved."""
        if self.port not in (None, port):
            return False
        if self.network is None:
            return self.host == normal_host(host)
        inner = _inner(address)
        return address in self.network or (inner is not None and inner in self.network)


class AddressPolicy:
    """Decides whether a connection to an address is allowed."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        """`allowed` are entries of `STAGEBUS_EGRESS_ALLOW`. Raises ValueError if one is invalid."""
        self._allowed = tuple(AllowedTarget.parse(text) for text in allowed)

    def permits(self, host: str, port: int, address: str) -> bool:
        """Returns whether connections to `host` at its resolved `address` are allowed. The address may have a scope (%eth0)."""
        parsed = ip_address(address.partition("%")[0])
        return is_public(parsed) or any(target.covers(host, port, parsed) for target in self._allowed)


def is_loopback(host: str) -> bool:
    """Returns whether `host` is a loopback address or `localhost`."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def normal_host(host: str) -> str:
    """Returns a host name in lower case and without the final dot, so that names can be compared."""
    return host.lower().removesuffix(".")
