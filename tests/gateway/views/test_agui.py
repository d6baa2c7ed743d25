"""AG-UI: the events of a log, attaching, and AG-UI's own client and validator."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.streaming.fold import RunFacts
from stagebus.gateway.views.agui import key_of
from stagebus.gateway.views.agui_fold import AguiFold
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import Cancel, Done, Error, Event, RunQueued, ToolResult
from stagebus.shared.domain.tenants import DEFAULT_TENANT, RunOwner
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.store import run_list, run_store, thread_store
from tests.gateway.views.test_ui_message_stream import (
    CALL,
    USAGE,
    WITH_CALL,
    completed,
    restarted,
    started,
    thinks,
)
from tests.support import runs_by_hand
from tests.support.runs_by_hand import RunByHand, chunk
from tests.support.socket_server import serving
from tests.support.third_party import node_driver
from tests.support.waiting import until, until_equal

RUN = "01J9ZK3V7Q8E5W2R4T6Y8U0P1A"
HELLO = {"id": "u1", "role": "user", "content": "How much is 2 and 3?"}
ASKED = {"threadId": "t", "runId": "r", "messages": [HELLO], "state": {}, "tools": [], "context": []}


def folded(*events: Event, posted: bytes = b"[]") -> AguiFold:
    fold = AguiFold(RunFacts(RUN, 7, "m", {}), "t", "r", posted)
    for sequence, event in enumerate([RunQueued(run_id=RUN, model="m", at=10), *events], 1):
        fold.add(f"7-{sequence}".encode(), event.event.encode(), event.data())
    return fold


def fold(*events: Event, posted: bytes = b"[]") -> list[Any]:
    """Returns the events of those that follow `run_queued`, without their times."""
    made = AguiFold(RunFacts(RUN, 7, "m", {}), "t", "r", posted)
    frames = b"".join(
        b"".join(made.add(f"7-{sequence}".encode(), event.event.encode(), event.data()))
        for sequence, event in enumerate([RunQueued(run_id=RUN, model="m", at=10), *events], 1)
    )
    return [without_time(event) for event in events_of(frames)]


def events_of(body: bytes) -> list[Any]:
    return [orjson.loads(frame[6:]) for frame in body.split(b"\n\n") if frame.startswith(b"data: ")]


def without_time(event: Any) -> Any:
    return {name: value for name, value in event.items() if name != "timestamp"}


def types(events: Sequence[Any]) -> list[str]:
    return [event["type"] for event in events]


# --- the fold ----------------------------------------------------------------


def test_run_with_a_call_and_a_restart() -> None:
    thought, text, void, again = (
        f"msg_{RUN}_{name}" for name in ("3_reasoning", "4", "12", "14")
    )  # the reasoning and the texts by their first chunks
    call_id = f"{RUN}.call_0"
    arguments = {"name": "add", "arguments": CALL.arguments}
    snapshot = [
        HELLO,
        {"id": thought, "role": "reasoning", "content": "Hm"},
        {
            "id": text, "role": "assistant", "content": "Let me add.",
            "toolCalls": [{"id": call_id, "type": "function", "function": arguments}],
        },
        {"id": f"msg_{RUN}_9", "role": "tool", "content": '{"sum": 5}', "toolCallId": call_id},
    ]  # fmt: skip

    assert fold(*WITH_CALL, Done(usage=USAGE), posted=orjson.dumps([HELLO])) == [
        {"type": "STEP_STARTED", "stepName": "extraction"},
        {"type": "REASONING_START", "messageId": thought},
        {"type": "REASONING_MESSAGE_START", "messageId": thought, "role": "reasoning"},
        {"type": "REASONING_MESSAGE_CONTENT", "messageId": thought, "delta": "Hm"},
        {"type": "REASONING_MESSAGE_END", "messageId": thought},
        {"type": "REASONING_END", "messageId": thought},
        {"type": "TEXT_MESSAGE_START", "messageId": text, "role": "assistant"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": text, "delta": "Let me "},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": text, "delta": "add."},
        {"type": "TEXT_MESSAGE_END", "messageId": text},
        {"type": "TOOL_CALL_START", "toolCallId": call_id, "toolCallName": "add", "parentMessageId": text},
        {"type": "TOOL_CALL_ARGS", "toolCallId": call_id, "delta": CALL.arguments},
        {"type": "TOOL_CALL_END", "toolCallId": call_id},
        {"type": "STEP_FINISHED", "stepName": "extraction"},
        {"type": "STEP_STARTED", "stepName": "tools"},
        {
            "type": "TOOL_CALL_RESULT", "messageId": f"msg_{RUN}_9", "toolCallId": call_id, "role": "tool",
            "content": '{"sum": 5}',
        },
        {"type": "STEP_FINISHED", "stepName": "tools"},
        {"type": "STEP_STARTED", "stepName": "synthesis"},
        {"type": "TEXT_MESSAGE_START", "messageId": void, "role": "assistant"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": void, "delta": "Wrong"},
        {"type": "TEXT_MESSAGE_END", "messageId": void},
        {"type": "MESSAGES_SNAPSHOT", "messages": snapshot},
        {"type": "TEXT_MESSAGE_START", "messageId": again, "role": "assistant"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": again, "delta": "It is "},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": again, "delta": "5."},
        {"type": "TEXT_MESSAGE_END", "messageId": again},
        {"type": "STEP_FINISHED", "stepName": "synthesis"},
        {
            "type": "RUN_FINISHED", "threadId": "t", "runId": "r", "outcome": {"type": "success"},
            "usage": [{"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}],
        },
    ]  # fmt: skip


def test_every_event_has_the_newest_time_of_the_log() -> None:
    made = AguiFold(RunFacts(RUN, 7, "m", {}), "t", "r", b"[]")
    frames = [made.opening(is_attached=False)]
    for sequence, event in enumerate([RunQueued(run_id=RUN, model="m", at=10), started("extraction"), chunk("a")], 1):
        frames += made.add(f"7-{sequence}".encode(), event.event.encode(), event.data())
    frames += made.add(b"7-4", b"done", Done(at=20).data())

    assert [event["timestamp"] for event in events_of(b"".join(frames))] == [7, 10, 10, 10, 20, 20, 20]


def test_void_reasoning_stays_in_the_snapshot_without_text() -> None:
    """A snapshot without any reasoning would leave the client's as it is."""
    (snapshot,) = [
        event["messages"]
        for event in fold(started("extraction"), thinks("Wrong"), chunk("Wrong"), restarted("extraction", 3))
        if event["type"] == "MESSAGES_SNAPSHOT"
    ]

    assert snapshot == [{"id": f"msg_{RUN}_3_reasoning", "role": "reasoning", "content": ""}]


