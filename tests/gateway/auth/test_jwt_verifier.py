"""JWTs of an issuer: the checks on tokens, and the cache of the issuer's keys."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from stagebus.gateway.auth import jwks
from stagebus.gateway.auth.jwks import FETCH_INTERVAL_S, SET_TTL_S, JwksCache, parse_keys
from stagebus.gateway.auth.jwt_verifier import JwtVerifier
from stagebus.shared.access_errors import IssuerUnavailable, Unauthenticated
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import OWN_SCOPES, RunOwner, Scope, is_user
from tests.support.fake_gateway import Answer, FakeGateway
from tests.support.fake_time import FakeTime

ISSUER, AUDIENCE = "https://login.example/", "stagebus"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PRIVATE = {"RS256": RSA, "ES256": EC, "EdDSA": ED}
MAKERS = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


def public(alg: str, kid: str, **more: Any) -> dict[str, Any]:
    made = MAKERS[alg].to_jwk(PRIVATE[alg].public_key(), as_dict=True)
    return {**made, "kid": kid, "use": "sig", **more}


def claims(**more: Any) -> dict[str, Any]:
    made = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 60, "tenant": "acme",
            "scope": "runs:read runs:write openid"} | more  # fmt: skip
    return {name: value for name, value in made.items() if value is not None}


def token(alg: str = "RS256", kid: str | None = "RS256", key: Any = None, **more: Any) -> str:
    return jwt.encode(claims(**more), key or PRIVATE[alg], alg, headers={} if kid is None else {"kid": kid})


@pytest.fixture
def key_set(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [public(alg, alg) for alg in PRIVATE]}))
    return path


@pytest.fixture
def verifier(key_set: Path) -> JwtVerifier:
    return JwtVerifier(Settings(auth="jwt", jwt_jwks=str(key_set), jwt_issuer=ISSUER, jwt_audience=AUDIENCE))


@pytest.mark.parametrize("alg", PRIVATE)
async def test_jwt_gives_tenant_subject_scopes_and_expiry(verifier: JwtVerifier, alg: str) -> None:
    principal = await verifier.verify(token(alg, alg))

    assert (principal.tenant, principal.subject) == ("acme", "jwt:alice")
    assert principal.scopes == {Scope.RUNS_READ, Scope.RUNS_WRITE}, "unknown scopes are ignored"
    assert principal.expires_at == pytest.approx(time.time() + 60, abs=5)


@pytest.mark.parametrize(
    ("subject", "user"),
    [("alice", "alice"), ("", ""), ("x" * 128, "x" * 128), ("auth0|Zoë 1", "auth0|Zoë 1")],
)
async def test_user_is_the_subject(verifier: JwtVerifier, subject: str, user: str) -> None:
    assert (await verifier.verify(token(sub=subject))).user == user


async def test_subjects_that_are_no_names_of_users_stay_different(verifier: JwtVerifier) -> None:
    """A shorter form would make them one user."""
    subjects = ["x" * 129, "x" * 129 + "y", "a\nb", "a\n"]
    users = [(await verifier.verify(token(sub=subject))).user for subject in subjects]

    assert len(set(users)) == len(subjects)
    assert all(is_user(user) for user in users)


async def test_own_scope_of_a_jwt_confines_it_whatever_else_it_has(verifier: JwtVerifier) -> None:
    principal = await verifier.verify(token(scope="runs:own runs:read"))

    assert principal.owner == RunOwner("acme", "alice")
    assert principal.scopes > OWN_SCOPES


async def test_jwt_claim_names_come_from_the_settings(key_set: Path) -> None:
    settings = Settings(jwt_jwks=str(key_set), jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_tenant_claim="org",
                        jwt_scopes_claim="permissions")  # fmt: skip
    principal = await JwtVerifier(settings).verify(token(org="umbrella", permissions=["approvals", 7, "x"]))

    assert (principal.tenant, principal.scopes) == ("umbrella", {Scope.APPROVALS})


PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def confused() -> str:
    """Returns a token signed with the public key as if it were a shared secret (algorithm confusion)."""
    import base64
    import hmac

    def encode(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head = encode(json.dumps({"alg": "HS256", "kid": "RS256"}).encode())
    body = encode(json.dumps(claims()).encode())
    return f"{head}.{body}.{encode(hmac.digest(PEM, f'{head}.{body}'.encode(), 'sha256'))}"


OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: token(exp=time.time() - 60), "expired"),
        (lambda: token(exp=None), "no exp"),
        (lambda: token(nbf=time.time() + 60), "not valid yet"),
        (lambda: token(iss="https://evil.example/"), "another issuer"),
        (lambda: token(iss=None), "no iss"),
        (lambda: token(aud="others"), "another audience"),
        (lambda: token(aud=None), "no aud"),
        (lambda: token(sub=None), "no sub"),
        (lambda: token(sub=7), "no JWT"),
        (lambda: token(tenant=None), "no tenant"),
        (lambda: token(tenant="a:b"), "no tenant"),
        (lambda: token(tenant=["acme"]), "no tenant"),
        (lambda: token(key=OTHER), "signature"),
        (lambda: token("ES256", "RS256"), "signature"),
        (lambda: jwt.encode(claims(), None, "none", headers={"kid": "RS256"}), "signature"),
        (confused, "signature"),
        (lambda: token("RS256", "RS256")[:-4] + "AAAA", "signature"),
        (lambda: token(kid="unknown"), "does not publish"),
        (lambda: token(kid=None), "does not publish"),
        (lambda: jwt.encode(claims(), RSA, "RS512", headers={"kid": "RS256"}), "signature"),
        (lambda: "x.y.z", "no JWT"),
        (lambda: "é", "no JWT"),
    ],
)
async def test_invalid_jwt_is_refused_with_the_reason(verifier: JwtVerifier, make: Any, reason: str) -> None:
    with pytest.raises(Unauthenticated, match=reason):
        await verifier.verify(make())


def test_jwks_skips_weak_symmetric_and_foreign_keys() -> None:
    weak = RSAAlgorithm.to_jwk(
        rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key(), as_dict=True
    )
    keys = [
        public("RS256", "good"),
        public("RS256", "other-use", use="enc"),
        {**public("RS256", "other-alg"), "alg": "RS512"},
        {**public("RS256", "symmetric-alg"), "alg": "HS256"},
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"},
        {**weak, "kid": "weak"},
        {"kty": "RSA"},
        "junk",
    ]

    assert [key.key_id for key in parse_keys(json.dumps({"keys": keys}).encode())] == ["good"]


@pytest.fixture
def jwks_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(jwks, "time", fake)
    return fake


async def test_jwks_key_rotation_over_http(jwks_time: FakeTime) -> None:
    """A token with an unknown key causes a fetch: one for all that wait, and at most one per interval."""
    published, fetches = [public("RS256", "old")], []

    def answer(_: Any) -> Answer:
        fetches.append(jwks_time.now)
        return Answer(json.dumps({"keys": published}).encode())

    async with FakeGateway(answer) as issuer:
        cache = JwksCache(f"{issuer.url}/jwks.json")
        await asyncio.gather(*(cache.find("old") for _ in range(20)))
        assert len(fetches) == 1
        published[:] = [public("ES256", "new")]
        for _ in range(20):
            with pytest.raises(Unauthenticated):
                await cache.find("new")
        assert len(fetches) == 1, "the last fetch was less than an interval ago"
        jwks_time.now += FETCH_INTERVAL_S
        assert (await cache.find("new")).key_id == "new"
        with pytest.raises(Unauthenticated):
            await cache.find("old")
        assert len(fetches) == 2
        jwks_time.now += SET_TTL_S + 1
        published[:] = [public("EdDSA", "newer")]
        assert (await cache.find("new")).key_id == "new", "a known key does not wait for the fetch"
        assert cache._fetch is not None
        await cache._fetch
        assert (await cache.find("newer")).key_id == "newer"


async def test_jwks_keeps_known_keys_while_the_issuer_is_down(jwks_time: FakeTime, key_set: Path) -> None:
    cache = JwksCache(str(key_set))
    await cache.find("RS256")
    hidden = key_set.rename(key_set.with_suffix(".away"))  # noqa: ASYNC240 - a rename is quick
    jwks_time.now += FETCH_INTERVAL_S
    with pytest.raises(IssuerUnavailable):
        await cache.find("new")
    assert (await cache.find("RS256")).key_id == "RS256", "the last key set stays in use"
    hidden.rename(key_set)
    jwks_time.now += FETCH_INTERVAL_S
    with pytest.raises(Unauthenticated):
        await cache.find("new")
