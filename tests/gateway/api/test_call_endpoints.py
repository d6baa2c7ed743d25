"""Results of waiting calls over HTTP, claims on them, and the credentials that may give a result."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import call_results
from stagebus.shared.domain.call_results import EXPIRED, CallResult
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import CallDeferred, StageCompleted, StageStarted, ToolCall, ToolResult
from stagebus.shared.domain.ids import new_run_id
from stagebus.shared.domain.stage_results import ModelStageResult
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.runtime.call_tokens import CallIdentity, CallTokens
from stagebus.shared.storage import keys
from stagebus.shared.store import parking
from tests.gateway.conftest import SECRET, ClientOf, client
from tests.support import runs_by_hand
from tests.support.runs_by_hand import RunByHand

EXPIRES_AT = 1769860800123
RESULT = {"content": "18.5 °C"}
FIRST_SECRET = SECRET.split(",")[0]  # of the list that the setting is; it signs


class Waiting:
    """A run with two calls of client tools, one of them `once`, and one of a deferred tool."""

    def __init__(self, run: RunByHand, ref: EventId) -> None:
        self.run = run
        self.run_id = run.run_id
        self.ref = str(ref)

    def token(
        self, call_id: str = "d", ref: str = "", ttl_s: float = 60, secret: str = FIRST_SECRET
    ) -> tuple[str, str]:
        call = CallIdentity("default", self.run_id, call_id, ref or self.ref)
        return CallTokens([secret]).issue(call, time.time() + ttl_s)

    def url(self, call_id: str, what: str = "result") -> str:
        return f"/runs/{self.run_id}/calls/{call_id}/{what}"


@pytest.fixture
async def waiting(run: RunByHand) -> Waiting:
    completed = StageCompleted(stage_id="extraction", result=ModelStageResult().model_dump())
    *_, ref = await run.put(StageStarted(stage_id="extraction", attempt=1), completed)
    await run.put(
        StageStarted(stage_id="tools", attempt=1), ToolCall(stage_id="tools", call_id="d", name="d", arguments="")
    )
    for call_id, once in [("c/1", False), ("once", True)]:
        await run.put(
            CallDeferred(
                stage_id="tools", call_id=call_id, name="read_file", arguments="{}", kind="client",
                expires_at=EXPIRES_AT, ref=str(ref), once=once,
            )
        )  # fmt: skip
    return Waiting(run, ref)


@pytest.fixture
async def keyed(locked_app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the locked gateway without a key."""
    async with client(locked_app) as http:
        yield http


@pytest.fixture
async def owner(client_of: ClientOf) -> httpx.AsyncClient:
    """A client with a key that has all scopes."""
    return await client_of("default")


async def pending(api: httpx.AsyncClient, run_id: str) -> list[dict[str, Any]]:
    return list((await api.get(f"/runs/{run_id}")).json()["pending_calls"])


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


async def test_waiting_calls_are_shown_until_they_have_a_result(api: httpx.AsyncClient, waiting: Waiting) -> None:
    call, once = await pending(api, waiting.run_id)
    assert call == {
        "call_id": "c/1", "name": "read_file", "arguments": "{}", "kind": "client", "ref": waiting.ref, "once": False,
        "expires_at": "2026-01-31T12:00:00.123Z", "url": waiting.url("c%2F1"),
    }  # fmt: skip
    answer = await api.post(call["url"], json=RESULT)
    assert (answer.status_code, answer.json()) == (202, {"run_id": waiting.run_id, "call_id": "c/1"})

    assert await pending(api, waiting.run_id) == [once], "no longer, though no worker has taken it yet"
    await waiting.run.put(ToolResult(stage_id="tools", call_id="once", name="read_file", content=""))
    assert await pending(api, waiting.run_id) == []


async def test_request_that_waits_for_a_pause_is_answered_when_a_call_waits(
    api: httpx.AsyncClient, run: RunByHand
) -> None:
    asked = asyncio.create_task(api.get(f"/runs/{run.run_id}?wait=20"))
    await run.put(
        StageStarted(stage_id="tools", attempt=1),
        CallDeferred(
            stage_id="tools", call_id="c", name="f", arguments="", kind="client", expires_at=EXPIRES_AT, ref="1-1"
        ),
    )

    assert [call["call_id"] for call in (await asked).json()["pending_calls"]] == ["c"]


async def test_first_result_counts_and_can_be_repeated(api: httpx.AsyncClient, redis: Redis, waiting: Waiting) -> None:
    url = waiting.url("c%2F1")
    assert [(await api.post(url, json=RESULT)).status_code for _ in range(2)] == [202, 202]
    for other in ({"content": "19 °C"}, {**RESULT, "is_error": True}):
        assert code(await api.post(url, json=other)) == (409, "call_has_result")

    stored = await redis.hget(keys.results(waiting.run_id), call_results.result_field(waiting.ref, "c/1"))
    assert call_results.decode(stored) == CallResult(**RESULT)