def test_text_that_differs_from_its_deltas_is_corrected_by_a_snapshot() -> None:
    corrected = fold(started("extraction"), chunk("<call>"), completed("extraction", "Hello"))
    unsaid = fold(started("extraction"), completed("extraction", "Hello"))
    silent = fold(started("extraction"), completed("extraction", "", CALL))

    assert types(corrected)[-2:] == ["MESSAGES_SNAPSHOT", "STEP_FINISHED"]
    assert corrected[-2]["messages"] == [{"id": f"msg_{RUN}_3", "role": "assistant", "content": "Hello"}]
    assert [event.get("delta") for event in unsaid if event["type"] == "TEXT_MESSAGE_CONTENT"] == ["Hello"]
    assert silent[1]["parentMessageId"] == f"msg_{RUN}_3"


def test_stopped_run_ends_what_is_open() -> None:
    cancelled = fold(started("extraction"), chunk("Hal"), Cancel())
    failed = fold(started("extraction"), chunk("Hal"), Error(error="it broke", code="internal"))

    assert types(cancelled)[-3:] == ["TEXT_MESSAGE_END", "STEP_FINISHED", "RUN_FINISHED"]
    assert cancelled[-1] == {"type": "RUN_FINISHED", "threadId": "t", "runId": "r", "outcome": {"type": "cancelled"}}
    assert failed[-1] == {"type": "RUN_ERROR", "message": "it broke", "code": "internal"}


def test_attached_connection_is_brought_up_to_date() -> None:
    mid_text = events_of(folded(started("extraction"), thinks("Hm"), chunk("Hal")).opening(is_attached=True))
    mid_thought = events_of(folded(started("extraction"), thinks("Hm")).opening(is_attached=True))
    silent = events_of(folded(started("extraction")).opening(is_attached=True))
    failed_call = ToolResult(stage_id="tools", call_id="call_0", name="add", content="no", is_error=True)
    ended = events_of(folded(*WITH_CALL[:7], failed_call, Cancel()).opening(is_attached=True))

    assert types(mid_text) == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "STEP_STARTED", "TEXT_MESSAGE_START"]
    assert [message["content"] for message in mid_text[1]["messages"]] == ["Hm", "Hal"]
    assert mid_text[3]["messageId"] == mid_text[1]["messages"][1]["id"]
    assert types(mid_thought)[3:] == ["REASONING_START", "REASONING_MESSAGE_START"]
    assert types(silent) == ["RUN_STARTED", "STEP_STARTED"]
    assert types(ended) == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
    assert ended[1]["messages"][-1]["error"] == "no"


