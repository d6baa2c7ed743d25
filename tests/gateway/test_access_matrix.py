"""Access control as a matrix: every route, and another tenant, another user, no user and a ticket for another run.

A route is declared below by what it names; a route that is not declared fails the first test. A missing key or scope is
tested over all routes in tests/gateway/api/test_guard.py.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.api.endpoint import Endpoint
from stagebus.gateway.endpoint_table import ENDPOINTS
from stagebus.shared.domain.ids import new_run_id
from stagebus.shared.domain.tenants import OWN_SCOPES, TENANT_WIDE, Scope
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.storage import keys
from stagebus.shared.store import api_keys
from tests.gateway.conftest import client
from tests.support.waiting import until

Json = dict[str, Any]

MESSAGES: Final = [{"role": "user", "content": "Hello"}]
UI_MESSAGES: Final = [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]

# Routes that name one run, with a body that is valid.
OF_A_RUN: Final[dict[str, Json | None]] = {
    "get_run": None,
    "cancel_run": {"reason": "why"},
    "delete_run": None,
    "stream_run": None,
    "stream_stage": None,
    "explain_run_of_tenant": None,
    "export_run": None,
    "decide_call": {"decision": "approve"},
    "give_result": {"content": "Mild."},
    "claim_call": {"holder": "tab"},
    "create_ticket": {},
    "revoke_ticket": None,
    "get_response": None,
    "cancel_response": None,
    "resume_chat": None,
    "stop_chat": None,
    "read_durable_run": None,
    "read_durable_stage": None,
}
# Routes that create a run, with a body that is equal for all callers.
CREATING: Final[dict[str, Json]] = {
    "create_run": {"messages": MESSAGES},
    "create_response": {"input": "Hello"},
    "create_completion": {"messages": MESSAGES},
    "post_chat": {"id": "chat", "messages": UI_MESSAGES},
    "run_agent": {"threadId": "t", "runId": "r", "messages": [{"id": "m", **MESSAGES[0]}]},
}
# Routes that name one thread, with a body that is valid.
OF_A_THREAD: Final[dict[str, Json | None]] = {
    "get_thread": None,
    "change_thread": {"title": "mine"},
    "delete_thread": None,
    "stream_thread": None,
    "create_thread_ticket": {},
    "revoke_thread_ticket": None,
}
# Routes that show several runs, with their query.
LISTING: Final[dict[str, Json]] = {"list_runs": {}, "stream_runs": {"last_event_id": "0"}, "list_threads": {}}
# Routes that show nothing of runs.
WITHOUT_RUNS: Final = {
    "list_openai_models", "create_session", "get_session", "list_tools", "list_models", "get_metrics", "get_stats",
    "list_deliveries", "resend_delivery",
}  # fmt: skip

ROUTES: Final = {endpoint.name: endpoint for endpoint in ENDPOINTS if not endpoint.guard.is_public}
# Parameters of paths that name a run.
RUN_NAMES: Final = ("{run_id}", "{chat_id}")


def test_every_route_is_declared_once() -> None:
    declared = [*OF_A_RUN, *OF_A_THREAD, *CREATING, *LISTING, *WITHOUT_RUNS]

    assert sorted(declared) == sorted(ROUTES), "declare a new route above, by what it names"


def test_declarations_fit_the_routes() -> None:
    for name, endpoint in ROUTES.items():
        assert (name in OF_A_RUN) == any(parameter in endpoint.path_template for parameter in RUN_NAMES), name
        assert (name in OF_A_THREAD) == ("{thread_id}" in endpoint.path_template), name
        if endpoint.guard.scope in OWN_SCOPES:
            assert name not in WITHOUT_RUNS, f"{name} needs a scope of runs"


@dataclass
class People:
    """Callers of one gateway. Alice and Bob have the same key, of tenant acme, and see their own runs only."""

    alice: httpx.AsyncClient
    bob: httpx.AsyncClient
    no_user: httpx.AsyncClient
    other_tenant: httpx.AsyncClient
    guest: httpx.AsyncClient

    async def new_run(self, thread_id: str | None = None) -> str:
        """Returns a run of Alice that has ended, so that its streams end."""
        body = {"messages": MESSAGES, "thread_id": thread_id}
        run_id: str = (await self.alice.post("/runs", json=body)).json()["id"]
        await self.alice.post(f"/runs/{run_id}/cancel")
        return run_id


@pytest.fixture
async def people(locked_app: Starlette, redis: Redis) -> AsyncIterator[People]:
    _, own = await api_keys.create(redis, tenant="acme", scopes=[Scope.RUNS_OWN, Scope.ON_BEHALF])
    _, other = await api_keys.create(redis, tenant="umbrella", scopes=TENANT_WIDE)
    bearer = {"Authorization": f"Bearer {own}"}
    async with AsyncExitStack() as stack:
        callers: list[dict[str, str]] = [
            {**bearer, "Stagebus-User": "alice"}, {**bearer, "Stagebus-User": "bob"}, bearer,
            {"Authorization": f"Bearer {other}"}, {},
        ]  # fmt: skip
        yield People(*[await stack.enter_async_context(client(locked_app, headers)) for headers in callers])


async def ask(
    caller: httpx.AsyncClient, endpoint: Endpoint, run_id: str, ticket_id: str = "0" * 32, **params: str
) -> httpx.Response:
    names = {"stage_id": "run", "call_id": "c", "ticket_id": ticket_id, "chat_id": run_id}
    url = endpoint.path_template.format(run_id=endpoint.guard.run_prefix + run_id, **names)
    headers = {"Accept": "application/json"}
    return await caller.request(endpoint.method, url, json=OF_A_RUN[endpoint.name], params=params, headers=headers)


def code_of(response: httpx.Response) -> str:
    """Returns the error's code, in the format of the route; empty if there is none."""
    body = response.json() if "json" in response.headers.get("content-type", "") and response.is_error else {}
    return str(body.get("error", body).get("code", ""))


