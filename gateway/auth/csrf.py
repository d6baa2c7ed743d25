"""Which page makes a request, as browsers tell it. Other clients tell nothing.

Browsers set both headers themselves; a page cannot change them.
Spec: https://www.w3.org/TR/fetch-metadata/, https://fetch.spec.whatwg.org/#origin-header
"""

from collections.abc import Container
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

# What changes nothing. An answer to another site's page is kept from it by the browser.
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def is_foreign(request: Request, allowed: Container[str] = ()) -> bool:
    """Whether another site's page makes the request, and not one of the allowed origins."""
    origin = request.headers.get("origin")
    if origin is not None:
        return origin not in allowed and not _is_same(origin, request)
    # A form or a link of an older browser; typed into the address bar is `none`.
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def is_own_page(request: Request) -> bool:
    """Whether a browser vouches that a page of ours makes the request."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return origin is not None and _is_same(origin, request)


def _is_same(origin: str, request: Request) -> bool:
    # Not the scheme: behind a proxy that ends TLS it differs, and the host is what tells sites apart.
    try:
        return urlsplit(origin).netloc == request.headers.get("host", "")
    except ValueError:
        return False