async def test_one_of_many_results_at_once_counts(
    app: Starlette, api: httpx.AsyncClient, redis: Redis, waiting: Waiting
) -> None:
    """Tabs send different results over two connections; the one that is accepted is the one that the run gets."""
    async with client(app) as other:
        contents = [str(number) for number in range(10)]
        answers = await asyncio.gather(
            *((api, other)[n % 2].post(waiting.url("c%2F1"), json={"content": text}) for n, text in enumerate(contents))
        )

    accepted = [text for text, answer in zip(contents, answers, strict=True) if answer.status_code == 202]
    refused = [code(answer) for answer in answers if answer.status_code != 202]
    stored = await redis.hget(keys.results(waiting.run_id), call_results.result_field(waiting.ref, "c/1"))
    assert [call_results.decode(stored)] == [CallResult(content=text) for text in accepted]
    assert refused == [(409, "call_has_result")] * 9


async def test_late_result_conflicts_with_the_expiry(api: httpx.AsyncClient, waiting: Waiting) -> None:
    await parking.deliver(waiting.run.redis, waiting.run_id, waiting.ref, "c/1", EXPIRED)

    assert code(await api.post(waiting.url("c%2F1"), json=RESULT)) == (409, "call_has_result")


async def test_result_for_an_ended_run_or_an_unknown_call_is_refused(api: httpx.AsyncClient, waiting: Waiting) -> None:
    unknown = [("nothing", {}), ("c", {}), ("d", {}), ("c%2F1", {"ref": "1-1"})]
    for call_id, more in unknown:
        assert code(await api.post(waiting.url(call_id), json={**RESULT, **more})) == (404, "call_not_found")
    other = await api.post(f"/runs/{new_run_id()}/calls/c/result", json=RESULT)
    assert code(other) == (404, "run_not_found")
    await api.post(waiting.url("c%2F1"), json={**RESULT, "ref": waiting.ref})
    await waiting.run.end()

    assert (await api.post(waiting.url("c%2F1"), json=RESULT)).status_code == 202, "it has this result already"
    assert code(await api.post(waiting.url("once"), json=RESULT)) == (409, "run_ended")
    assert code(await api.post(waiting.url("once", "claim"), json={"holder": "tab"})) == (409, "run_ended")


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 422), ({"content": 1}, 422), ({"content": "x", "extra": 1}, 422), ({"content": "é" * 40_000}, 413)],
)
async def test_bad_result_is_refused(api: httpx.AsyncClient, waiting: Waiting, body: Any, status: int) -> None:
    """A long one is not cut: half of a document would look like the whole."""
    response = await api.post(waiting.url("c%2F1"), json=body)

    assert response.status_code == status
    assert await waiting.run.redis.hlen(keys.results(waiting.run_id)) == 0


