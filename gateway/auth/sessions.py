"""Sessions: a browser's login, kept in a cookie that no script can read.

    POST /session   Authorization: Bearer sbk_…   ─▶  Set-Cookie: __Host-stagebus=…; HttpOnly; SameSite=Lax; Secure

The cookie does not hold the API key but its id, signed, so the session ends when the key is
revoked. `DELETE /session` revokes the session by its own id, so a copy of the cookie ends with it. Browsers attach cookies to requests of any site's page. A request that changes
something is therefore accepted only if the browser confirms that a page of this origin made it.
Spec: https://datatracker.ietf.org/doc/html/draft-ietf-httpbis-rfc6265bis
"""

import secrets
from dataclasses import replace
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.auth.csrf import has_host_of
from stagebus.gateway.auth.principal import Principal
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import compact_scopes, expand_scopes
from stagebus.shared.runtime.net import is_loopback, normal_host
from stagebus.shared.runtime.signing import Signer, expiry

ID_BYTES: Final = 8
COOKIE: Final = "stagebus"
# Over TLS the prefix makes browsers refuse a cookie that was set by a sibling host or without TLS.
SECURE_COOKIE: Final = f"__Host-{COOKIE}"
# `__Host-` requires the path `/`. Below a prefix the cookie is limited to that prefix instead, so that a mounted
# gateway's sessions are not sent to the rest of the site.
SECURE_COOKIE_BELOW_PREFIX: Final = f"__Secure-{COOKIE}"


class Session(NamedTuple):
    """A new session: the cookie's value and its principal."""

    token: str
    holder: Principal


class SessionCookies:
    """Creates session cookies and verifies them."""

    def __init__(self, settings: Settings) -> None:
        self._signer = Signer("session", settings.secrets)
        self._ttl_s = settings.session_ttl_s

    def create(self, principal: Principal) -> Session:
        """Creates a session for a principal; it does not outlive the principal's own credential."""
        expires_at = expiry(self._ttl_s, principal.expires_at)
        claims: dict[str, Any] = {"key": principal.key_id, "jti": secrets.token_hex(ID_BYTES)}
        if principal.user:
            claims["user"] = principal.user
        if not principal.key_id:
            scopes = sorted(compact_scopes(principal.scopes))
            claims |= {"tenant": principal.tenant, "sub": principal.subject, "scopes": scopes}
        return Session(self._signer.sign(claims, expires_at), replace(principal, expires_at=expires_at))

    def set_cookie(self, request: Request, response: Response, session: Session) -> None:
        """Sets the session's cookie."""
        is_secure = _is_secure(request)
        response.set_cookie(
            _secure_cookie(request) if is_secure else COOKIE,
            session.token,
            max_age=round((session.holder.expires_at or 0.0) - expiry(0)),
            path=_cookie_path(request),
            secure=is_secure,
            httponly=True,
            samesite="lax",
        )

    def delete_cookie(self, request: Request, response: Response) -> None:
        """Deletes the session's cookie, under both of its names."""
        path = _cookie_path(request)
        response.delete_cookie(_secure_cookie(request), path=path, secure=True, httponly=True, samesite="lax")
        response.delete_cookie(COOKIE, path=path, httponly=True, samesite="lax")

    def verify(self, request: Request) -> Principal | None:
        """Returns the principal of the request's session, or None without a valid session.

        If the session depends on an API key, only `key_id`, `session_id`, `user` and `expires_at` are set: the key's
        record has the rest. Whether the session was revoked is not checked.

        Over TLS only the prefixed name counts: a sibling host or someone on the network can set the other one.
        """
        token = request.cookies.get(_secure_cookie(request))
        if token is None and not _is_secure(request):
            token = request.cookies.get(COOKIE)
        claims = self._signer.verify(token) if token else None
        if claims is None or not claims.get("jti"):
            return None
        scopes = expand_scopes(claims.get("scopes", ()))
        tenant, subject = claims.get("tenant", ""), claims.get("sub", "")
        return Principal(
            tenant, subject, scopes, claims["key"], expires_at=float(claims["exp"]), session_id=claims["jti"],
            user=claims.get("user", ""),
        )  # fmt: skip


def _cookie_path(request: Request) -> str:
    return quote(request.scope.get("root_path", "").rstrip("/")) or "/"


def _secure_cookie(request: Request) -> str:
    return SECURE_COOKIE if _cookie_path(request) == "/" else SECURE_COOKIE_BELOW_PREFIX


def _is_secure(request: Request) -> bool:
    """Returns whether the browser's connection uses TLS, even if a proxy terminates it and the scheme here is http."""
    origin = request.headers.get("origin", "")
    origin_scheme = origin.partition(":")[0] if has_host_of(origin, request) else ""
    if "https" in (request.url.scheme, origin_scheme):
        return True
    if request.headers.get("x-forwarded-proto", "").strip().lower() == "https":
        return True  # of an untrusted proxy, too: the answer only restricts the cookies that count
    # Browsers send Sec-Fetch-Site, which a GET without Origin has as well, over TLS and to localhost only.
    # Spec: https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header
    host = normal_host(request.url.hostname or "")
    is_local = is_loopback(host) or host.endswith(".localhost")
    return "sec-fetch-site" in request.headers and not is_local and origin_scheme != "http"
