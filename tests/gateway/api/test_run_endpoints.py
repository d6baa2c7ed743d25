import asyncio
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.api.run_endpoints import LIST_LIMIT_DEFAULT
from stagebus.gateway.context import Gateway
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import Done, StageCompleted, StageStarted
from stagebus.shared.domain.ids import is_run_id, new_run_id
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.log import sse
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.storage.run_scripts import TerminalState
from stagebus.shared.store import run_store, tool_catalog
from stagebus.shared.store.tool_catalog import ToolDescription
from tests.gateway.conftest import keys_of_clients
from tests.support import runs_by_hand
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until

HELLO = {"user_prompt": "Hello"}
WEATHER = ToolDescription(name="get_weather", description="Says the weather.", parameters={"type": "object"})


async def create(api: httpx.AsyncClient, body: Any = HELLO, **headers: str) -> httpx.Response:
    return await api.post("/runs", json=body, headers={name.replace("_", "-"): v for name, v in headers.items()})


async def take_up(redis: Redis, run_id: str) -> RunByHand:
    """Acts as the worker of a run."""
    return await runs_by_hand.claim_by_hand(redis, run_id)


# --- POST /runs --------------------------------------------------------------


async def test_created_run_is_stored_and_queued(api: httpx.AsyncClient, redis: Redis) -> None:
    response = await create(api, {**HELLO, "model": "m", "metadata": {"a": "b"}})
    run_id = response.json()["id"]
    run = await run_store.get_run(redis, run_id)

    assert response.status_code == 202
    assert is_run_id(run_id)
    assert response.headers["location"] == f"/runs/{run_id}"
    assert response.json() == {
        "id": run_id,
        "status": "queued",
        "created_at": response.json()["created_at"],
        "links": {"self": f"/runs/{run_id}", "events": f"/runs/{run_id}/events", "cancel": f"/runs/{run_id}/cancel"},
    }
    assert (run.model, run.request["metadata"], str(run.last_id)) == ("m", {"a": "b"}, "0-1")
    assert await redis.zscore(keys.QUEUE, run_id) is not None
    assert await redis.zscore(keys.ACTIVE, run_id) is not None


async def test_idempotency_key_returns_the_same_run(api: httpx.AsyncClient) -> None:
    first, second = await create(api, Idempotency_Key="k"), await create(api, Idempotency_Key="k")

    assert second.status_code == 202
    assert first.json() == second.json()
    assert len((await api.get("/runs")).json()["runs"]) == 1


async def test_idempotency_key_holds_for_concurrent_requests(api: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(create(api, Idempotency_Key="k") for _ in range(20)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_idempotency_key_compares_meaning_and_not_text(api: httpx.AsyncClient) -> None:
    """A prompt and the equal list of messages are the same request."""
    first = await create(api, HELLO, Idempotency_Key="k")
    second = await create(api, {"messages": [{"role": "user", "content": "Hello"}]}, Idempotency_Key="k")

    assert first.json()["id"] == second.json()["id"]


async def test_idempotency_key_with_another_body_conflicts(api: httpx.AsyncClient) -> None:
    await create(api, Idempotency_Key="k")

    response = await create(api, {"user_prompt": "Bye"}, Idempotency_Key="k")

    assert (response.status_code, response.json()["code"]) == (422, "idempotency_conflict")


async def test_other_or_no_idempotency_key_creates_another_run(api: httpx.AsyncClient) -> None:
    ids = [(await create(api, **headers)).json()["id"] for headers in ({}, {}, {"Idempotency-Key": "a"})]

    assert len(set(ids)) == 3


async def test_repeated_creation_returns_the_current_status(api: httpx.AsyncClient) -> None:
    run_id = (await create(api, Idempotency_Key="k")).json()["id"]
    await api.post(f"/runs/{run_id}/cancel")

    assert (await create(api, Idempotency_Key="k")).json()["status"] == "cancelled"


async def test_unknown_tools_are_rejected_by_name(api: httpx.AsyncClient, redis: Redis) -> None:
    await tool_catalog.publish_tools(redis, [WEATHER])

    by_name = await create(api, {**HELLO, "tools": ["get_weather", "get_rich"]})
    by_choice = await create(api, {**HELLO, "tool_choice": "get_rich"})

    assert (by_name.status_code, [e["field"] for e in by_name.json()["errors"]]) == (422, ["tools.1"])
    assert "get_rich" in by_name.json()["detail"]
    assert (by_choice.status_code, [e["field"] for e in by_choice.json()["errors"]]) == (422, ["tool_choice"])
    assert (await create(api, {**HELLO, "tools": ["get_weather"]})).status_code == 202


async def test_any_tool_is_accepted_before_the_first_worker(api: httpx.AsyncClient) -> None:
    assert (await create(api, {**HELLO, "tools": ["get_weather"]})).status_code == 202


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"content": b"{"}, 400, "bad_json"),
        ({"content": b'{"user_prompt": "x", "user_prompt": "y"}'}, 400, "bad_json"),
        ({"json": {}}, 422, "invalid_request"),
        ({"json": {**HELLO, "colour": "red"}}, 422, "invalid_request"),
        ({"json": HELLO, "headers": {"Idempotency-Key": ""}}, 400, "bad_idempotency_key"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
        ({"content": b" " * (2**20 + 1)}, 413, "body_too_large"),
    ],
)
async def test_invalid_request_creates_no_run(
    api: httpx.AsyncClient, redis: Redis, request_: dict[str, Any], status: int, code: str
) -> None:
    response = await api.post("/runs", **request_)

    assert (response.status_code, response.json()["code"]) == (status, code)
    assert await keys_of_clients(redis) == []


