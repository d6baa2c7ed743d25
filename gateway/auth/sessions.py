"""Sessions: a page's key, kept by the browser in a cookie that no script can read.

    POST /session   Authorization: Bearer sbk_…   ─▶  Set-Cookie: __Host-stagebus=…; HttpOnly; SameSite=Lax; Secure

What the cookie holds is not the key, but its id, signed: the session ends with the key.
Browsers send cookies whoever asks them to, so a request that changes something counts only
where the browser vouches that a page of ours made it.
Spec: https://datatracker.ietf.org/doc/html/draft-ietf-httpbis-rfc6265bis
"""

from dataclasses import replace
from typing import Any, Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.auth.signing import Signer, until
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope

COOKIE: Final = "stagebus"
# Over TLS the prefix makes browsers refuse one that a neighbouring host, or anybody without TLS, sets.
SECURE_COOKIE: Final = f"__Host-{COOKIE}"


class Session(NamedTuple):
    """What a browser keeps, and who its pages are by it."""

    token: str
    holder: Principal


class Sessions:
    """Makes sessions and takes them."""

    def __init__(self, settings: Settings) -> None:
        self._signer = Signer("session", settings.secrets)
        self._ttl_s = settings.session_ttl_s

    def begin(self, principal: Principal) -> Session:
        """A session in somebody's name, which does not outlive their own."""
        expires_at = until(self._ttl_s, principal.expires_at)
        claims: dict[str, Any] = {"key": principal.key_id}
        if not principal.key_id:
            claims |= {"tenant": principal.tenant, "sub": principal.subject, "scopes": sorted(principal.scopes)}
        return Session(self._signer.sign(claims, expires_at), replace(principal, expires_at=expires_at))

    def give(self, request: Request, response: Response, session: Session) -> None:
        """Have the browser keep its session."""
        is_secure = _is_secure(request)
        response.set_cookie(
            SECURE_COOKIE if is_secure else COOKIE,
            session.token,
            max_age=round((session.holder.expires_at or 0.0) - until(0)),
            secure=is_secure,
            httponly=True,
            samesite="lax",
        )

    def end(self, response: Response) -> None:
        """Have the browser forget its session."""
        response.delete_cookie(SECURE_COOKIE, secure=True, httponly=True, samesite="lax")
        response.delete_cookie(COOKIE, httponly=True, samesite="lax")

    def open(self, request: Request) -> Principal | None:
        """The one whose browser asks; None without a session.

        Of a session that rests on a key only `key_id` and `expires_at` are told: the key's record says the rest.
        """
        token = request.cookies.get(SECURE_COOKIE) or request.cookies.get(COOKIE)
        claims = self._signer.read(token) if token else None
        if claims is None:
            return None
        scopes = frozenset(Scope(name) for name in claims.get("scopes", ()) if name in set(Scope))
        return Principal(
            claims.get("tenant", ""), claims.get("sub", ""), scopes, claims["key"], expires_at=float(claims["exp"])
        )


def _is_secure(request: Request) -> bool:
    # Behind a proxy that ends TLS our own scheme is http; the browser says what it sees.
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:")
