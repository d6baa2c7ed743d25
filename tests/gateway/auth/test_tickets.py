"""Tickets over the API: access to one run, expiry, revocation, and that no log contains them."""

import asyncio
import logging

import httpx
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.auth import api_key_cache, revocations
from stagebus.gateway.auth.revocations import Revocations
from stagebus.gateway.auth.tickets import take_from_query
from stagebus.shared.domain.ids import new_run_id
from stagebus.shared.domain.tenants import TENANT_WIDE, RunOwner, Scope
from stagebus.shared.log import sse
from stagebus.shared.observability.logging import JsonFormatter
from stagebus.shared.runtime import signing
from stagebus.shared.storage import keys
from stagebus.shared.store import api_keys, revoked_tickets
from tests.gateway.conftest import ClientOf, client
from tests.support.fake_time import FakeTime
from tests.support.redis_calls import calls
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until

HELLO = {"user_prompt": "Hello"}
JSON = {"Accept": "application/json"}


@pytest.fixture
async def mine(client_of: ClientOf) -> httpx.AsyncClient:
    return await client_of("acme")


@pytest.fixture
async def run_id(mine: httpx.AsyncClient) -> str:
    """A run that has ended, so that its stream ends."""
    run_id = str((await mine.post("/runs", json=HELLO)).json()["id"])
    await mine.post(f"/runs/{run_id}/cancel")
    return run_id


async def test_ticket_gives_access_to_its_run_only(locked_app: Starlette, mine: httpx.AsyncClient, run_id: str) -> None:
    made = (await mine.post(f"/runs/{run_id}/ticket")).json()
    other = (await mine.post("/runs", json=HELLO)).json()["id"]
    async with client(locked_app) as guest:
        stream = await guest.get(made["links"]["events"])
        assert [frame.event for frame in sse.decode(stream.content)] == ["run_queued", "cancel"]
        params = {"ticket": made["ticket"]}
        assert (await guest.get(f"/runs/{run_id}", params=params)).json()["id"] == run_id
        stage = await guest.get(f"/runs/{run_id}/stages/run/events", params=params, headers=JSON)
        assert len(stage.json()["events"]) == 2
        refused = await guest.get(f"/runs/{other}", params=params)
        assert (refused.status_code, refused.json()["code"]) == (404, "run_not_found")
        for method, path in (("GET", "/runs"), ("POST", "/runs"), ("POST", f"/runs/{run_id}/cancel"),
                             ("POST", f"/runs/{run_id}/ticket"), ("GET", "/session")):  # fmt: skip
            assert (await guest.request(method, path, params=params)).status_code == 401


async def test_ticket_cannot_be_made_for_a_run_of_another_tenant(
    client_of: ClientOf, mine: httpx.AsyncClient, run_id: str
) -> None:
    other = await client_of("umbrella")
    for asked in (run_id, new_run_id(), "x"):
        refused = await other.post(f"/runs/{asked}/ticket")
        assert (refused.status_code, refused.json()["code"]) == (404, "run_not_found")


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 200), ({"ttl_s": 10}, 200), ({"share": True}, 200), ({"share": True, "ttl_s": 604800}, 200),
     ({"ttl_s": 9}, 422), ({"ttl_s": 604801}, 422), ({"ttl_s": "60"}, 422), ({"for": "ever"}, 422)],
)  # fmt: skip
async def test_ticket_ttl_is_validated(
    mine: httpx.AsyncClient, run_id: str, body: dict[str, object], status: int
) -> None:
    assert (await mine.post(f"/runs/{run_id}/ticket", json=body)).status_code == status


async def test_expired_ticket_is_refused(
    locked_app: Starlette, mine: httpx.AsyncClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "expiry", lambda ttl_s, *_: 1000.0)
    monkeypatch.setattr("stagebus.gateway.auth.tickets.expiry", lambda ttl_s, *_: 1000.0)
    link = (await mine.post(f"/runs/{run_id}/ticket")).json()["links"]["events"]
    async with client(locked_app) as guest:
        assert (await guest.get(link)).status_code == 401


