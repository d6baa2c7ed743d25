"""JSON pages of a run's events. Tests of the streams use real sockets, in tests/e2e."""

import asyncio
import time
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from stagebus.gateway.streaming import client_stream
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import StageStarted
from stagebus.shared.storage import keys
from tests.support.redis_calls import subscriber_count
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until_equal

JSON = {"Accept": "application/json"}


async def read_pages(api: httpx.AsyncClient, path: str, limit: int) -> list[dict[str, Any]]:
    """Reads all pages, like a client that passes cursors on without parsing them."""
    pages: list[dict[str, Any]] = []
    cursor = "0"
    while not pages or pages[-1]["has_more"]:
        response = await api.get(path, params={"last_event_id": cursor, "limit": limit}, headers=JSON)
        pages.append(response.json())
        assert pages[-1]["last_event_id"] != cursor, "each page brings its reader on"
        cursor = pages[-1]["last_event_id"]
    return pages


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_event_pages_of_a_stage_reach_the_end(api: httpx.AsyncClient, run: RunByHand, limit: int) -> None:
    """Even if a page has only events of other stages."""
    mine = await run.begin("synthesis")
    await run.say("x", "y", "z")
    mine += await run.say("a", "b", stage_id="synthesis")
    mine.append(await run.end())

    pages = await read_pages(api, f"/runs/{run.run_id}/stages/synthesis/events", limit)

    assert [event["id"] for page in pages for event in page["events"]] == [str(event_id) for event_id in mine]
    assert [page["is_ended"] for page in pages] == [False] * (len(pages) - 1) + [True]


async def test_event_page_contains_the_cursor_of_the_next_page(api: httpx.AsyncClient, run: RunByHand) -> None:
    said = [EventId(0, 1), *await run.say("a", "b", "c")]

    pages = await read_pages(api, f"/runs/{run.run_id}/events", 2)

    assert [page["last_event_id"] for page in pages] == [str(said[1]), str(said[3])]
    assert [page["has_more"] for page in pages] == [True, False], "a full page that is the last says so"
    assert pages[0]["events"][0] == {
        "id": "0-1",
        "event": "run_queued",
        "data": {"stage_id": "run", "run_id": "x", "model": "m"},
    }


async def test_event_page_contains_full_chunks_on_request(api: httpx.AsyncClient, run: RunByHand) -> None:
    """After any cursor, though the fields that all chunks of a stage repeat are stored before it."""
    template = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    await run.put(StageStarted(stage_id="extraction", attempt=1, chunk=template))
    first, second = await run.say("a", "b")

    for path in ("events", "stages/extraction/events"):
        params = {"last_event_id": str(first), "chunks": "full"}
        page = (await api.get(f"/runs/{run.run_id}/{path}", params=params, headers=JSON)).json()

        assert [event["id"] for event in page["events"]] == [str(second)]
        choice = {"index": 0, "delta": {"content": "b"}, "logprobs": None, "finish_reason": None}
        assert page["events"][0]["data"]["tool_results"] == template | {"choices": [choice]}


async def test_event_page_at_a_lost_cursor_contains_a_gap(api: httpx.AsyncClient, run: RunByHand) -> None:
    (last,) = await run.say("a")

    page = (await api.get(f"/runs/{run.run_id}/events", params={"last_event_id": "999999-9"}, headers=JSON)).json()

    assert page["gap"] == {"requested": "999999-9", "earliest": "0-1", "latest": str(last)}
    assert [event["id"] for event in page["events"]] == ["0-1", str(last)]


async def test_event_page_waits_for_the_next_event(api: httpx.AsyncClient, run: RunByHand) -> None:
    """Long polling: a page waits only if it would be empty and the run has not ended."""
    (last,) = await run.say("a")
    path = f"/runs/{run.run_id}/events"

    async def ask(cursor: EventId, wait: int) -> dict[str, Any]:
        params: dict[str, Any] = {"last_event_id": str(cursor), "wait": wait}
        return (await asyncio.wait_for(api.get(path, params=params, headers=JSON), 10)).json()

    assert [event["id"] for event in (await ask(EventId(0, 1), 30))["events"]] == [str(last)]
    began_at = time.monotonic()
    assert (await ask(last, 1))["events"] == []
    assert time.monotonic() - began_at >= 1
    asking = asyncio.create_task(ask(last, 30))
    await until_equal(lambda: subscriber_count(run.redis, keys.live(run.run_id)), 1)
    end = await run.end()
    page = await asking

    assert [event["id"] for event in page["events"]] == [str(end)]
    assert page["is_ended"]
    assert (await ask(end, 30))["is_ended"]
    assert (await api.get(path, params={"wait": 31}, headers=JSON)).status_code == 422
    unknown = await api.get("/runs/01J00000000000000000000000/events", params={"wait": 30}, headers=JSON)
    assert unknown.status_code == 404


async def test_event_page_says_what_a_silent_run_waits_for(
    api: httpx.AsyncClient, run: RunByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_stream, "SILENCE_AT_START_S", 0.1)
    (last,) = await run.say("a")

    params: dict[str, Any] = {"last_event_id": str(last), "wait": 30}
    page = (await api.get(f"/runs/{run.run_id}/events", params=params, headers=JSON)).json()

    assert (page["events"], page["waiting_for"]) == ([], "worker")


async def test_client_that_leaves_while_its_page_waits_is_not_waited_for(app: Starlette, run: RunByHand) -> None:
    """Else such clients could use up the places for streams."""
    hub, leaving = app.state.gateway.hub, asyncio.Event()
    requests = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        if (message := next(requests, None)) is not None:
            return message
        await leaving.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    scope = {
        "type": "http", "method": "GET", "path": f"/runs/{run.run_id}/events", "query_string": b"wait=30&last_event_id=0-1",
        "headers": [(b"accept", b"application/json"), (b"host", b"localhost")], "http_version": "1.1", "scheme": "http",
        "server": ("localhost", 80), "client": ("127.0.0.1", 1), "root_path": "", "extensions": {},
    }  # fmt: skip
    answering = asyncio.create_task(app(scope, receive, send))
    await until_equal(lambda: hub.open_streams, 1)
    leaving.set()

    await asyncio.wait_for(answering, 5)
    assert hub.open_streams == 0
