"""The token issuer's public keys (JWKS), fetched from a URL or a file and cached.

    {"keys": [{"kty": "RSA", "kid": "2026-01", "use": "sig", "alg": "RS256", "n": …, "e": …}]}

The key set is fetched again when it is old, and when a token names an unknown key, but never
more often than every `FETCH_INTERVAL_S`, whatever tokens say. While the issuer is down, the
last key set stays in use.

PyJWT 2.15 parses the keys, but its PyJWKClient does not fetch them. It blocks a thread, limits
neither the size of the response nor the time of the whole fetch, drops an old key set while
the issuer is down, and then asks the issuer again for every token.
Spec: https://www.rfc-editor.org/rfc/rfc7517
"""

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Final

import httpx
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWKSet

from stagebus.shared.access_errors import IssuerUnavailable, Unauthenticated

logger = logging.getLogger(__name__)

# Asymmetric only: with a symmetric algorithm, the published key would be enough to sign tokens.
ALGORITHMS: Final = frozenset({"RS256", "ES256", "EdDSA"})
RSA_BITS_MIN: Final = 2048
# For the whole fetch: an issuer that sends a byte a second must not hold requests up.
FETCH_TIMEOUT_S: Final = 5.0
SET_MAX_BYTES: Final = 2**18
# For how long a key is still accepted after the issuer has withdrawn it.
SET_TTL_S: Final = 600.0
FETCH_INTERVAL_S: Final = 10.0


class JwksCache:
    """One issuer's key set."""

    def __init__(self, source: str) -> None:
        """`source` is a URL or a file's path."""
        self._source = source
        self._keys: list[PyJWK] = []
        self._expires_at = 0.0
        self._next_fetch_at = 0.0
        self._is_available = True
        self._fetch: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> PyJWK:
        """Returns the key with an id. Without an id, returns the only key if there is exactly one.

        Only a token with an unknown key waits for a fetch; an old key set is fetched in the background.

        Raises:
            Unauthenticated: the issuer publishes no such key.
            IssuerUnavailable: the key is not cached, and the last fetch failed.
        """
        key = self._find(kid)
        if key is None or time.monotonic() >= self._expires_at:
            fetch = self._start_fetch()
            if key is None and fetch is not None:
                await asyncio.shield(fetch)
                key = self._find(kid)
        if key is not None:
            return key
        if not self._is_available:
            raise IssuerUnavailable
        raise Unauthenticated("this token is signed with a key that its issuer does not publish")

    def _find(self, kid: str | None) -> PyJWK | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.key_id == kid), None)

    def _start_fetch(self) -> asyncio.Task[None] | None:
        """Returns the fetch that is running, or starts one if the last was `FETCH_INTERVAL_S` ago."""
        if self._fetch is None or self._fetch.done():
            if time.monotonic() < self._next_fetch_at:
                return None
            self._next_fetch_at = time.monotonic() + FETCH_INTERVAL_S
            self._fetch = asyncio.create_task(self._update())
        return self._fetch

    async def _update(self) -> None:
        try:
            self._keys = parse_keys(await _load(self._source))
        except Exception as exc:  # noqa: BLE001 - whatever an issuer sends, the answer is 503 and not 500
            self._is_available = False
            logger.warning("the token issuer's key set cannot be fetched from %s: %r", self._source, exc)
            return
        self._expires_at, self._is_available = time.monotonic() + SET_TTL_S, True
        logger.info("the token issuer has %d keys", len(self._keys))


async def _load(source: str) -> bytes:
    """Reads the key set.

    Raises:
        httpx.HTTPError, httpx.InvalidURL, OSError, ValueError: it cannot be read, takes too long or is too large.
    """
    if not source.startswith(("https:", "http:")):
        return await asyncio.to_thread(Path(source).read_bytes)
    # Uncompressed, so that the limit holds for what is in memory.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    async with (
        asyncio.timeout(FETCH_TIMEOUT_S),
        httpx.AsyncClient(headers=headers, timeout=FETCH_TIMEOUT_S) as http,
        http.stream("GET", source) as response,
    ):
        response.raise_for_status()
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > SET_MAX_BYTES:
                raise ValueError(f"more than {SET_MAX_BYTES} bytes")
        return bytes(body)


def parse_keys(body: bytes) -> list[PyJWK]:
    """Parses a key set. Skips keys that cannot or must not sign tokens.

    Raises:
        ValueError, RecursionError, jwt.PyJWTError: it is no key set, or has no usable key.
    """
    parsed = json.loads(body)
    if not isinstance(parsed, dict):
        raise ValueError("the key set is not a JSON object")  # noqa: TRY004 - as for every other malformed set
    return [key for key in PyJWKSet.from_dict(parsed).keys if _may_sign(key)]


def _may_sign(key: PyJWK) -> bool:
    if key.algorithm_name not in ALGORITHMS or key.public_key_use not in (None, "sig"):
        return False
    return not isinstance(key.key, RSAPublicKey) or key.key.key_size >= RSA_BITS_MIN