async def test_ticket_ends_with_the_key_that_it_was_made_with(
    locked_app: Starlette, redis: Redis, run_id: str, cache_time: FakeTime
) -> None:
    record, key = await api_keys.create(redis, tenant="acme", scopes=TENANT_WIDE)
    async with client(locked_app) as guest:
        made = await guest.post(f"/runs/{run_id}/ticket", headers={"Authorization": f"Bearer {key}"})
        link = made.json()["links"]["events"]
        assert (await guest.get(link)).status_code == 200
        await api_keys.revoke(redis, record.key_id)
        cache_time.now += api_key_cache.CACHE_TTL_S
        assert (await guest.get(link)).status_code == 401


async def test_revoked_ticket_is_refused_and_others_stay_valid(
    locked_app: Starlette, mine: httpx.AsyncClient, client_of: ClientOf, redis: Redis, run_id: str
) -> None:
    first, second = [(await mine.post(f"/runs/{run_id}/ticket", json={"share": True})).json() for _ in range(2)]
    url = f"/runs/{run_id}/ticket/{first['id']}"
    stranger, holder = await client_of("umbrella"), {"ticket": second["ticket"]}
    async with client(locked_app) as guest:
        assert (await guest.get(first["links"]["events"])).status_code == 200
        assert (await stranger.delete(url)).status_code == 404
        assert (await guest.delete(url, params=holder)).status_code == 401, "a ticket cannot revoke tickets"
        assert [(await mine.delete(url)).status_code for _ in range(2)] == [204, 204]
        refused = await guest.get(first["links"]["events"])
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        assert (await guest.get(f"/runs/{run_id}", params={"ticket": first["ticket"]})).status_code == 401
        assert (await guest.get(second["links"]["events"])).status_code == 200
    assert await redis.hget(keys.run(run_id), "revoked") == first["id"].encode()
    assert (await mine.delete(f"/runs/{new_run_id()}/ticket/{first['id']}")).status_code == 404


@pytest.mark.parametrize("ticket_id", ["x", "0" * 31, "0" * 33, "G" * 32, "%20" * 32, "0" * 32 + "%0a"])
async def test_malformed_ticket_id_is_refused(mine: httpx.AsyncClient, run_id: str, ticket_id: str) -> None:
    assert (await mine.delete(f"/runs/{run_id}/ticket/{ticket_id}")).status_code in (422, 404)


async def test_open_stream_ends_when_its_ticket_is_revoked(locked_app: Starlette, mine: httpx.AsyncClient) -> None:
    run_id = (await mine.post("/runs", json=HELLO)).json()["id"]
    made = (await mine.post(f"/runs/{run_id}/ticket")).json()
    async with client(locked_app) as guest, asyncio.timeout(10):
        reading = asyncio.create_task(guest.get(made["links"]["events"]))
        await until(lambda: locked_app.state.gateway.auth.credential_monitor.watched)
        await mine.delete(f"/runs/{run_id}/ticket/{made['id']}")
        response = await reading

    assert "cancel" not in response.text
    assert (await mine.get(f"/runs/{run_id}")).json()["status"] == "queued"


