"""A run from POST to the last event, over HTTP and SSE: stages, cursors, pages, streams, idempotency, cancel."""

import asyncio

import httpx
import pytest

from tests.support.strict_client import StrictClient, get_run, post_run, stream_lines
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="session")

WEATHER = {"user_prompt": "What is the weather in Paris and in Tokyo?"}


async def test_run_completes_its_stages_and_answers(healthy: System) -> None:
    run_id = await post_run(healthy.url, WEATHER)
    client = await StrictClient(healthy.urls, run_id).follow()
    run = await get_run(healthy.url, run_id)

    names = client.names()
    assert names[:3] == ["run_queued", "run_started", "stage_started"]
    assert names[-1] == "done"
    assert names.count("tool_call") == names.count("tool_result") == 2
    assert [e.data["stage_id"] for e in client.events if e.event == "stage_completed"] == [
        "extraction",
        "tools",
        "synthesis",
    ]
    assert run["status"] == "succeeded"
    assert run["result"]["text"] == client.text("synthesis")
    assert "Paris" in client.text("synthesis")
    assert "Tokyo" in client.text("synthesis")
    assert run["usage"]["total_tokens"] > 0


async def test_stream_resumes_after_every_event_id(healthy: System) -> None:
    """With Last-Event-ID and with the query parameter, on the merged stream and on each stage's stream."""
    run_id = await post_run(healthy.url, {**WEATHER, "model": "demo:delay_ms=0,tokens=10"})
    whole = (await StrictClient(healthy.urls, run_id).follow()).events
    stages = [None, "run", "extraction", "tools", "synthesis"]

    async with httpx.AsyncClient(base_url=healthy.url, timeout=10) as http:
        for stage_id in stages:
            path = f"/runs/{run_id}/events" if stage_id is None else f"/runs/{run_id}/stages/{stage_id}/events"
            mine = [e for e in whole if stage_id in (None, e.data["stage_id"]) or e is whole[-1]]
            for event in whole:
                rest = [e.id for e in mine if e.sequence > event.sequence]
                by_header = await http.get(path, headers={"Last-Event-ID": event.id})
                by_query = await http.get(path, params={"last_event_id": event.id})
                for response in (by_header, by_query):
                    assert response.status_code == (204 if event is whole[-1] else 200)
                    assert ids_of(response.text) == rest
            for start in ("0", "-1", ""):
                assert ids_of((await http.get(path, params={"last_event_id": start})).text) == [e.id for e in mine]


def ids_of(text: str) -> list[str]:
    return [line.removeprefix("id: ") for line in text.split("\n") if line.startswith("id: ")]


@pytest.mark.parametrize("cursor", ["junk", "1-", "-2", "1-2-3", "9" * 40 + "-1", "1-0", "01-2", "1-2\u2028"])
async def test_invalid_cursor_gives_400(healthy: System, cursor: str) -> None:
    run_id = await post_run(healthy.url, WEATHER)

    async with httpx.AsyncClient(base_url=healthy.url) as http:
        response = await http.get(f"/runs/{run_id}/events", params={"last_event_id": cursor})
    assert response.status_code == 400
    assert response.json()["code"] == "bad_cursor"


@pytest.mark.parametrize("run_id", ["nope", "01J00000000000000000000000"])
async def test_unknown_run_gives_404(healthy: System, run_id: str) -> None:
    async with httpx.AsyncClient(base_url=healthy.url) as http:
        for path in (f"/runs/{run_id}", f"/runs/{run_id}/events", f"/runs/{run_id}/stages/tools/events"):
            response = await http.get(path)
            assert response.status_code == 404
            assert response.headers["content-type"] == "application/problem+json"


async def test_twenty_concurrent_runs_over_two_gateways_and_two_workers(healthy: System) -> None:
    """Each client sees each of the sequences 1…n once; otherwise the strict client raises."""
    run_ids = await asyncio.gather(*(post_run(healthy.urls[i % 2], WEATHER) for i in range(20)))
    clients = [StrictClient([healthy.urls[i % 2]], run_id) for run_id in run_ids for i in range(2)]

    await asyncio.gather(*(client.follow() for client in clients))
    assert {client.events[-1].event for client in clients} == {"done"}
    assert len({client.text("synthesis") for client in clients}) == 1