async def test_queue_limit_of_a_tenant_gives_429_with_retry_after(api: httpx.AsyncClient, redis: Redis) -> None:
    await redis.hset(keys.LIMITS, "default:runs_queued", 1)
    await create(api)
    response = await create(api)

    assert (response.status_code, response.json()["code"]) == (429, "too_many_runs")
    assert int(response.headers["retry-after"]) >= 1
    assert len((await api.get("/runs")).json()["runs"]) == 1


async def test_create_with_accept_event_stream_streams_the_run(api: httpx.AsyncClient, redis: Redis) -> None:
    """From the first event to the last one; the run ends by a cancel."""
    posted = asyncio.create_task(create(api, HELLO, Accept="text/event-stream"))

    async def listed() -> list[Any]:
        return (await api.get("/runs")).json()["runs"]

    runs = await until(listed)
    await api.post(runs[0]["links"]["cancel"])
    response = await asyncio.wait_for(posted, 5)

    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["location"] == f"/runs/{runs[0]['id']}"
    assert response.headers["x-run-id"] == runs[0]["id"]
    assert [frame.event for frame in sse.decode(response.content)] == ["run_queued", "cancel"]


async def test_repeated_create_resumes_the_stream_at_the_cursor(api: httpx.AsyncClient, redis: Redis) -> None:
    """As EventSource clients with POST do: they repeat the request with `Last-Event-ID`."""
    made = await create(api, HELLO, Idempotency_Key="k")
    await api.post(made.json()["links"]["cancel"])
    posted = {"Idempotency_Key": "k", "Accept": "text/event-stream"}
    whole = await create(api, HELLO, **posted)
    last_id = whole.headers["x-last-event-id"]

    rest = await create(api, HELLO, **posted, Last_Event_ID="0-1")
    assert [frame.id for frame in sse.decode(rest.content)] == [last_id]
    assert rest.headers["x-ping-s"]
    assert (await create(api, HELLO, **posted, Last_Event_ID=last_id)).status_code == 204
    junk = await create(api, HELLO, Idempotency_Key="k2", Accept="text/event-stream", Last_Event_ID="junk")
    assert (junk.status_code, junk.json()["code"]) == (400, "bad_cursor")
    assert len((await api.get("/runs")).json()["runs"]) == 1


