"""Tokens of an issuer: JWTs that somebody else signed for their users.

    {"iss": "https://login.example/", "aud": "stagebus", "exp": 1769860800, "sub": "alice",
     "tenant": "acme", "scope": "runs:write runs:read"}

Which key and which algorithm is good is said by the issuer's key set, never by the token.
Spec: https://www.rfc-editor.org/rfc/rfc8725
"""

from collections.abc import Mapping
from typing import Any, Final

import jwt

from stagebus.gateway.auth.jwks import Jwks
from stagebus.gateway.auth.principal import Principal
from stagebus.shared.access_errors import Unauthenticated
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope, is_tenant

LEEWAY_S: Final = 10.0
SUBJECT_MAX_CHARS: Final = 128

_REASONS: Final[Mapping[type[jwt.PyJWTError], str]] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet; look at the clocks",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.InvalidAudienceError: "it is for somebody else",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidAlgorithmError: "its signature is wrong",
}


class JwtVerifier:
    """Takes the tokens of one issuer."""

    def __init__(self, settings: Settings) -> None:
        assert settings.jwt_jwks is not None, "`check_access` has looked"
        self._settings = settings
        self._jwks = Jwks(settings.jwt_jwks)

    async def verify(self, token: str) -> Principal:
        """The one whom the issuer vouches for.

        Raises:
            Unauthenticated: the token does not hold; the message says why.
            IssuerUnavailable: its key cannot be had at the moment.
        """
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = await self._jwks.find(kid)
            claims = jwt.decode(
                token,
                key,
                [key.algorithm_name],
                issuer=self._settings.jwt_issuer,
                audience=self._settings.jwt_audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as exc:
            raise Unauthenticated(f"this token does not hold: {_reason(exc)}") from exc
        return self._principal(claims)

    def _principal(self, claims: dict[str, Any]) -> Principal:
        tenant = claims.get(self._settings.jwt_tenant_claim)
        if not is_tenant(tenant):
            raise Unauthenticated(f"this token names no tenant in its claim {self._settings.jwt_tenant_claim!r}")
        subject = f"jwt:{claims['sub'][:SUBJECT_MAX_CHARS]}"
        scopes = _scopes(claims.get(self._settings.jwt_scopes_claim))
        return Principal(str(tenant), subject, scopes, expires_at=float(claims["exp"]))


def _reason(exc: jwt.PyJWTError) -> str:
    """Why, in words that hold nothing of the token."""
    if isinstance(exc, jwt.MissingRequiredClaimError):
        return f"it has no {exc.claim}"
    return next((reason for error, reason in _REASONS.items() if isinstance(exc, error)), "it is no JWT")


def _scopes(claim: object) -> frozenset[Scope]:
    """Ours among the scopes of a token, which come as one text (RFC 8693) or as a list."""
    names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return frozenset(Scope(name) for name in names if isinstance(name, str) and name in set(Scope))
