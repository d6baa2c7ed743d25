"""Requests that wait until a run has ended or waits for a person: `GET /runs/{id}?wait` and `Prefer: wait`."""

import asyncio
import time
from typing import Any

import httpx
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.domain import decisions
from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.events import ApprovalRequired, InputRequired, StageStarted
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.storage import keys
from stagebus.shared.store import parking
from tests.gateway.conftest import ClientOf
from tests.support import runs_by_hand
from tests.support.redis_calls import calls
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until, until_equal

HELLO = {"user_prompt": "Hello"}
APPLIED = "preference-applied"


def ask(api: httpx.AsyncClient, run_id: str, wait_s: int = 30) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(api.get(f"/runs/{run_id}", params={"wait": wait_s}))


def create(api: httpx.AsyncClient, prefer: str = "wait=30", **headers: str) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(api.post("/runs", json=HELLO, headers={"Prefer": prefer, **headers}))


async def the_run(redis: Redis) -> str:
    """Returns the id of the only active run, once it is created."""
    found = await until(lambda: redis.zrange(keys.ACTIVE, 0, -1))
    return str(found[0].decode())


async def test_record_comes_when_the_run_has_ended(api: httpx.AsyncClient, app: Starlette, run: RunByHand) -> None:
    hub: Hub = app.state.gateway.hub
    began_at = time.monotonic()
    assert (await ask(api, run.run_id, 1)).json()["status"] == "running"
    assert time.monotonic() - began_at >= 1

    waiting = [ask(api, run.run_id) for _ in range(2)]
    await until_equal(lambda: [stream.subscription.is_live for stream in hub._all_streams()], [True, True])
    before = await calls(run.redis)
    await run.begin("extraction")
    await run.say(*"abc")
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    reads = await calls(run.redis) - before
    assert (reads["hgetall"], reads["xrange"]) == (0, 0), "what is not the end costs no read"
    # A message that is lost with its connection is found in the log.
    await run.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    end = await run.end()

    for record in [(await task).json() for task in waiting]:
        assert (record["status"], record["last_event_id"]) == ("succeeded", str(end))
        assert record == (await ask(api, run.run_id)).json(), "an ended run does not wait"
    assert hub.open_streams == 0
    assert (await ask(api, run.run_id, 31)).status_code == 422


async def test_record_comes_when_the_run_waits_for_a_person(
    api: httpx.AsyncClient, app: Starlette, run: RunByHand
) -> None:
    waiting = ask(api, run.run_id)
    await until_equal(lambda: app.state.gateway.hub.open_streams, 1)
    await run.put(
        StageStarted(stage_id="tools", attempt=1),
        ApprovalRequired(stage_id="tools", call_id="c", name="pay", arguments="{}", expires_at=1),
    )
    assert [call["call_id"] for call in (await waiting).json()["pending_approvals"]] == ["c"]
    assert (await ask(api, run.run_id)).json()["pending_approvals"], "it waits already"

    await parking.decide(run.redis, run.run_id, "c", decisions.encode(Decision(decision="approve")))
    waiting = ask(api, run.run_id)  # decided, so the run goes on, to a question
    await until_equal(lambda: app.state.gateway.hub.open_streams, 1)
    await run.put(InputRequired(stage_id="tools", call_id="q", question="Which?", expires_at=1))
    assert [call["call_id"] for call in (await waiting).json()["pending_approvals"]] == ["q"]


async def test_creation_waits_as_preferred(api: httpx.AsyncClient, redis: Redis) -> None:
    waiting = create(api, "respond-async, wait=600", **{"Idempotency-Key": "k"})
    run = await runs_by_hand.claim_by_hand(redis, await the_run(redis))
    await run.end()
    created = await waiting
    await runs_by_hand.stop(run)

    assert (created.status_code, created.headers[APPLIED]) == (200, "wait=30")
    assert created.headers["location"] == f"/runs/{run.run_id}"
    assert created.json() == (await api.get(f"/runs/{run.run_id}")).json()
    again = await create(api, **{"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (200, run.run_id)

    slow = await create(api, "wait=1")
    assert (slow.status_code, slow.headers[APPLIED], slow.json()["status"]) == (202, "wait=1", "queued")
    assert slow.json()["stages"] == []
    for ignored in ("wait", "wait=-1", "wait=soon", "foo=wait", "wait=0"):
        plain = await create(api, ignored)
        assert (plain.status_code, APPLIED in plain.headers, "stages" in plain.json()) == (202, False, False)


async def test_credential_that_may_not_read_does_not_wait(client_of: ClientOf) -> None:
    writer = await client_of("acme", Scope.RUNS_WRITE)

    created = await create(writer)

    assert (created.status_code, APPLIED in created.headers, "result" in created.json()) == (202, False, False)


async def test_waiting_counts_as_an_open_stream(api: httpx.AsyncClient, app: Starlette, run: RunByHand) -> None:
    await run.redis.hset(keys.LIMITS, "default:streams_open", 1)
    waiting = ask(api, run.run_id)
    await until_equal(lambda: app.state.gateway.hub.open_streams, 1)

    refused = await ask(api, run.run_id)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")
    assert int(refused.headers["retry-after"]) >= 1
    created = await create(api)  # the run exists, so its creation does not fail
    assert (created.status_code, APPLIED in created.headers, created.json()["stages"]) == (202, False, [])

    waiting.cancel()  # the client disconnects
    await until_equal(lambda: app.state.gateway.hub.open_streams, 0)


async def test_draining_gateway_ends_the_wait(api: httpx.AsyncClient, app: Starlette, run: RunByHand) -> None:
    hub: Hub = app.state.gateway.hub
    waiting, creating = ask(api, run.run_id), create(api)
    await until_equal(lambda: hub.open_streams, 2)
    hub.drain_spread_s = 0
    await hub.drain()

    answer, created = await waiting, await creating
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert "retry-after" in answer.headers
    assert (created.status_code, APPLIED in created.headers, created.json()["status"]) == (202, False, "queued")


async def test_wait_ends_with_404_if_the_run_is_gone(api: httpx.AsyncClient, app: Starlette, run: RunByHand) -> None:
    waiting = ask(api, run.run_id)
    await until_equal(lambda: app.state.gateway.hub.open_streams, 1)
    await run.redis.delete(*keys.all_of_run(run.run_id))
    await run.redis.zrem(keys.ACTIVE, run.run_id)
    for stream in app.state.gateway.hub._all_streams():
        stream.catch_up()

    answer: Any = await waiting
    assert (answer.status_code, answer.json()["code"]) == (404, "run_not_found")