async def test_log_does_not_depend_on_the_run_s_clients(healthy: System) -> None:
    """Early, late, reconnecting or missing clients: the log is the same."""
    slow = {**WEATHER, "model": "demo:delay_ms=8"}
    watched, alone = await post_run(healthy.url, slow), await post_run(healthy.url, slow)
    early, cutting = StrictClient(healthy.urls, watched), StrictClient(healthy.urls, watched)
    await asyncio.gather(early.follow(), cutting.follow(cut_after=lambda: 3))
    late = await StrictClient(healthy.urls, watched).follow()
    never = await StrictClient(healthy.urls, alone).follow()

    assert early.events == cutting.events == late.events
    assert cutting.connections > 5
    assert never.names() == late.names()


async def test_stream_headers_and_frames_fit_browsers(healthy: System) -> None:
    run_id = await post_run(healthy.url, WEATHER)
    async with httpx.AsyncClient(base_url=healthy.url) as http:
        response = await http.get(f"/runs/{run_id}/events")

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in response.headers
    assert response.text.startswith("retry: ")
    assert "\r" not in response.text
    frames = response.text.removesuffix("\n\n").split("\n\n")[1:]
    assert all(frame.count("\ndata: ") == 1 for frame in frames)


async def test_post_streams_the_new_run_on_request(healthy: System) -> None:
    async with httpx.AsyncClient(base_url=healthy.url, timeout=10) as http:
        response = await http.post("/runs", json=WEATHER, headers={"Accept": "text/event-stream"})

    assert response.status_code == 200
    assert "event: run_queued\n" in response.text
    assert "event: done\n" in response.text


async def test_idempotency_key_creates_one_run(healthy: System) -> None:
    headers = {"Idempotency-Key": "the-same"}
    async with httpx.AsyncClient(base_url=healthy.url) as http:
        first = await http.post("/runs", json=WEATHER, headers=headers)
        second = await http.post("/runs", json=WEATHER, headers=headers)
        other = await http.post("/runs", json={"user_prompt": "other"}, headers=headers)

    assert first.json()["id"] == second.json()["id"]
    assert other.status_code == 422
    assert other.json()["code"] == "idempotency_conflict"


async def test_full_chunks_have_all_fields_also_after_a_cursor(healthy: System) -> None:
    """Also when the client joins in the middle of a stage, after its `stage_started`."""
    run_id = await post_run(healthy.url, WEATHER)
    lean = await StrictClient(healthy.urls, run_id).follow()
    middle = next(e for e in lean.events if e.event == "tool_completion_chunk" and e.data["stage_id"] == "synthesis")
    lines = [
        line async for line in stream_lines(healthy.url, f"/runs/{run_id}/events?chunks=full&last_event_id={middle.id}")
    ]

    chunks = [line for line in lines if '"tool_results"' in line]
    assert chunks
    assert all('"object":"chat.completion.chunk"' in line and '"created":' in line for line in chunks)


async def test_cancel_ends_the_run_and_can_be_repeated(healthy: System) -> None:
    run_id = await post_run(healthy.url, {"user_prompt": "talk", "model": "demo:delay_ms=20,tokens=5000"})
    client = StrictClient(healthy.urls, run_id)
    following = asyncio.create_task(client.follow())
    await client.until(lambda c: c.names().count("tool_completion_chunk") > 3)
    async with httpx.AsyncClient() as http:
        asked = asyncio.get_running_loop().time()
        response = await http.post(f"{healthy.url}/runs/{run_id}/cancel")
        await following
        took_s = asyncio.get_running_loop().time() - asked
        again = await http.post(f"{healthy.url}/runs/{run_id}/cancel")

    assert response.status_code in (200, 202), "202: the cancel is under way; 200: the run has ended"
    assert again.status_code == 200
    assert client.names()[-1] == "cancel"
    assert took_s < 1.0, "0.2 s on a quiet machine"
    assert (await get_run(healthy.url, run_id))["status"] == "cancelled"


async def test_json_pages_have_the_same_events_as_the_stream(healthy: System) -> None:
    run_id = await post_run(healthy.url, {**WEATHER, "model": "demo:delay_ms=0"})
    whole = (await StrictClient(healthy.urls, run_id).follow()).events
    cursor, got, is_ended = "0", [], False
    async with httpx.AsyncClient(base_url=healthy.url, headers={"Accept": "application/json"}) as http:
        while not is_ended:
            page = (await http.get(f"/runs/{run_id}/events", params={"last_event_id": cursor, "limit": 10})).json()
            assert len(page["events"]) <= 10
            got += [event["id"] for event in page["events"]]
            cursor, is_ended = page["last_event_id"], page["is_ended"]

    assert got == [event.id for event in whole]
