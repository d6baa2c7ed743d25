"""Sessions: a browser's login, kept in a cookie that no script can read.

    POST /session   Authorization: Bearer sbk_…   ─▶  Set-Cookie: __Host-stagebus=…; HttpOnly; SameSite=Lax; Secure

The cookie does not hold the API key but its id, signed, so the session ends when the key is
revoked. Browsers attach cookies to requests of any site's page. A request that changes
something is therefore accepted only if the browser confirms that a page of this origin made it.
Spec: https://datatracker.ietf.org/doc/html/draft-ietf-httpbis-rfc6265bis
"""

from dataclasses import replace
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.auth.signing import Signer, expiry
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope

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
        claims: dict[str, Any] = {"key": principal.key_id}
        if not principal.key_id:
            claims |= {"tenant": principal.tenant, "sub": principal.subject, "scopes": sorted(principal.scopes)}
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

        If the session depends on an API key, only `key_id` and `expires_at` are set: the key's record has the rest.
        """
        token = request.cookies.get(_secure_cookie(request)) or request.cookies.get(COOKIE)
        claims = self._signer.verify(token) if token else None
        if claims is None:
            return None
        scopes = frozenset(Scope(name) for name in claims.get("scopes", ()) if name in set(Scope))
        return Principal(
            claims.get("tenant", ""), claims.get("sub", ""), scopes, claims["key"], expires_at=float(claims["exp"])
        )


def _cookie_path(request: Request) -> str:
    return quote(request.scope.get("root_path", "").rstrip("/")) or "/"


def _secure_cookie(request: Request) -> str:
    return SECURE_COOKIE if _cookie_path(request) == "/" else SECURE_COOKIE_BELOW_PREFIX


def _is_secure(request: Request) -> bool:
    # Behind a proxy that terminates TLS, the scheme here is http; the browser's Origin has the real one.
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:")