# --- the route ---------------------------------------------------------------


async def the_run(redis: Redis, tenant: str = "default") -> str:
    """Waits for the tenant's first run and returns its id."""

    async def ids() -> list[str]:
        return [run.run_id for run in (await run_list.list_runs(redis, RunOwner(tenant), 10)).runs]

    await until(ids)
    (run_id,) = await ids()
    return run_id


async def test_ids_name_a_run_and_later_requests_attach_to_it(
    app: Starlette, web: httpx.AsyncClient, redis: Redis
) -> None:
    first = asyncio.create_task(web.post("/agui", json=ASKED))
    run = await runs_by_hand.claim_by_hand(redis, await the_run(redis))
    await run.put(*WITH_CALL[:3])
    own = {"id": f"msg_{run.run_id}_4", "role": "assistant", "content": "Let"}
    other = {"id": "u2", "role": "user", "content": "Something else"}
    late = asyncio.create_task(web.post("/agui", json={**ASKED, "messages": [HELLO, own, other]}))
    await until_equal(lambda: app.state.gateway.hub.open_streams, 2)
    by_id = asyncio.create_task(web.post("/agui", json={**ASKED, "threadId": "x", "runId": run.run_id}))
    await until_equal(lambda: app.state.gateway.hub.open_streams, 3)
    await run.put(*WITH_CALL[3:])
    await run.end(Done(usage=USAGE))
    responses = [await first, await late, await by_id]
    await runs_by_hand.stop(run)
    whole, attached, named = (events_of(response.content) for response in responses)

    assert {response.headers["x-run-id"] for response in responses} == {run.run_id}
    assert len((await run_list.list_runs(redis, RunOwner("default"), 10)).runs) == 1
    assert types(whole)[:2] == ["RUN_STARTED", "STEP_STARTED"]
    assert types(attached)[:4] == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "STEP_STARTED", "TEXT_MESSAGE_START"]
    assert [message["id"] for message in attached[1]["messages"]][:2] == ["u1", "u2"]
    assert attached[4:] == [
        event if event["type"] != "MESSAGES_SNAPSHOT" else {**event, "messages": [HELLO, other, *event["messages"][1:]]}
        for event in whole[-len(attached[4:]) :]
    ]
    assert (named[0]["threadId"], named[0]["runId"], named[-1]["runId"]) == ("x", run.run_id, run.run_id)
    again = events_of((await web.post("/agui", json=ASKED)).content)
    assert types(again) == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]


async def test_messages_become_those_of_chat_completions(web: httpx.AsyncClient, redis: Redis) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        {"id": "1", "role": "system", "content": "Be brief."},
        {"id": "2", "role": "user", "name": "Ann", "content": [
            {"type": "text", "text": "Look:"},
            {"type": "image", "source": {"type": "data", "value": "AA==", "mimeType": "image/png"}},
            {"type": "image", "source": {"type": "url", "value": "https://x.test/a.png"}},
        ]},
        {"id": "3", "role": "reasoning", "content": "Hm"},
        {"id": "4", "role": "assistant", "content": "", "toolCalls": [call]},
        {"id": "5", "role": "tool", "toolCallId": "c1", "content": "5"},
        {"id": "6", "role": "activity", "activityType": "x", "content": {}},
        {"id": "7", "role": "user", "content": "And now?"},
    ]  # fmt: skip
    props = {"model": "demo", "stagebus": {"max_rounds": 2}, "other": 1}
    async with web.stream("POST", "/agui", json={**ASKED, "messages": messages, "forwardedProps": props}) as response:
        record = await run_store.get_run(redis, response.headers["x-run-id"])
    identity = ThreadIdentity(DEFAULT_TENANT, "", ASKED["threadId"])
    thread = await thread_store.read_thread(redis, identity, with_messages=True)

    assert (record.model, record.request["max_rounds"]) == ("demo", 2)
    assert list(thread.turns[0].messages_in) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "Look:"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
        ]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
        {"role": "user", "content": "And now?"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"threadId": None}, "threadId"),
        ({"runId": 7}, "runId"),
        ({"runId": ""}, "runId"),
        ({"messages": "x"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard"}]}, "messages.0"),
        ({"forwardedProps": {"model": 7}}, "forwardedProps.model"),
        ({"forwardedProps": {"stagebus": {"no_such": 1}}}, "forwardedProps.stagebus"),
    ],
)
async def test_bad_input_names_its_field(web: httpx.AsyncClient, change: dict[str, Any], field: str) -> None:
    response = await web.post("/agui", json=ASKED | change)

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert any(error["field"].startswith(field) for error in response.json()["errors"]), response.json()


