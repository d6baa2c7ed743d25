"""Signed tokens and key sets with unexpected values give 401 or 503, never 500."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from jwt.algorithms import OKPAlgorithm
from jwt.utils import base64url_encode
from pydantic import SecretStr
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.app import create_app
from stagebus.gateway.auth import jwks
from stagebus.gateway.auth.jwks import JwksCache
from stagebus.shared.access_errors import IssuerUnavailable
from stagebus.shared.config.settings import Settings
from tests.gateway.conftest import SECRET, client

ISSUER, AUDIENCE = "https://login.example/", "stagebus"
PRIVATE = ed25519.Ed25519PrivateKey.generate()
KEY_SET = json.dumps({"keys": [{**OKPAlgorithm.to_jwk(PRIVATE.public_key(), as_dict=True), "kid": "one"}]})
DEEP = "[" * 100_000
DEEP_HEADER = b'{"alg": "EdDSA", "kid": "one", "x": ' + b"[" * 2500 + b"]" * 2500 + b"}"


def sign(payload: bytes, header: dict[str, Any] | None = None) -> str:
    """A JWT of any bytes, validly signed."""
    return jwt.api_jws.encode(payload, PRIVATE, "EdDSA", headers={"kid": "one", **(header or {})})


def payload(**claims: Any) -> bytes:
    known = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 60, "tenant": "acme"}
    return json.dumps(known | claims).encode()


@pytest.fixture
def key_set(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(KEY_SET)
    return path


@pytest.fixture
async def jwt_app(redis: Redis, settings: Settings, key_set: Path) -> AsyncIterator[Starlette]:
    """The gateway, started, for holders of the issuer's tokens."""
    changes = {"auth": "jwt", "jwt_jwks": str(key_set), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    app = create_app(settings.model_copy(update={**changes, "secret": SecretStr(SECRET)}))
    async with app.router.lifespan_context(app):
        yield app


async def ask(app: Starlette, token: str) -> httpx.Response:
    async with client(app) as api:
        response = await api.get("/session", headers={"Authorization": f"Bearer {token}"})
        if response.status_code == 200:
            made = await api.post("/session", headers={"Authorization": f"Bearer {token}"})
            assert made.status_code == 200
    return response


async def test_jwt_with_ordinary_claims_is_accepted(jwt_app: Starlette) -> None:
    assert (await ask(jwt_app, sign(payload()))).json()["subject"] == "jwt:alice"
    assert (await ask(jwt_app, sign(payload(exp=int(time.time()) + 10 * 365 * 86400)))).status_code == 200


@pytest.mark.parametrize(
    "claims",
    [*({"exp": exp} for exp in (1e18, 1e300, 10**400, float("inf"), float("nan"), "9" * 30, [], True)),
     *({"nbf": nbf} for nbf in (1e18, float("inf"), [])),
     {"sub": "\ud800"}, {"sub": "a" * 127 + "\ud800b"}, {"sub": {}}, {"tenant": "\ud800"}, {"aud": ["\ud800"]},
     {"iss": "\ud800"}, {"iss": []}],
    ids=lambda claims: str(claims).encode("ascii", "replace").decode()[:40],
)  # fmt: skip
async def test_jwt_with_a_claim_out_of_range_gives_401(jwt_app: Starlette, claims: dict[str, Any]) -> None:
    refused = await ask(jwt_app, sign(payload(**claims)))

    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize(
    "token",
    [sign(b"[1]"), sign(b"7"), sign(b"\xff\xfe"), sign(b""), sign(b'{"x": ' + b"[" * 3000 + b"]" * 3000 + b"}"),
     sign(b'{"x": ' + b"9" * 5000 + b"}"), sign(payload(), {"kid": "\ud800"}), sign(payload(), {"crit": ["x"]}),
     f"{base64url_encode(DEEP_HEADER).decode()}.{sign(payload()).partition('.')[2]}", ".".join(["eyJ4Ijpb" * 300] * 3)],
    ids=range(10),
)  # fmt: skip
async def test_malformed_jwt_gives_401(jwt_app: Starlette, token: str) -> None:
    refused = await ask(jwt_app, token)

    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize("scope", ["\ud800 runs:read", ["\ud800", 7, "runs:read"], {"runs:read": 1}, 1e400])
async def test_jwt_scopes_that_are_unknown_are_ignored(jwt_app: Starlette, scope: Any) -> None:
    accepted = await ask(jwt_app, sign(payload(scope=scope)))

    assert accepted.status_code == 200
    assert set(accepted.json()["scopes"]) <= {"runs:read"}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"7", b'{"keys": []}', b'{"keys": 7}', b'{"keys": {"kty": "RSA"}}', b"\xff", b'{"keys": [{}]}',
     DEEP.encode(), f'{{"keys": {DEEP}'.encode(), b'{"keys": [[[[]]]]}', b'{"keys": [' + b"9" * 5000 + b"]}",
     b'{"keys": [{"kty": "RSA", "n": 5, "e": []}]}', b'{"keys": [{"kty": ["RSA"], "kid": "one"}]}'],
    ids=lambda body: body[:30].decode(errors="replace"),
)  # fmt: skip
async def test_malformed_key_set_gives_503(jwt_app: Starlette, key_set: Path, body: bytes) -> None:
    key_set.write_bytes(body)  # noqa: ASYNC240 - a small file
    refused = await ask(jwt_app, sign(payload()))

    assert (refused.status_code, refused.json()["code"]) == (503, "issuer_unavailable")


@asynccontextmanager
async def issuer(serve: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[JwksCache]:
    """The cache of an issuer that reads each request and then writes as the test says, until the client is gone."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError):
            await serve(writer)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server, asyncio.timeout(10):
        yield JwksCache(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json")
        await asyncio.gather(*(task for task in tasks if task))


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
async def test_jwks_fetch_is_bounded_when_bytes_drip(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is for the whole fetch, of headers and body: each byte comes well within a socket's time-out."""
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.3)
    connections = 0

    async def drip(writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(head)
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.05)  # the issuer's pace

    async with issuer(drip) as cache:
        refusals = await asyncio.gather(*(cache.find(f"key {n}") for n in range(20)), return_exceptions=True)

    assert {type(refusal) for refusal in refusals} == {IssuerUnavailable}
    assert connections == 1, "one fetch for all that wait"


@pytest.mark.parametrize("headers", [b"", b"Content-Encoding: gzip\r\n"])
async def test_jwks_response_over_the_limit_is_refused(headers: bytes) -> None:
    sent = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n")
        while sent < 64 * jwks.SET_MAX_BYTES:
            writer.write(b" " * 65536)
            sent += 65536
            await writer.drain()

    async with issuer(flood) as cache:
        with pytest.raises(IssuerUnavailable):
            await cache.find("one")

    assert sent < 64 * jwks.SET_MAX_BYTES, "the connection is closed early"