@pytest.mark.parametrize("name", OF_A_RUN)
async def test_run_exists_for_its_user_only(people: People, redis: Redis, name: str) -> None:
    """All others get the answer for a run that does not exist, and change nothing."""
    endpoint, run_id, none = ROUTES[name], await people.new_run(), new_run_id()
    ticket_id = (await people.alice.post(f"/runs/{run_id}/ticket")).json()["id"]
    before = await redis.hgetall(keys.run(run_id))  # type: ignore[misc]

    for stranger in (people.bob, people.other_tenant):
        foreign, missing = [await ask(stranger, endpoint, named, ticket_id) for named in (run_id, none)]
        assert foreign.status_code == missing.status_code
        assert foreign.text.replace(run_id, none) == missing.text
        assert code_of(foreign) == ("" if name == "resume_chat" else "run_not_found")
    nobody = await ask(people.no_user, endpoint, run_id, ticket_id)
    assert (nobody.status_code, code_of(nobody)) == (403, "user_required")
    assert await redis.hgetall(keys.run(run_id)) == before  # type: ignore[misc]

    mine = await ask(people.alice, endpoint, run_id, ticket_id)
    assert mine.status_code in (200, 202, 204) or code_of(mine) in ("approval_not_found", "call_not_found")
    if name == "resume_chat":
        assert (mine.status_code, foreign.status_code) == (200, 204)


@pytest.mark.parametrize("name", OF_A_RUN)
async def test_ticket_opens_its_own_run_only(people: People, name: str) -> None:
    endpoint, run_id, shared = ROUTES[name], await people.new_run(), await people.new_run()
    ticket = (await people.alice.post(f"/runs/{shared}/ticket")).json()["ticket"]
    opened, other, missing = [
        await ask(people.guest, endpoint, named, ticket=ticket) for named in (shared, run_id, new_run_id())
    ]

    if endpoint.guard.takes_ticket and endpoint.guard.scope is not Scope.RUNS_READ:
        assert {(answer.status_code, code_of(answer)) for answer in (opened, other, missing)} == {(403, "forbidden")}
    elif endpoint.guard.takes_ticket:
        assert opened.status_code == 200
        assert (other.status_code, code_of(other)) == (missing.status_code, code_of(missing))
        assert other.status_code in (204, 404)
    else:
        assert {answer.status_code for answer in (opened, other, missing)} == {401}


@pytest.mark.parametrize("name", CREATING)
async def test_created_run_is_its_users(people: People, redis: Redis, name: str) -> None:
    """Under one Idempotency-Key, and with one body, each user gets a run of their own."""

    async def create(caller: httpx.AsyncClient, user: str, tenant: str = "acme") -> bytes:
        headers = {"Idempotency-Key": "k"}
        request = caller.post(ROUTES[name].path, json=CREATING[name], headers=headers)
        answering = asyncio.create_task(request)
        await until(lambda: redis.exists(keys.runs(tenant, user)))
        (run_id,) = await redis.zrange(keys.runs(tenant, user), 0, -1)
        await caller.post(f"/runs/{run_id.decode()}/cancel")  # some routes answer when the run has ended
        answer = await answering
        assert answer.status_code in (200, 202) or code_of(answer) == "run_cancelled"
        assert answer.headers.get("x-run-id", run_id.decode()) == run_id.decode()
        assert await redis.hget(keys.run(run_id.decode()), "user") == (user.encode() or None)  # type: ignore[misc]
        return run_id  # type: ignore[no-any-return]

    run_ids = [
        await create(people.alice, "alice"),
        await create(people.bob, "bob"),
        await create(people.other_tenant, "", "umbrella"),
    ]

    assert len(set(run_ids)) == 3
    refused = await people.no_user.post(ROUTES[name].path, json=CREATING[name])
    assert (refused.status_code, code_of(refused)) == (403, "user_required")
    assert (await people.guest.post(ROUTES[name].path, json=CREATING[name])).status_code == 401


