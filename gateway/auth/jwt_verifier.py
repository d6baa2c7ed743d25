"""Verifies the JWTs that an external issuer signs for its users.

    {"iss": "https://login.example/", "aud": "stagebus", "exp": 1769860800, "sub": "alice",
     "tenant": "acme", "scope": "runs:write runs:read"}

The issuer's key set determines the key and the algorithm, never the token.
Spec: https://www.rfc-editor.org/rfc/rfc8725
"""

from collections.abc import Mapping
from typing import Any, Final

import jwt

from stagebus.gateway.auth.jwks import JwksCache
from stagebus.gateway.auth.principal import Principal
from stagebus.shared.access_errors import Unauthenticated
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope, expand_scopes, is_tenant, user_of_subject

LEEWAY_S: Final = 10.0
SUBJECT_MAX_CHARS: Final = 128
# The last second of the year 9999, the latest time that can be written as a date.
EXPIRY_MAX: Final = 253_402_300_799

_REASONS: Final[Mapping[type[jwt.PyJWTError], str]] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet; check the clocks",
    jwt.InvalidIssuerError: "it is from another issuer",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidAlgorithmError: "its signature is wrong",
}


class JwtVerifier:
    """Verifies the tokens of one issuer."""

    def __init__(self, settings: Settings) -> None:
        assert settings.jwt_jwks is not None, "`check_access` has checked it"
        self._settings = settings
        self._jwks = JwksCache(settings.jwt_jwks)

    async def verify(self, token: str) -> Principal:
        """Returns the principal that the token names.

        Raises:
            Unauthenticated: the token is not valid; the message says why.
            IssuerUnavailable: the token's key cannot be fetched at the moment.
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
            raise Unauthenticated(f"this token is not valid: {_reason(exc)}") from exc
        return self._principal(claims)

    def _principal(self, claims: dict[str, Any]) -> Principal:
        tenant = claims.get(self._settings.jwt_tenant_claim)
        if not is_tenant(tenant):
            raise Unauthenticated(f"this token names no tenant in its claim {self._settings.jwt_tenant_claim!r}")
        expires_at = int(claims["exp"])
        if expires_at > EXPIRY_MAX:
            raise Unauthenticated("this token is not valid: its exp is out of range")
        scopes, subject = _parse_scopes(claims.get(self._settings.jwt_scopes_claim)), _parse_subject(claims["sub"])
        return Principal(
            str(tenant), f"jwt:{subject[:SUBJECT_MAX_CHARS]}", scopes, expires_at=float(expires_at),
            user=user_of_subject(subject),
        )  # fmt: skip


def _reason(exc: jwt.PyJWTError) -> str:
    """Returns why a token is refused, in words that repeat nothing from the token."""
    if isinstance(exc, jwt.MissingRequiredClaimError):
        return f"it has no {exc.claim}"
    return next((reason for error, reason in _REASONS.items() if isinstance(exc, error)), "it is no JWT")


def _parse_subject(claim: str) -> str:
    try:
        claim.encode()
    except UnicodeEncodeError as exc:  # JSON's \ud800 is half a character; neither logs nor answers can hold it
        raise Unauthenticated("this token is not valid: its sub is not Unicode text") from exc
    return claim


def _parse_scopes(claim: object) -> frozenset[Scope]:
    """Returns the known scopes of a token, whose claim is a text (RFC 8693) or a list."""
    names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return expand_scopes(names)
