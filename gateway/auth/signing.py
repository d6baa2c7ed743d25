"""What this system signs for itself: tickets and sessions, as JWTs that nobody else makes or takes.

Each purpose has a key of its own, derived from `STAGEBUS_SECRET`, so that a ticket is no
session, whatever it says.
Spec: https://www.rfc-editor.org/rfc/rfc7519
"""

import hmac
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

import jwt

ALGORITHM: Final = "HS256"


class Signer:
    """Signs claims for a time, and reads what it has signed."""

    def __init__(self, purpose: str, signing_secrets: Sequence[str]) -> None:
        """The first secret signs, all are good; with none, only this process reads what it signs."""
        known = signing_secrets or (secrets.token_hex(),)
        self._keys = [hmac.digest(secret.encode(), f"stagebus {purpose}".encode(), "sha256") for secret in known]

    def sign(self, claims: dict[str, Any], expires_at: float) -> str:
        """The claims as a token that is good until `expires_at`, Unix s."""
        return jwt.encode({**claims, "exp": int(expires_at)}, self._keys[0], ALGORITHM)

    def read(self, token: str) -> dict[str, Any] | None:
        """The claims of a token; None where it is none of ours or its time is over."""
        for key in self._keys:
            try:
                claims: dict[str, Any] = jwt.decode(token, key, [ALGORITHM], options={"require": ["exp"]})
            except jwt.InvalidSignatureError:
                continue
            except jwt.PyJWTError:
                return None
            return claims
        return None


def until(ttl_s: float, limit: float | None = None) -> float:
    """The end of a time from now on, in whole Unix s as tokens have it, but no later than the limit."""
    end = time.time() + ttl_s
    return float(int(end if limit is None else min(end, limit)))
