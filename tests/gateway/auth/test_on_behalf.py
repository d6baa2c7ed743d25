"""The user of a request: named by a header, kept by sessions and tickets, and never by a caller without the right."""

import httpx
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.auth.sessions import SessionCookies
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import OWN_SCOPES, Scope, expand_scopes
from stagebus.shared.store import api_keys
from tests.gateway.conftest import ClientOf, client

HELLO = {"user_prompt": "Hello"}
OWN_PAGE = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}
USER = "Stagebus-User"


@pytest.fixture
async def key(redis: Redis) -> str:
    return (await api_keys.create(redis, tenant="acme", scopes=[Scope.RUNS_OWN, Scope.ON_BEHALF]))[1]


@pytest.fixture
async def backend(client_of: ClientOf) -> httpx.AsyncClient:
    """A client that sees all runs of its tenant and may act for users."""
    return await client_of("acme")


async def test_user_of_a_run_is_shown_and_filters_lists(backend: httpx.AsyncClient) -> None:
    made = [
        await backend.post("/runs", json=HELLO, headers=headers) for headers in ({USER: "alice"}, {USER: "bob"}, {})
    ]
    run_ids = [answer.json()["id"] for answer in made]

    assert [(await backend.get(f"/runs/{run_id}")).json()["user"] for run_id in run_ids] == ["alice", "bob", None]
    listed = (await backend.get("/runs", params={"user": "alice"})).json()["runs"]
    assert [(run["id"], run["user"]) for run in listed] == [(run_ids[0], "alice")]
    assert (await backend.get("/runs", params={"user": "alice", "status": "running"})).json()["runs"] == []
    assert len((await backend.get("/runs")).json()["runs"]) == 3, "without runs:own all runs of the tenant"


async def test_filter_by_another_user_shows_nothing_of_theirs(locked_app: Starlette, key: str) -> None:
    async with client(locked_app, {"Authorization": f"Bearer {key}"}) as caller:
        await caller.post("/runs", json=HELLO, headers={USER: "bob"})
        mine = await caller.get("/runs", params={"user": "bob"}, headers={USER: "alice"})

    assert mine.json() == {"runs": [], "next": None}


@pytest.mark.parametrize("value", [b"", b"a\tb", b"x" * 129, b"\xff", "\x85".encode()])
async def test_header_that_is_no_users_name_is_refused(backend: httpx.AsyncClient, value: bytes) -> None:
    refused = await backend.get("/runs", headers=[(USER.encode(), value)])

    assert (refused.status_code, refused.json()["code"]) == (400, "bad_user")


async def test_two_users_are_refused(backend: httpx.AsyncClient) -> None:
    """A proxy that adds the header must not leave the one of its client."""
    refused = await backend.get("/runs", headers=[(USER, "alice"), (USER, "bob")])

    assert (refused.status_code, refused.json()["code"]) == (400, "bad_user")


async def test_user_is_sent_in_utf8(backend: httpx.AsyncClient) -> None:
    made = await backend.post("/runs", json=HELLO, headers=[(USER.encode(), "Zoë 🙂".encode())])

    assert (await backend.get(made.headers["location"])).json()["user"] == "Zoë 🙂"


async def test_others_may_not_name_a_user(client_of: ClientOf) -> None:
    caller = await client_of("acme", Scope.RUNS_READ, Scope.RUNS_WRITE)
    refused = await caller.get("/runs", headers={USER: "alice"})

    assert (refused.status_code, refused.json()["code"]) == (403, "not_on_behalf")
    assert "scope on_behalf" in refused.json()["detail"]


async def test_open_gateway_takes_the_user_and_confines_nobody(api: httpx.AsyncClient) -> None:
    made = await api.post("/runs", json=HELLO, headers={USER: "alice"})

    assert (await api.get(made.headers["location"])).json()["user"] == "alice"
    assert (await api.post("/session", headers={USER: "alice", **OWN_PAGE})).json()["user"] == "alice"


async def test_session_is_its_users_and_names_no_other(locked_app: Starlette, key: str) -> None:
    """The holder of the cookie must not become another user by a header."""
    async with client(locked_app) as browser:
        bearer = {"Authorization": f"Bearer {key}"}
        theirs = await browser.post("/runs", json=HELLO, headers={**bearer, USER: "bob"})
        signed_in = (await browser.post("/session", headers={**bearer, USER: "alice", **OWN_PAGE})).json()
        mine = (await browser.post("/runs", json=HELLO, headers=OWN_PAGE)).json()["id"]
        seen = (await browser.get("/runs")).json()["runs"]
        foreign = await browser.get(theirs.headers["location"])
        posing = await browser.get("/runs", headers={USER: "bob"})

    assert (signed_in["user"], signed_in["subject"]) == ("alice", f"key:{key.split('_')[1]} for alice")
    assert "on_behalf" not in signed_in["scopes"]
    assert [(run["id"], run["user"]) for run in seen] == [(mine, "alice")]
    assert foreign.json()["code"] == "run_not_found"
    assert posing.json()["code"] == "not_on_behalf"


async def test_ticket_has_the_user_of_who_made_it_and_opens_one_run(locked_app: Starlette, key: str) -> None:
    async with (
        client(locked_app, {"Authorization": f"Bearer {key}", USER: "alice"}) as alice,
        client(locked_app) as guest,
    ):
        runs = [(await alice.post("/runs", json=HELLO)).json()["id"] for _ in range(2)]
        ticket = {"ticket": (await alice.post(f"/runs/{runs[0]}/ticket")).json()["ticket"]}
        opened = [(await guest.get(f"/runs/{run_id}", params=ticket)).status_code for run_id in runs]
        posing = await guest.get(f"/runs/{runs[0]}", params=ticket, headers={USER: "bob"})

    assert opened == [200, 404]
    assert posing.json()["code"] == "not_on_behalf"


async def test_deleted_run_is_gone_for_other_users_at_once(locked_app: Starlette, key: str) -> None:
    """A repeated deletion succeeds for the run's user, and tells another one nothing."""
    async with client(locked_app, {"Authorization": f"Bearer {key}"}) as caller:
        made = await caller.post("/runs", json=HELLO, headers={USER: "alice"})
        codes = [
            (await caller.delete(made.headers["location"], headers={USER: user})).status_code
            for user in ("bob", "alice", "bob", "alice")
        ]

    assert codes == [404, 204, 404, 204]


def test_cookie_grants_an_older_version_no_more_than_own_runs(settings: Settings) -> None:
    """Such a version knows neither scope, so what runs:own includes must not stand in the cookie by name."""
    from pydantic import SecretStr

    cookies = SessionCookies(settings.model_copy(update={"secret": SecretStr("a secret of the tests, long enough")}))
    scopes = expand_scopes(["runs:own", "admin"])
    session = cookies.create(Principal("acme", "jwt:alice", scopes, user="alice"))
    claims = cookies._signer.verify(session.token)

    assert claims is not None
    assert set(claims["scopes"]) == {"runs:own", "admin"}
    assert scopes > OWN_SCOPES