async def test_unreachable_redis_gives_503_with_retry_after(
    app: Starlette, api: httpx.AsyncClient, redis: Redis
) -> None:
    gateway: Gateway = app.state.gateway
    app.state.gateway = replace(gateway, redis=Redis(host="127.0.0.1", port=1, retry_on_timeout=False))

    for response in (await create(api), await api.get("/runs"), await api.get(f"/runs/{new_run_id()}")):
        assert (response.status_code, response.json()["code"]) == (503, "storage_unavailable")
        assert "retry-after" in response.headers


async def test_full_redis_gives_storage_full(api: httpx.AsyncClient, redis: Redis) -> None:
    await redis.config_set("maxmemory", "1")
    try:
        response = await create(api)
    finally:
        await redis.config_set("maxmemory", "0")

    assert (response.status_code, response.json()["code"]) == (503, "storage_full")


# --- GET /runs ---------------------------------------------------------------


async def test_runs_are_listed_newest_first_in_pages(api: httpx.AsyncClient) -> None:
    created = []
    for _ in range(5):
        created.append((await create(api)).json()["id"])
        await asyncio.sleep(0.002)  # ids of one millisecond are in no order
    pages, before = [], ""
    while True:
        page = (await api.get(f"/runs?limit=2{before}")).json()
        pages.append([run["id"] for run in page["runs"]])
        if page["next"] is None:
            break
        before = f"&before={page['next']}"

    newest_first = created[::-1]
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]


async def test_run_list_has_a_limit_and_contains_summaries(api: httpx.AsyncClient) -> None:
    for _ in range(LIST_LIMIT_DEFAULT + 1):
        await create(api)
    page = (await api.get("/runs")).json()

    assert len(page["runs"]) == LIST_LIMIT_DEFAULT
    assert page["runs"][0]["prompt"] == "Hello"
    assert page["runs"][0]["status"] == "queued"
    assert "stages" not in page["runs"][0]


async def test_run_list_survives_unreadable_records(api: httpx.AsyncClient, redis: Redis) -> None:
    """One is corrupt, and one has a state of a newer version, as during an upgrade."""
    newer, spoilt, sound = [(await create(api)).json()["id"] for _ in range(3)]
    await redis.hset(keys.run(newer), "status", "resting")
    await redis.set(keys.run(spoilt), "no record", ex=60)
    runs = (await api.get("/runs")).json()["runs"]

    assert [(run["id"], run["status"]) for run in runs] == [(sound, "queued"), (newer, "running")]
    assert (await api.get(f"/runs/{newer}")).json()["status"] == "running"


async def test_run_list_is_empty_without_runs(api: httpx.AsyncClient) -> None:
    assert (await api.get("/runs")).json() == {"runs": [], "next": None}


async def test_run_list_can_be_filtered(api: httpx.AsyncClient) -> None:
    wanted = (await create(api, {**HELLO, "metadata": {"user": "42"}})).json()["id"]
    await create(api)

    for query in ("metadata.user=42", "status=queued&q=42", f"q={wanted.lower()}&limit=1"):
        page = (await api.get(f"/runs?{query}")).json()
        assert ([run["id"] for run in page["runs"]], page["next"]) == ([wanted], None)
    assert (await api.get("/runs?status=parked,failed")).json() == {"runs": [], "next": None}


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "before=x", "status=done", "q=", "metadata=x"])
async def test_invalid_list_parameters_are_rejected(api: httpx.AsyncClient, query: str) -> None:
    assert (await api.get(f"/runs?{query}")).status_code == 422


# --- GET /runs/{run_id} ------------------------------------------------------


