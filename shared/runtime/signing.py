"""Signs and verifies Stagebus's own tokens (tickets, sessions, call tokens) as JWTs.

Each purpose has its own key, derived from `STAGEBUS_SECRET`, so a ticket is never accepted as
a session, whatever its claims say. Workers sign call tokens, and gateways everything else.
Spec: https://www.rfc-editor.org/rfc/rfc7519
"""

import hmac
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

import jwt

ALGORITHM: Final = "HS256"
TAG_CHARS: Final = 16  # 64 bits, for what an attacker can only try online


class Signer:
    """Signs claims for one purpose, and verifies what it has signed."""

    def __init__(self, purpose: str, signing_secrets: Sequence[str]) -> None:
        """Signs with the first secret and accepts all of them; without any, a random one of this process."""
        known = signing_secrets or (secrets.token_hex(),)
        self._keys = [hmac.digest(secret.encode(), f"stagebus {purpose}".encode(), "sha256") for secret in known]

    def sign(self, claims: dict[str, Any], expires_at: float) -> str:
        """Returns the claims as a token that is valid until `expires_at`, Unix s."""
        return jwt.encode({**claims, "exp": int(expires_at)}, self._keys[0], ALGORITHM)

    def verify(self, token: str) -> dict[str, Any] | None:
        """Returns the claims of a token, or None if it was not signed here or has expired."""
        for key in self._keys:
            try:
                claims: dict[str, Any] = jwt.decode(token, key, [ALGORITHM], options={"require": ["exp"]})
            except jwt.InvalidSignatureError:
                continue
            except jwt.PyJWTError:
                return None
            return claims
        return None

    def tag(self, text: str) -> str:
        """Returns a short proof that the text was made here: `TAG_CHARS` hexadecimal digits."""
        return _tag(self._keys[0], text)

    def has_tag(self, text: str, tag: str) -> bool:
        """Returns whether the tag is one that this purpose's keys make for the text."""
        return any(hmac.compare_digest(_tag(key, text), tag) for key in self._keys)


def _tag(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()[:TAG_CHARS]


def expiry(ttl_s: float, limit: float | None = None) -> float:
    """Returns the time `ttl_s` from now in whole Unix s, as tokens have it, but no later than `limit`."""
    end = time.time() + ttl_s
    return float(int(end if limit is None else min(end, limit)))
