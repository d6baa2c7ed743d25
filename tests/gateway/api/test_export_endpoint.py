"""`GET /runs/{id}/export`: a document from which the run can be rebuilt."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request

from stagebus.client import RunEvent, RunState
from stagebus.gateway.api import export_endpoint
from stagebus.gateway.api.run_waiting import ReadRun
from stagebus.gateway.streaming.stream_writer import StreamTorn
from stagebus.shared.domain.events import StageCompleted, StageRestarted
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.domain.usage import Usage
from stagebus.shared.errors import StorageUnavailable
from stagebus.shared.log.log_page import Page
from stagebus.shared.storage import keys
from tests.gateway.conftest import ClientOf
from tests.support import runs_by_hand
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until_equal

JSON = {"Accept": "application/json"}
REQUEST = {"system_prompt": "Be brief.", "user_prompt": "Hello", "metadata": {"a": "b"}}


@pytest.fixture
async def made(api: httpx.AsyncClient, redis: Redis) -> AsyncIterator[RunByHand]:
    """A run that was created by the API and is held by a worker."""
    run_id = (await api.post("/runs", json=REQUEST)).json()["id"]
    run = await runs_by_hand.claim_by_hand(redis, run_id)
    yield run
    await runs_by_hand.stop(run)


async def read_pages(api: httpx.AsyncClient, run_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    while True:
        cursor = events[-1]["id"] if events else "0"
        params: dict[str, Any] = {"last_event_id": cursor, "limit": 700}
        page = (await api.get(f"/runs/{run_id}/events", params=params, headers=JSON)).json()
        events += page["events"]
        if not page["has_more"]:
            return events


async def test_request_of_a_threads_run_has_its_own_messages(api: httpx.AsyncClient) -> None:
    """The record does not repeat them: they are in the thread."""
    run_id = (await api.post("/runs", json={**REQUEST, "thread_id": "chat"})).json()["id"]
    try:
        document = (await api.get(f"/runs/{run_id}/export")).json()
    finally:
        await api.post(f"/runs/{run_id}/cancel")

    assert document["request"]["messages"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
    ]  # fmt: skip


async def test_run_is_rebuilt_from_its_export(api: httpx.AsyncClient, made: RunByHand) -> None:
    """The log has more than one page, two attempts at a stage, and text beyond ASCII."""
    usage = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
    texts = [f"{number} \u202e" for number in range(1500)]
    await made.begin("extraction")
    (void,) = await made.say("void")
    await made.put(StageRestarted(stage_id="extraction", attempt=2, discard_from=void.sequence))
    await made.say(*texts)
    await made.put(StageCompleted(stage_id="extraction", result={"text": "Hi", "finish_reason": "stop"}, usage=usage))
    await made.end()
    response = await api.get(f"/runs/{made.run_id}/export")
    document = response.json()

    assert response.headers["content-disposition"] == f'attachment; filename="stagebus-run-{made.run_id}.json"'
    assert (document["format"], document["version"]) == ("stagebus.run", 1)
    assert document["run"] == (await api.get(f"/runs/{made.run_id}")).json()
    assert document["run"]["result"]["text"] == "Hi"
    assert [message["content"] for message in document["request"]["messages"]] == ["Be brief.", "Hello"]
    assert document["events"] == await read_pages(api, made.run_id)
    assert len(document["events"]) > 1500

    state = RunState()
    for event in document["events"]:
        state.apply(RunEvent(event["id"], event["event"], event["data"]))
    assert (state.status, state.stages["extraction"].text) == ("succeeded", "".join(texts))


async def test_export_of_an_active_run_ends_where_its_record_does(
    api: httpx.AsyncClient, made: RunByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made.say(*"abc")
    read_run = export_endpoint.read_run

    async def read_before_more(request: Request, run_id: str) -> ReadRun:
        found = await read_run(request, run_id)
        await made.say(*"def")
        return found

    monkeypatch.setattr(export_endpoint, "read_run", read_before_more)
    document = (await api.get(f"/runs/{made.run_id}/export")).json()

    assert document["run"]["status"] == "running"
    assert document["events"][-1]["id"] == document["run"]["last_event_id"]
    assert len(document["events"]) == 4


async def test_export_that_cannot_be_completed_is_cut(
    api: httpx.AsyncClient, app: Starlette, made: RunByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = app.state.gateway.hub
    pages = hub.pages

    async def lost_pages(run_id: str, tenant: str) -> AsyncIterator[Page]:
        async for page in pages(run_id, tenant):
            yield page
            raise StorageUnavailable

    monkeypatch.setattr(hub, "pages", lost_pages)
    await made.say(*"abc" * 300)
    with pytest.raises(StreamTorn):  # the server cuts the connection
        await api.get(f"/runs/{made.run_id}/export")


async def test_export_needs_a_key_that_reads_and_a_free_stream(
    client_of: ClientOf, locked_app: Starlette, redis: Redis
) -> None:
    """A ticket does not open it: the request may have a system prompt that guests of a shared link never see."""
    await redis.hset(keys.LIMITS, "acme:streams_open", 1)
    owner, writer = await client_of("acme"), await client_of("acme", Scope.RUNS_WRITE)
    run_id = (await owner.post("/runs", json=REQUEST)).json()["id"]
    ticket = (await owner.post(f"/runs/{run_id}/ticket")).json()["ticket"]
    guest = httpx.AsyncClient(transport=owner._transport, base_url="http://localhost")
    path = f"/runs/{run_id}/export"

    assert (await owner.get(path)).status_code == 200
    assert (await writer.get(path)).status_code == 403
    assert (await (await client_of("umbrella")).get(path)).status_code == 404
    assert (await guest.get(f"/runs/{run_id}", params={"ticket": ticket})).status_code == 200
    assert (await guest.get(path, params={"ticket": ticket})).status_code == 401
    waiting = asyncio.create_task(owner.get(f"/runs/{run_id}", params={"wait": 30}))
    await until_equal(lambda: locked_app.state.gateway.hub.open_streams, 1)
    assert (await owner.get(path)).status_code == 429
    waiting.cancel()
