"""Runs of threads over HTTP: what a POST may say, and what it is answered while another run is active."""

import asyncio
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import Done
from stagebus.shared.domain.partitions import partition_of
from stagebus.shared.domain.tenants import DEFAULT_TENANT
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.store import run_store, thread_store, tool_catalog
from stagebus.shared.store.heartbeats import Heartbeat
from stagebus.shared.store.tool_catalog import ToolDescription
from tests.gateway.conftest import client
from tests.support.waiting import until

CHAT = {"thread_id": "chat/7 {x} 🙂", "user_prompt": "Hello"}
IDENTITY = ThreadIdentity(DEFAULT_TENANT, "", CHAT["thread_id"])
RUN = "01J9ZK3V7Q8E5W2R4T6Y8V0P1A"


async def post(api: httpx.AsyncClient, status: int = 202, key: str = "", **fields: Any) -> dict[str, Any]:
    """Posts a run of the thread and returns the answer."""
    headers = {"Idempotency-Key": key} if key else {}
    response = await api.post("/runs", json={**CHAT, **fields}, headers=headers)
    assert response.status_code == status, response.text
    return response.json()


async def end(redis: Redis, settings: Settings, run_id: str) -> None:
    claim = await run_scripts.claim(redis, run_id, "")
    assert claim is not None
    assert await run_store.end_claimed(redis, settings, run_id, claim, Done())