async def test_claim_keeps_other_clients_away_until_it_ends(
    api: httpx.AsyncClient, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = waiting.url("c%2F1", "claim")
    first = await api.post(url, json={"holder": "tab 1"})
    assert first.status_code == 200
    assert 29 < first.json()["until"] / 1000 - time.time() <= 30
    other = await api.post(url, json={"holder": "tab 2", "ref": waiting.ref})
    assert code(other) == (409, "call_claimed")
    assert 28 <= int(other.headers["Retry-After"]) <= 30
    assert (await api.post(url, json={"holder": "tab 1"})).json()["until"] >= first.json()["until"], "it is renewed"

    monkeypatch.setattr(call_results, "CALL_LEASE_S", -1.0)
    await api.post(url, json={"holder": "tab 1"})
    assert (await api.post(url, json={"holder": "tab 2"})).status_code == 200
    await api.post(waiting.url("c%2F1"), json=RESULT)
    assert code(await api.post(url, json={"holder": "tab 2"})) == (409, "call_has_result")


async def test_call_that_runs_once_has_one_holder_for_good(
    api: httpx.AsyncClient, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_results, "CALL_LEASE_S", -1.0)
    url = waiting.url("once", "claim")
    await api.post(url, json={"holder": "tab 1"})

    assert code(await api.post(url, json={"holder": "tab 2"})) == (409, "call_claimed")


# --- call tokens -------------------------------------------------------------


@pytest.mark.parametrize("place", ["header", "query"])
async def test_call_token_gives_the_result_of_its_call_even_before_it_waits(
    keyed: httpx.AsyncClient, waiting: Waiting, place: str
) -> None:
    token, _ = waiting.token()
    where: dict[str, Any] = (
        {"headers": {"Authorization": f"Bearer {token}"}} if place == "header" else {"params": {"ticket": token}}
    )
    answers = [await keyed.post(waiting.url("d"), json=RESULT, **where) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [202, 202]
    assert code(await keyed.post(waiting.url("d"), json={"content": "x"}, **where)) == (409, "call_has_result")


async def test_call_token_may_do_nothing_else(keyed: httpx.AsyncClient, waiting: Waiting) -> None:
    token, _ = waiting.token()
    headers, params = {"Authorization": f"Bearer {token}"}, {"ticket": token}
    assert code(await keyed.post(waiting.url("c%2F1"), json=RESULT, headers=headers)) == (404, "call_not_found")
    other = f"/runs/{new_run_id()}/calls/d/result"
    assert code(await keyed.post(other, json=RESULT, headers=headers)) == (404, "run_not_found")
    for method, path, body in [
        ("GET", f"/runs/{waiting.run_id}", None),
        ("GET", f"/runs/{waiting.run_id}/events", None),
        ("POST", waiting.url("c%2F1", "claim"), {"holder": "tab"}),
        ("POST", f"/runs/{waiting.run_id}/cancel", None),
        ("POST", f"/runs/{waiting.run_id}/ticket", {}),
    ]:
        answers = [
            await keyed.request(method, path, json=body, headers=headers),
            await keyed.request(method, path, json=body, params=params),
        ]
        assert [answer.status_code for answer in answers] == [401, 401], path


@pytest.mark.parametrize("flaw", ["expired", "of another secret", "of a lost answer", "cut"])
async def test_flawed_call_token_is_refused(keyed: httpx.AsyncClient, waiting: Waiting, flaw: str) -> None:
    token, _ = {
        "expired": lambda: waiting.token(ttl_s=-5),
        "of another secret": lambda: waiting.token(secret="x" * 32),
        "of a lost answer": lambda: waiting.token(ref="1-2"),
        "cut": lambda: (waiting.token()[0][:-1], ""),
    }[flaw]()
    response = await keyed.post(waiting.url("d"), json=RESULT, headers={"Authorization": f"Bearer {token}"})

    expected = (404, "call_not_found") if flaw == "of a lost answer" else (401, "unauthenticated")
    assert code(response) == expected


async def test_call_token_is_revoked_like_a_ticket(
    keyed: httpx.AsyncClient, waiting: Waiting, owner: httpx.AsyncClient
) -> None:
    token, token_id = waiting.token()
    assert (await owner.delete(f"/runs/{waiting.run_id}/ticket/{token_id}")).status_code == 204
    response = await keyed.post(waiting.url("d"), json=RESULT, headers={"Authorization": f"Bearer {token}"})

    assert code(response) == (401, "unauthenticated")


async def test_call_token_ends_with_its_run(
    keyed: httpx.AsyncClient, waiting: Waiting, owner: httpx.AsyncClient
) -> None:
    """An ended run and a deleted one take no result."""
    headers = {"Authorization": f"Bearer {waiting.token()[0]}"}
    await waiting.run.end()
    ended = await keyed.post(waiting.url("d"), json=RESULT, headers=headers)
    assert (await owner.delete(f"/runs/{waiting.run_id}")).status_code == 204
    deleted = await keyed.post(waiting.url("d"), json=RESULT, headers=headers)

    assert (code(ended), code(deleted)) == ((409, "run_ended"), (404, "run_not_found"))
    assert not await waiting.run.redis.exists(keys.results(waiting.run_id))


async def test_call_token_and_call_of_another_run_give_nothing(
    keyed: httpx.AsyncClient, api: httpx.AsyncClient, redis: Redis, waiting: Waiting
) -> None:
    """The other run exists, and belongs to the same tenant."""
    other = await runs_by_hand.start(redis)
    headers = {"Authorization": f"Bearer {waiting.token()[0]}"}
    by_token = await keyed.post(f"/runs/{other.run_id}/calls/d/result", json=RESULT, headers=headers)
    by_key = await api.post(f"/runs/{other.run_id}/calls/c%2F1/result", json={**RESULT, "ref": waiting.ref})
    await runs_by_hand.stop(other)

    assert (code(by_token), code(by_key)) == ((404, "run_not_found"), (404, "call_not_found"))
    assert not await redis.exists(keys.results(other.run_id))


def test_call_token_is_the_same_in_every_attempt(settings: Settings) -> None:
    call = CallIdentity("t", "r", "c", "5-2")
    tokens = {CallTokens([FIRST_SECRET]).issue(call, 1e10).text for _ in range(2)}

    assert len(tokens) == 1
    assert tokens.isdisjoint({CallTokens([FIRST_SECRET]).issue(call._replace(ref="6-2"), 1e10).text})


async def test_ticket_gives_results_only_if_it_was_made_for_that(
    keyed: httpx.AsyncClient, waiting: Waiting, owner: httpx.AsyncClient
) -> None:
    statuses = []
    for calls in (False, True):
        made = await owner.post(f"/runs/{waiting.run_id}/ticket", json={"calls": calls})
        params = {"ticket": made.json()["ticket"]}
        for what, body in [("claim", {"holder": "tab"}), ("result", RESULT)]:
            statuses.append((await keyed.post(waiting.url("c%2F1", what), json=body, params=params)).status_code)

    assert statuses == [403, 403, 200, 202]


async def test_key_needs_a_scope_to_give_results(client_of: ClientOf, waiting: Waiting) -> None:
    statuses = {}
    for scope in Scope:
        holder = await client_of("default", scope)
        statuses[scope] = (await holder.post(waiting.url("c%2F1"), json=RESULT)).status_code

    assert {scope for scope, status in statuses.items() if status == 202} == {Scope.CALLS, Scope.RUNS_WRITE}
    other = await client_of("globex")
    assert code(await other.post(waiting.url("c%2F1"), json=RESULT)) == (404, "run_not_found")
