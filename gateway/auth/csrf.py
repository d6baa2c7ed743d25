"""CSRF checks: which page makes a request, by the Origin and Sec-Fetch-Site headers.

Browsers set both headers themselves, and a page cannot change them. Other clients send neither.
Spec: https://www.w3.org/TR/fetch-metadata/, https://fetch.spec.whatwg.org/#origin-header
"""

from collections.abc import Container
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

from stagebus.shared.runtime.net import is_loopback

# These change nothing, and browsers do not let another site's page read the response.
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def is_cross_site(request: Request, allowed_origins: Container[str] = ()) -> bool:
    """Returns whether a page of another site, not of an allowed origin, makes the request."""
    origin = request.headers.get("origin")
    if origin is not None:
        return origin not in allowed_origins and not has_host_of(origin, request)
    # Without an Origin: a form or a link, in an older browser. `none` is an address typed by the user.
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def is_same_origin(request: Request) -> bool:
    """Returns whether a browser confirms that a page of this origin makes the request."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return origin is not None and has_host_of(origin, request)


def has_host_of(origin: str, request: Request) -> bool:
    """Returns whether an Origin header names the request's host.

    The scheme is not compared: it differs behind a proxy that terminates TLS, and the host identifies the site.
    """
    try:
        return urlsplit(origin).netloc == request.headers.get("host", "")
    except ValueError:
        return False


def has_loopback_host(request: Request) -> bool:
    """Returns whether the Origin header names this machine: `localhost` or a loopback address, with any port."""
    try:
        host = urlsplit(request.headers.get("origin", "")).hostname
    except ValueError:
        return False
    return host is not None and is_loopback(host)