async def test_a_run_of_a_thread_says_so_and_its_messages_are_the_threads(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    accepted = await post(api)
    run_id = accepted["id"]
    view = (await api.get(f"/runs/{run_id}")).json()
    (listed,) = (await api.get("/runs", params={"q": "hello"})).json()["runs"]
    thread = await thread_store.read_thread(redis, IDENTITY, with_messages=True)
    record = await run_store.get_run(redis, run_id)

    assert accepted["thread_id"] == CHAT["thread_id"]
    assert not {"position", "steers", "parent_run_id"} & view.keys(), "it waits for nothing, and is at the root"
    assert (view["thread_id"], view["prompt"]) == (CHAT["thread_id"], "Hello")
    assert (listed["id"], listed["prompt"], listed["thread_id"]) == (run_id, "Hello", CHAT["thread_id"])
    assert thread.turns[0].messages_in == ({"role": "user", "content": "Hello"},)
    assert record.request["messages"] == [], "they are stored once"
    assert partition_of(run_id) == IDENTITY.tag
    await end(redis, settings, run_id)


async def test_a_busy_thread_refuses_a_run_and_names_the_one_in_the_way(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    """A client that repeats a POST without a key recognises its own run by the digest of the request."""
    first = await post(api, key="k")
    assert (await post(api, key="k"))["id"] == first["id"], "a repeated request is not in its own way"
    busy = await post(api, 409)

    assert (busy["code"], busy["run_id"]) == ("thread_busy", first["id"])
    assert busy["request_digest"] == (await redis.hget(f"sb:run:{{{first['id']}}}", "digest")).decode()  # type: ignore[misc]
    assert "on_active" in busy["detail"]
    await end(redis, settings, first["id"])


async def test_waiting_runs_have_a_position_and_steering_runs_a_target(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    active = (await post(api))["id"]
    waiting = await post(api, on_active="enqueue")
    steering = await post(api, on_active="steer")
    view = (await api.get(f"/runs/{steering['id']}")).json()

    assert (waiting["position"], waiting.get("steers")) == (1, None)
    assert (steering["position"], steering["steers"]) == (2, active)
    assert (view["position"], view["steers"], view["status"]) == (2, active, "queued")
    for run_id in (active, waiting["id"], steering["id"]):
        await end(redis, settings, run_id)
    follower = await post(api)
    assert (await api.get(f"/runs/{follower['id']}")).json()["parent_run_id"] == steering["id"]
    await end(redis, settings, follower["id"])


async def test_an_interrupt_cancels_the_active_run_and_is_next(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    active = (await post(api))["id"]
    interrupt = (await post(api, on_active="interrupt"))["id"]

    assert (await api.get(f"/runs/{active}")).json()["status"] == "cancelled"
    thread = await thread_store.read_thread(redis, IDENTITY)
    assert thread.active_run_id == interrupt
    await end(redis, settings, interrupt)


async def test_parents_are_turns_that_have_ended(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    first = (await post(api))["id"]
    waiting = (await post(api, on_active="enqueue"))["id"]

    assert (await post(api, 404, parent_run_id=RUN, on_active="enqueue"))["code"] == "parent_not_found"
    assert (await post(api, 409, parent_run_id=waiting, on_active="enqueue"))["code"] == "parent_not_ended"
    await end(redis, settings, first)
    await end(redis, settings, waiting)
    again = (await post(api, parent_run_id=first))["id"]
    await end(redis, settings, again)
    branch = (await post(api, parent_run_id="root"))["id"]
    await end(redis, settings, branch)
    thread = await thread_store.read_thread(redis, IDENTITY)
    assert [turn.parent_run_id for turn in thread.turns] == ["", first, first, ""]


async def test_a_key_that_created_a_run_of_another_thread_is_refused(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    first = await post(api, key="k")
    assert (await post(api, 422, key="k", thread_id="other"))["code"] == "idempotency_conflict"
    assert (await post(api, 422, key="k", on_active="enqueue"))["code"] == "idempotency_conflict"
    await end(redis, settings, first["id"])


async def test_as_many_runs_wait_as_may_wait(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    run_ids = [(await post(api, on_active="enqueue"))["id"] for _ in range(17)]
    full = await api.post("/runs", json={**CHAT, "on_active": "enqueue"})

    assert (full.status_code, full.json()["code"]) == (429, "thread_queue_full")
    assert full.headers["retry-after"]
    for run_id in run_ids:
        await end(redis, settings, run_id)


async def test_two_gateways_and_many_posts_give_one_active_run(
    app: Starlette, api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    async with client(app) as other:
        answers = await asyncio.gather(*((api, other)[n % 2].post("/runs", json=CHAT) for n in range(20)))

    created = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    assert len(created) == 1
    assert {answer.json().get("run_id") for answer in answers if answer.status_code == 409} == set(created)
    await end(redis, settings, created[0])


@pytest.mark.parametrize("fields", [{"thread_id": "a\u0000b"}, {"on_active": "wait"}, {"parent_run_id": "x"}])
async def test_invalid_fields_are_named(api: httpx.AsyncClient, fields: dict[str, str]) -> None:
    answer = await post(api, 422, **fields)

    assert [error["field"] for error in answer["errors"]] == [*fields]


async def test_features_are_off_while_a_live_worker_does_not_know_them(api: httpx.AsyncClient, redis: Redis) -> None:
    """It would execute a run without its history, or end one whose tools it does not know. Others are created as ever."""
    described: dict[str, Any] = {"description": "", "parameters": {}}
    tools = [ToolDescription(name="weather", **described), ToolDescription(name="report", deferred=True, **described)]
    await tool_catalog.publish_tools(redis, tools)
    old = Heartbeat(redis, keys.WORKERS, "old", lambda: {"concurrency": 1})
    beating = asyncio.create_task(old.run())
    await until(lambda: redis.hexists(keys.WORKERS, "old"))
    client_tool = {"type": "function", "function": {"name": "locate"}}
    hello = {"user_prompt": "Hello"}
    refused = [
        await api.post("/runs", json=body)
        for body in (CHAT, hello | {"tools": ["weather", client_tool]}, hello | {"tools": ["report"]})
    ]
    taken = [await api.post("/runs", json=body) for body in (hello, hello | {"tools": ["weather"]})]
    await cancel_and_wait(beating)

    assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [
        (503, "threads_unavailable"), (503, "calls_unavailable"), (503, "calls_unavailable"),
    ]  # fmt: skip
    assert all(answer.headers["retry-after"] for answer in refused)
    assert [answer.status_code for answer in taken] == [202, 202]