async def test_made_up_ticket_ids_are_refused_and_fill_nothing(
    mine: httpx.AsyncClient, redis: Redis, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only ids that a gateway issued for this run can be revoked."""
    monkeypatch.setattr(revoked_tickets, "REVOKED_MAX", 2)
    made = (await mine.post(f"/runs/{run_id}/ticket")).json()
    other_run = (await mine.post("/runs", json=HELLO)).json()["id"]
    made_up = [f"{n:032x}" for n in range(4)] + [made["id"][:16] + "0" * 16]
    answers = [await mine.delete(f"/runs/{run_id}/ticket/{ticket_id}") for ticket_id in made_up]
    answers.append(await mine.delete(f"/runs/{other_run}/ticket/{made['id']}"))

    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(422, "invalid_request")}
    assert await redis.hget(keys.run(run_id), "revoked") is None
    assert (await mine.delete(f"/runs/{run_id}/ticket/{made['id']}")).status_code == 204


async def test_key_that_revokes_too_many_tickets_does_not_keep_others_from_revoking(
    mine: httpx.AsyncClient, client_of: ClientOf, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each key has its own number per run. The first tickets stay revoked."""
    monkeypatch.setattr(revoked_tickets, "REVOKED_MAX", 2)
    reader = await client_of("acme", Scope.RUNS_READ)
    made = [(await reader.post(f"/runs/{run_id}/ticket")).json()["id"] for _ in range(3)]
    answers = [await reader.delete(f"/runs/{run_id}/ticket/{made[n]}") for n in (0, 1, 2, 0)]

    assert [answer.status_code for answer in answers] == [204, 204, 409, 204]
    assert answers[2].json()["code"] == "too_many_revoked"
    assert (await mine.delete(f"/runs/{run_id}/ticket/{made[2]}")).status_code == 204


async def test_ticket_revoked_elsewhere_is_valid_until_the_cache_expires(
    redis: Redis, run: RunByHand, cache_time: FakeTime
) -> None:
    local, remote = Revocations(redis), Revocations(redis)
    assert not await remote.is_revoked(run.run_id, "one")
    await local.revoke(run.run_id, RunOwner("default"), "one", by="key:a")
    before = (await calls(redis))["hmget"]
    assert await local.is_revoked(run.run_id, "one")
    assert not await remote.is_revoked(run.run_id, "one")
    assert (await calls(redis))["hmget"] - before == 1, "a request costs at most one look-up"
    cache_time.now += revocations.CACHE_TTL_S
    assert await remote.is_revoked(run.run_id, "one")


async def test_forged_ticket_is_refused(locked_app: Starlette, mine: httpx.AsyncClient, run_id: str) -> None:
    ticket = (await mine.post(f"/runs/{run_id}/ticket")).json()["ticket"]
    head, body, signature = ticket.split(".")
    unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"  # {"alg":"none","typ":"JWT"}
    forged = [f"{unsigned}.{body}.", f"{head}.{body}.{signature[:-2]}AA", f"{head}.{body}", "x", "", "é", "x" * 9000]
    async with client(locked_app) as guest:
        for text in forged:
            assert (await guest.get(f"/runs/{run_id}", params={"ticket": text})).status_code == 401
        guest.cookies.set("stagebus", ticket)
        assert (await guest.get("/runs")).status_code == 401, "a ticket is not accepted as a session"


async def test_ticket_appears_in_no_log(
    locked_app: Starlette, mine: httpx.AsyncClient, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    caplog.set_level(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the test client's own
    made = (await mine.post(f"/runs/{run_id}/ticket", json={"share": True})).json()
    async with client(locked_app) as guest:
        for path in (made["links"]["events"], f"/nowhere?ticket={made['ticket']}", f"/runs/x?ticket={made['ticket']}"):
            response = await guest.get(path)
            assert made["ticket"] not in response.text + str(response.headers)
    assert made["ticket"] not in caplog.text
    assert made["links"]["page"].startswith(f"/?run={run_id}#ticket="), "browsers do not send the fragment"
    assert f'"run": "{run_id}"' in next(line for line in caplog.text.splitlines() if "ticket.create" in line)


@pytest.mark.parametrize(
    ("query", "rest", "ticket"),
    [
        (b"", b"", None),
        (b"limit=5", b"limit=5", None),
        (b"ticket=a.b", b"", "a.b"),
        (b"limit=5&ticket=a%2Eb&chunks=full", b"limit=5&chunks=full", "a.b"),
        (b"%74icket=a", b"", "a"),
        (b"ticket=a&ticket=b", b"", "b"),
        (b"xticket=a&&=", b"xticket=a&&=", None),
        (b"ticket=%ff\xff", b"", "\ufffd\xff"),
    ],
)
def test_ticket_is_removed_from_the_query(query: bytes, rest: bytes, ticket: str | None) -> None:
    """Servers such as uvicorn log the query."""
    scope = {"query_string": query}
    take_from_query(scope)

    assert scope["query_string"] == rest
    assert scope.get("state", {}).get("ticket") == ticket
