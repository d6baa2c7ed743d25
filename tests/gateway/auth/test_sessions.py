"""Sessions: login, logout, CSRF protection and the cookie's attributes."""

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.app import create_app
from stagebus.gateway.auth.api_key_cache import CACHE_TTL_S
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.store import api_keys
from tests.gateway.conftest import SECRET, client
from tests.support.fake_time import FakeTime

HELLO = {"user_prompt": "Hello"}
OWN_PAGE = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}


@pytest.fixture
async def key(redis: Redis) -> str:
    return (await api_keys.create(redis, tenant="acme", scopes=[Scope.RUNS_WRITE, Scope.RUNS_READ]))[1]


async def sign_in(browser: httpx.AsyncClient, key: str, **headers: str) -> httpx.Response:
    return await browser.post("/session", headers={"Authorization": f"Bearer {key}", **OWN_PAGE, **headers})


async def test_session_lasts_from_login_to_logout(locked_app: Starlette, key: str) -> None:
    async with client(locked_app) as browser:
        signed_in = await sign_in(browser, key)
        cookie = signed_in.headers["set-cookie"]
        assert signed_in.json()["tenant"] == "acme"
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert key not in str(signed_in.headers)
        assert signed_in.headers["content-length"] == str(len(signed_in.content)), "servers enforce it"
        assert (await browser.get("/session")).json() == signed_in.json()
        created = await browser.post("/runs", json=HELLO, headers=OWN_PAGE)
        assert created.status_code == 202
        assert (await browser.get(created.headers["location"])).json()["status"] == "queued"
        refused = await browser.post(f"{created.headers['location']}/cancel", headers=OWN_PAGE)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), (
            "a session has the scopes of its key"
        )
        assert (await browser.delete("/session", headers=OWN_PAGE)).status_code == 204
        assert (await browser.get("/runs")).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
     {"Sec-Fetch-Site": "same-site", "Origin": "http://sub.localhost"}, {"Sec-Fetch-Site": "none"}],
)  # fmt: skip
async def test_session_cookie_allows_changes_only_from_the_same_origin(
    locked_app: Starlette, key: str, headers: dict[str, str]
) -> None:
    async with client(locked_app) as browser:
        await sign_in(browser, key)
        response = await browser.post("/runs", json=HELLO, headers=headers)

    assert (response.status_code, response.json()["code"]) == (403, "cross_site")


async def test_session_cannot_be_started_or_ended_from_another_site(locked_app: Starlette, key: str) -> None:
    async with client(locked_app) as browser:
        foreign = await sign_in(browser, key, **{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["code"]) == (403, "cross_site")
        await sign_in(browser, key)
        out = await browser.delete("/session", headers={"Origin": "https://evil.example"})
        assert (out.status_code, out.json()["code"]) == (403, "cross_site")
        assert (await browser.get("/runs")).status_code == 200


async def test_session_cookie_is_secure_over_tls(locked_app: Starlette, key: str) -> None:
    """Behind a proxy that terminates TLS, the browser's Origin shows the scheme."""
    async with client(locked_app) as browser:
        response = await sign_in(browser, key, Origin="https://localhost")

    cookie = response.headers["set-cookie"]
    assert cookie.startswith("__Host-stagebus=")
    assert "Secure" in cookie
    assert "Path=/" in cookie
    assert "Domain" not in cookie


async def test_session_ends_with_its_key_and_cannot_renew_itself(
    locked_app: Starlette, redis: Redis, key: str, cache_time: FakeTime
) -> None:
    async with client(locked_app) as browser:
        await sign_in(browser, key)
        again = await browser.post("/session", headers=OWN_PAGE)
        assert again.status_code == 401, "a session does not renew itself"
        await api_keys.revoke(redis, key.split("_")[1])
        cache_time.now += CACHE_TTL_S
        assert (await browser.get("/runs")).status_code == 401


async def test_session_cookie_does_not_replace_a_bad_key(locked_app: Starlette, key: str) -> None:
    async with client(locked_app) as browser:
        await sign_in(browser, key)
        response = await browser.get("/runs", headers={"Authorization": f"Bearer {key[:-1]}~"})

    assert response.status_code == 401


async def test_open_gateway_sets_no_session_cookie(api: httpx.AsyncClient) -> None:
    response = await api.post("/session")

    assert (response.status_code, response.json()["subject"]) == (200, "anyone")
    assert "set-cookie" not in response.headers


async def test_copied_cookie_does_not_outlive_the_logout(
    locked_app: Starlette, redis: Redis, settings: Settings, key: str, cache_time: FakeTime
) -> None:
    """At this gateway immediately, at another one when its cached entry has expired."""
    other_app = create_app(settings.model_copy(update={"auth": "keys", "secret": SecretStr(SECRET)}))
    async with client(locked_app) as browser, other_app.router.lifespan_context(other_app), client(other_app) as other:
        await sign_in(browser, key)
        cookie = {"Cookie": f"stagebus={browser.cookies['stagebus']}"}
        assert (await other.get("/runs", headers=cookie)).status_code == 200
        assert (await browser.delete("/session", headers=OWN_PAGE)).status_code == 204
        assert (await browser.get("/runs", headers=cookie)).status_code == 401
        cache_time.now += CACHE_TTL_S
        assert (await other.get("/runs", headers=cookie)).status_code == 401
    (revoked,) = await redis.keys("sb:session:*")

    assert 0 < await redis.ttl(revoked) <= settings.session_ttl_s


async def test_logout_ends_no_other_session_of_the_key(locked_app: Starlette, key: str) -> None:
    async with client(locked_app) as browser, client(locked_app) as other:
        await sign_in(browser, key)
        await sign_in(other, key)
        await browser.delete("/session", headers=OWN_PAGE)
        assert (await other.get("/runs")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Proto": "https"},
        {"Origin": "https://localhost"},
        {"Host": "bus.example", "Sec-Fetch-Site": "none"},
    ],
)
async def test_cookie_without_its_prefix_is_not_accepted_over_tls(
    locked_app: Starlette, key: str, headers: dict[str, str]
) -> None:
    """A page of a sibling host, or a response without TLS, can plant it."""
    async with client(locked_app) as browser:
        await sign_in(browser, key)
        token = browser.cookies["stagebus"]
        browser.cookies.clear()
        planted = await browser.get("/runs", headers={"Cookie": f"stagebus={token}", **headers})
        own = await browser.get("/runs", headers={"Cookie": f"__Host-stagebus={token}", **headers})

    assert (planted.status_code, own.status_code) == (401, 200)
