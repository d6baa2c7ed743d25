"""Checks the host names and origins among the settings."""

import re

from stagebus.shared.runtime.net import normal_host


def check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the origins.

    Raises:
        ValueError: one of them is no origin.
    """
    for origin in origins:
        if not re.fullmatch(r"https?://[^/\s*?#@]+", origin):
            raise ValueError(f"{origin!r} is not an origin; write it as https://app.example, without a path")
    return origins


def check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the host names in their normal form.

    Raises:
        ValueError: one of them is no host name.
    """
    for host in hosts:
        if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", host):
            raise ValueError(f"{host!r} is not a host name; write it as bus.example, without a scheme or a port")
    return tuple(normal_host(host) for host in hosts)