def test_no_two_pairs_of_ids_have_one_key() -> None:
    pairs = [("a", "b\0c"), ("a\0b", "c"), ('a","b', "c"), ("a", 'b","c'), ("", "x")]

    assert len({key_of(*pair) for pair in pairs}) == len(pairs)


async def test_ids_are_the_tenants_own(client_of: Any, redis: Redis) -> None:
    """These clients read whole bodies only."""
    alice, bob = await client_of("alice"), await client_of("bob")
    first = asyncio.create_task(alice.post("/agui", json=ASKED))
    run_id = await the_run(redis, "alice")
    second = asyncio.create_task(bob.post("/agui", json={**ASKED, "runId": run_id}))
    other_id = await the_run(redis, "bob")
    await alice.post(f"/runs/{run_id}/cancel")
    await bob.post(f"/runs/{other_id}/cancel")

    assert ((await first).headers["x-run-id"], (await second).headers["x-run-id"]) == (run_id, other_id)


# --- AG-UI's own programs ----------------------------------------------------


def validate(tmp_path: Path, body: bytes) -> None:
    """Fails with the findings of AG-UI's validator, if there are any."""
    recorded = tmp_path / "stream.sse"
    recorded.write_bytes(body)
    program = Path(sys.executable).with_name("ag-ui-validate")
    checked = subprocess.run([program, recorded, "--max-warnings", "0"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def texts_of(messages: list[Any]) -> list[tuple[str, Any]]:
    return [(message["role"], message.get("content")) for message in messages]


SAID = [
    ("user", HELLO["content"]),
    ("reasoning", "Hm"),
    ("assistant", "Let me add."),
    ("tool", '{"sum": 5}'),
    ("assistant", "It is 5."),
]


async def test_ag_ui_client_follows_a_run_and_survives_a_cut_at_every_event(
    app: Starlette, settings: Settings, redis: Redis, tmp_path: Path
) -> None:
    async with serving(app, settings) as (host, port), node_driver("agui.mjs", f"http://{host}:{port}") as node:
        asking = asyncio.create_task(node.ask(do="run", thread="t", run="r", messages=[HELLO], props={}))
        run = await runs_by_hand.claim_by_hand(redis, await the_run(redis))
        for event in WITH_CALL:
            await run.put(event)
        await run.end(Done(usage=USAGE))
        live = await asking

        assert (live["error"], live["warnings"]) == (None, [])
        assert texts_of(live["messages"]) == SAID
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as web:
            attached = await web.post("/agui", json=ASKED)
        validate(tmp_path, attached.content)
        await runs_by_hand.stop(run)
        for at in range(len(live["events"])):
            torn = await _torn(node, redis, at)
            assert (torn["error"], torn["warnings"]) == (None, []), at
            assert texts_of(torn["messages"]) == SAID, at


async def _torn(node: Any, redis: Redis, at: int) -> Any:
    """Follows a new run over a connection that is torn after `at` events."""
    known = {run.run_id for run in (await run_list.list_runs(redis, RunOwner("default"), 100)).runs}
    asking = asyncio.create_task(node.ask(do="run", thread="t", run=f"r{at}", messages=[HELLO], props={}, tearAt=at))

    async def new() -> set[str]:
        return {run.run_id for run in (await run_list.list_runs(redis, RunOwner("default"), 100)).runs} - known

    await until(new)
    (run_id,) = await new()
    run = await runs_by_hand.claim_by_hand(redis, run_id)
    await run.put(*WITH_CALL)
    await run.end(Done(usage=USAGE))
    await runs_by_hand.stop(run)
    return await asking


@pytest.mark.parametrize("end", [Done(usage=USAGE), Cancel(), Error(error="it broke", code="internal")])
async def test_streams_are_clean_by_the_validator(
    web: httpx.AsyncClient, redis: Redis, tmp_path: Path, end: Event
) -> None:
    """The first connection, and one that attaches in mid-text."""
    first = asyncio.create_task(web.post("/agui", json=ASKED))
    run: RunByHand = await runs_by_hand.claim_by_hand(redis, await the_run(redis))
    await run.put(*WITH_CALL[:14])
    late = asyncio.create_task(web.post("/agui", json=ASKED))
    await run.end(end)
    await runs_by_hand.stop(run)

    validate(tmp_path, (await first).content)
    validate(tmp_path, (await late).content)
