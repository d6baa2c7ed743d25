"""The issuer's public keys: fetched, kept, and fetched again when a token names one that is not there.

    {"keys": [{"kty": "RSA", "kid": "2026-01", "use": "sig", "alg": "RS256", "n": …, "e": …}]}

How often the issuer is asked is bounded, whatever tokens say; while it does not answer, what
was fetched before holds.
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
from jwt import PyJWK, PyJWKSet, PyJWTError

from stagebus.shared.access_errors import IssuerUnavailable, Unauthenticated

logger = logging.getLogger(__name__)

# Asymmetric ones alone: with a symmetric one, anybody who has the public key could sign.
ALGORITHMS: Final = frozenset({"RS256", "ES256", "EdDSA"})
RSA_BITS_MIN: Final = 2048
FETCH_TIMEOUT_S: Final = 5.0
SET_MAX_BYTES: Final = 2**18
# A key that the issuer took back is good for this long.
FRESH_S: Final = 600.0
# A token with an unknown key makes us ask the issuer at most this often.
ASK_EVERY_S: Final = 10.0


class Jwks:
    """One issuer's keys, from a URL or a file."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._keys: list[PyJWK] = []
        self._fetched_at = -FRESH_S
        self._asked_at = -ASK_EVERY_S
        self._is_answered = True
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> PyJWK:
        """The key of a token; a token that names none is of the only key there is.

        Raises:
            Unauthenticated: the issuer has no such key.
            IssuerUnavailable: it cannot be told at the moment.
        """
        now = time.monotonic()
        key = self._find(kid)
        if key is None and self._may_ask(now):
            await asyncio.shield(self._fetch())
            key = self._find(kid)
        elif now - self._fetched_at > FRESH_S and self._may_ask(now):
            self._fetch()  # beside the request: what is there holds until then
        if key is not None:
            return key
        if not self._is_answered:
            raise IssuerUnavailable
        raise Unauthenticated("this token is signed with a key that its issuer does not publish")

    def _find(self, kid: str | None) -> PyJWK | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.key_id == kid), None)

    def _may_ask(self, now: float) -> bool:
        return self._fetching is not None or now - self._asked_at >= ASK_EVERY_S

    def _fetch(self) -> asyncio.Task[None]:
        """Ask the issuer; all who wait at the same time wait for one answer."""
        if self._fetching is None:
            self._asked_at = time.monotonic()
            self._fetching = asyncio.create_task(self._ask())
            self._fetching.add_done_callback(self._forget_fetching)
        return self._fetching

    def _forget_fetching(self, _task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _ask(self) -> None:
        try:
            keys = read_keys(await self._load())
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, PyJWTError) as exc:
            self._is_answered = False
            logger.warning("the token issuer's keys cannot be had from %s: %s", self._source, exc)
            return
        self._keys, self._fetched_at, self._is_answered = keys, time.monotonic(), True
        logger.info("the token issuer has %d keys", len(keys))

    async def _load(self) -> bytes:
        if not self._source.startswith(("https:", "http:")):
            return await asyncio.to_thread(Path(self._source).read_bytes)
        async with (
            httpx.AsyncClient(timeout=FETCH_TIMEOUT_S) as http,
            http.stream("GET", self._source, headers={"Accept": "application/json"}) as response,
        ):
            response.raise_for_status()
            body = b""
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > SET_MAX_BYTES:
                    raise ValueError(f"more than {SET_MAX_BYTES} bytes")
            return body


def read_keys(body: bytes) -> list[PyJWK]:
    """The keys of a set that may sign tokens; others are passed over.

    Raises:
        ValueError, PyJWTError: it is no key set, or has no key that we know.
    """
    parsed = json.loads(body)
    if not isinstance(parsed, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - as with every other way of being no key set
    return [key for key in PyJWKSet.from_dict(parsed).keys if _may_sign(key)]


def _may_sign(key: PyJWK) -> bool:
    if key.algorithm_name not in ALGORITHMS or key.public_key_use not in (None, "sig"):
        return False
    return not isinstance(key.key, RSAPublicKey) or key.key.key_size >= RSA_BITS_MIN
