"""`DELETE /runs/{id}` over HTTP, and what open streams of the run see of it."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.gateway.api import run_creation
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.ids import new_run_id
from stagebus.shared.domain.tenants import DEFAULT_TENANT, RunOwner, Scope
from stagebus.shared.errors import StagebusError
from stagebus.shared.store.run_deletion import REASON, delete_run
from tests.gateway.conftest import ClientOf, Watcher
from tests.support.runs_by_hand import RunByHand

JSON = {"Accept": "application/json"}
HELLO = {"user_prompt": "Hello"}
KEY = {"Idempotency-Key": "k"}


async def test_deleted_run_does_not_exist_for_any_request(api: httpx.AsyncClient) -> None:
    run_id = (await api.post("/runs", json=HELLO, headers=KEY)).json()["id"]
    path = f"/runs/{run_id}"
    responses = [await api.delete(path) for _ in range(2)]
    assert [(response.status_code, response.content) for response in responses] == [(204, b"")] * 2

    for response in (
        await api.get(path),
        await api.get(path, params={"wait": 30}),
        await api.get(f"{path}/events", headers=JSON),
        await api.get(f"/v1/responses/resp_{run_id}"),
        await api.get(f"/durable/runs/{run_id}"),
        await api.post(f"{path}/cancel"),
        await api.post(f"{path}/ticket"),
    ):
        assert response.status_code == 404, response.request.url
    assert (await api.get("/runs")).json()["runs"] == []
    again = await api.post("/runs", json=HELLO, headers=KEY)
    assert (again.status_code, again.json()["code"]) == (410, "run_deleted")
    assert (await api.post("/runs", json={"user_prompt": "Bye"}, headers=KEY)).status_code == 422
    assert (await api.post("/runs", json=HELLO)).status_code == 202
    for unknown in (new_run_id(), "x"):
        assert (await api.delete(f"/runs/{unknown}")).status_code == 404


@pytest.mark.parametrize("headers", [{}, {"Prefer": "wait=5"}, {"Accept": "text/event-stream"}])
async def test_creation_whose_run_is_deleted_at_once_says_so(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    """As every repetition of the request will; 404 is no answer to a creation."""
    create = run_creation.create_run

    async def create_and_lose(*args: Any) -> str:
        run_id = await create(*args)
        assert (await api.delete(f"/runs/{run_id}")).status_code == 204
        return run_id

    with monkeypatch.context() as patched:
        patched.setattr(run_creation, "create_run", create_and_lose)
        first = await api.post("/runs", json=HELLO, headers=headers | KEY)
    again = await api.post("/runs", json=HELLO, headers=headers | KEY)

    assert [(one.status_code, one.json()["code"]) for one in (first, again)] == [(410, "run_deleted")] * 2


async def test_deletion_needs_the_scope_and_the_tenant(client_of: ClientOf) -> None:
    owner, reader = await client_of("acme"), await client_of("acme", Scope.RUNS_READ, Scope.RUNS_WRITE)
    path = (await owner.post("/runs", json=HELLO)).headers["location"]

    assert (await reader.delete(path)).status_code == 403
    assert (await (await client_of("umbrella")).delete(path)).status_code == 404
    assert (await owner.get(path)).json()["status"] == "queued"
    assert (await owner.delete(path)).status_code == 204


async def test_open_streams_of_a_deleted_run_end(
    redis: Redis, settings: Settings, run: RunByHand, watch: Callable[..., Watcher]
) -> None:
    await run.say(*"abc")
    live = await watch(run.run_id).until(lambda watcher: len(watcher.sequences) >= 4)
    behind = watch(run.run_id, EventId(0, 1))
    behind.is_reading.clear()  # its client reads slowly, so the log is gone before it has read it
    await delete_run(redis, settings, run.run_id, RunOwner(DEFAULT_TENANT))
    with pytest.raises(StagebusError):
        await run.say("d")
    behind.is_reading.set()

    last = (await live.until_end()).frames[-1]
    assert (last.event, REASON in last.data) == ("cancel", True)
    await behind.until_end()