@pytest.mark.parametrize("name", LISTING)
async def test_list_has_ones_own_runs_only(people: People, name: str) -> None:
    run_id, path, headers = await people.new_run("chat"), ROUTES[name].path, {"Accept": "application/json"}
    callers = (people.alice, people.bob, people.other_tenant)
    answers = [await caller.get(path, params=LISTING[name], headers=headers) for caller in callers]

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [run_id in answer.text for answer in answers] == [True, False, False]
    refused = await people.no_user.get(path, params=LISTING[name], headers=headers)
    assert (refused.status_code, code_of(refused)) == (403, "user_required")


@pytest.mark.parametrize("name", sorted(WITHOUT_RUNS))
async def test_other_routes_show_nothing_of_a_run(people: People, name: str) -> None:
    run_id, endpoint = await people.new_run(), ROUTES[name]
    for caller in (people.alice, people.bob, people.other_tenant):
        answer = await caller.request(endpoint.method, endpoint.path)

        assert answer.status_code in (200, 403, 404)
        assert run_id not in answer.text


async def ask_thread(
    caller: httpx.AsyncClient, endpoint: Endpoint, thread_id: str, ticket_id: str = "0" * 32, **params: str
) -> httpx.Response:
    url = endpoint.path_template.format(thread_id=thread_id, ticket_id=ticket_id)
    params = {"until": "idle", **params} if endpoint.is_stream else params
    return await caller.request(endpoint.method, url, json=OF_A_THREAD[endpoint.name], params=params)


@pytest.mark.parametrize("name", OF_A_THREAD)
async def test_thread_exists_for_its_user_only(people: People, redis: Redis, name: str) -> None:
    """All others get the answer for a thread that does not exist, and change nothing."""
    endpoint = ROUTES[name]
    await people.new_run("chat")
    key = keys.thread(ThreadIdentity("acme", "alice", "chat"))
    ticket_id = (await people.alice.post("/threads/chat/ticket")).json()["id"]
    before = await redis.hgetall(key)  # type: ignore[misc]

    for stranger in (people.bob, people.other_tenant):
        foreign, missing = [await ask_thread(stranger, endpoint, named, ticket_id) for named in ("chat", "none")]
        assert (foreign.status_code, code_of(foreign)) == (404, "thread_not_found")
        assert foreign.text.replace("chat", "none") == missing.text
    nobody = await ask_thread(people.no_user, endpoint, "chat", ticket_id)
    assert (nobody.status_code, code_of(nobody)) == (403, "user_required")
    assert await redis.hgetall(key) == before  # type: ignore[misc]

    mine = await ask_thread(people.alice, endpoint, "chat", ticket_id)
    assert mine.status_code in (200, 204)


@pytest.mark.parametrize("name", OF_A_THREAD)
async def test_ticket_opens_its_own_thread_only(people: People, name: str) -> None:
    endpoint = ROUTES[name]
    for thread_id in ("chat", "other"):
        await people.new_run(thread_id)
    ticket = (await people.alice.post("/threads/chat/ticket")).json()["ticket"]
    run_ticket = (await people.alice.post(f"/runs/{await people.new_run('chat')}/ticket")).json()["ticket"]
    opened, other, missing = [
        await ask_thread(people.guest, endpoint, named, ticket=ticket) for named in ("chat", "other", "none")
    ]
    of_a_run = await ask_thread(people.guest, endpoint, "chat", ticket=run_ticket)

    if endpoint.guard.takes_ticket:
        assert opened.status_code == 200
        assert [code_of(answer) for answer in (other, missing, of_a_run)] == ["thread_not_found"] * 3
    else:
        assert {answer.status_code for answer in (opened, other, missing, of_a_run)} == {401}


@pytest.mark.parametrize("name", OF_A_RUN)
async def test_ticket_for_a_thread_opens_its_runs_only(people: People, name: str) -> None:
    endpoint, run_id, other = ROUTES[name], await people.new_run("chat"), await people.new_run("other")
    ticket = (await people.alice.post("/threads/chat/ticket")).json()["ticket"]
    answers = [await ask(people.guest, endpoint, named, ticket=ticket) for named in (run_id, other, new_run_id())]

    if endpoint.guard.takes_ticket and endpoint.guard.scope is not Scope.RUNS_READ:
        assert {(answer.status_code, code_of(answer)) for answer in answers} == {(403, "forbidden")}
    elif endpoint.guard.takes_ticket:
        assert answers[0].status_code == 200
        assert answers[1].status_code == answers[2].status_code
        assert answers[1].status_code in (204, 404)
    else:
        assert {answer.status_code for answer in answers} == {401}


async def test_revoked_ticket_for_a_thread_opens_nothing(people: People) -> None:
    run_id = await people.new_run("chat")
    issued = (await people.alice.post("/threads/chat/ticket")).json()
    assert (await people.guest.get(issued["links"]["events"] + "&until=idle")).status_code == 200
    assert (await people.alice.delete(f"/threads/chat/ticket/{issued['id']}")).status_code == 204

    for url in ("/threads/chat", f"/runs/{run_id}"):
        assert (await people.guest.get(url, params={"ticket": issued["ticket"]})).status_code == 401
    assert (await people.alice.delete(f"/threads/chat/ticket/{'0' * 32}")).status_code == 422