async def test_run_is_returned_with_stages_and_result(api: httpx.AsyncClient, redis: Redis) -> None:
    run_id = (await create(api)).json()["id"]
    run = await take_up(redis, run_id)
    started, _ = await run.put(
        StageStarted(stage_id="extraction", attempt=1),
        StageCompleted(stage_id="extraction", result={"text": "Hi", "finish_reason": "length"}),
    )
    running = (await api.get(f"/runs/{run_id}")).json()
    usage = {
        "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cached_tokens": 1, "cache_write_tokens": None,
        "reasoning_tokens": None,
        "estimated": None,
        "cost": {"amount": 0.5, "currency": "EUR"},
    }  # fmt: skip
    run.producer.put(Done(), TerminalState(RunStatus.SUCCEEDED, retention_s=60, usage=orjson.dumps(usage)))
    await run.producer.flush()
    await runs_by_hand.stop(run)
    ended = (await api.get(f"/runs/{run_id}")).json()

    assert (running["status"], running["result"], running["finished_at"]) == ("running", None, None)
    assert running["stages"] == [
        {
            "stage_id": "extraction",
            "status": "completed",
            "first_id": str(started),
            "usage": None,
            "model": None,
            "provider": None,
            "finish_reason": "length",
            "events": f"/runs/{run_id}/stages/extraction/events",
        }
    ]
    assert (ended["status"], ended["result"], ended["usage"]) == (
        "succeeded",
        {"text": "Hi", "finish_reason": "length", "partial": False, "json": None},
        usage,
    )
    assert ended["finished_at"] >= ended["started_at"] >= ended["created_at"]


@pytest.mark.parametrize(
    "run_id", ["01J9ZK3V7Q8E5W2R4T6Y8V0P1A", "x", "*", "{}", "%00", "01J9ZK3V7Q8E5W2R4T6Y8V0P1A%0A"]
)
async def test_unknown_run_is_not_found(api: httpx.AsyncClient, run_id: str) -> None:
    for response in (await api.get(f"/runs/{run_id}"), await api.post(f"/runs/{run_id}/cancel")):
        assert response.status_code == 404


# --- POST /runs/{run_id}/cancel ----------------------------------------------


async def test_cancel_ends_a_queued_run_immediately(api: httpx.AsyncClient, redis: Redis) -> None:
    run_id = (await create(api)).json()["id"]

    first, again = await api.post(f"/runs/{run_id}/cancel"), await api.post(f"/runs/{run_id}/cancel")

    assert (first.status_code, first.json()["status"]) == (200, "cancelled")
    assert (again.status_code, again.json()) == (200, first.json())
    assert await redis.zscore(keys.ACTIVE, run_id) is None


async def test_first_reason_of_a_cancel_stands_in_the_event_and_the_record(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    run_id = (await create(api)).json()["id"]
    await redis.set(keys.lease(run_id), "w", ex=60)  # without one, the gateway's sweep would end the run in between
    await run_scripts.claim(redis, run_id, "w", token="w")
    for reason in ("the question was wrong", "too slow"):
        assert (await api.post(f"/runs/{run_id}/cancel", json={"reason": reason})).status_code == 202
    await redis.delete(keys.lease(run_id))
    await run_store.end_unheld(redis, settings, run_id, await run_store.read_cancel_event(redis, run_id), "lease")

    events = (await api.get(f"/runs/{run_id}/events", headers={"Accept": "application/json"})).json()["events"]
    assert (events[-1]["event"], events[-1]["data"]["reason"]) == ("cancel", "the question was wrong")
    assert (await api.get(f"/runs/{run_id}")).json()["cancel_reason"] == "the question was wrong"


@pytest.mark.parametrize("body", [{"reason": ""}, {"reason": "x" * 501}, {"reason": 1}, {"because": "x"}])
async def test_bad_reason_cancels_nothing(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    run_id = (await create(api)).json()["id"]

    assert (await api.post(f"/runs/{run_id}/cancel", json=body)).status_code == 422
    assert (await api.get(f"/runs/{run_id}")).json()["status"] == "queued"


async def test_cancel_leaves_a_running_run_to_its_worker(api: httpx.AsyncClient, redis: Redis) -> None:
    run_id = (await create(api)).json()["id"]
    await run_scripts.claim(redis, run_id, "w")

    response = await api.post(f"/runs/{run_id}/cancel")

    assert (response.status_code, response.json()["status"]) == (202, "running")
    assert (await api.get(f"/runs/{run_id}")).json()["cancel_requested"] is True


async def test_cancel_leaves_an_ended_run_unchanged(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    run_id = (await create(api)).json()["id"]
    run = await take_up(redis, run_id)
    await run.end()
    await runs_by_hand.stop(run)

    response = await api.post(f"/runs/{run_id}/cancel")

    assert (response.status_code, response.json()["status"]) == (200, "succeeded")
