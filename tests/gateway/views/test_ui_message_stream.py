"""The AI SDK's UI message stream: the chunks of a log, resuming, and the AI SDK's own clients."""

import asyncio
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.streaming.fold import RunFacts
from stagebus.gateway.views.ui_message_fold import DONE, UiMessageFold
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import (
    ApprovalDecided,
    ApprovalRequired,
    Cancel,
    Done,
    Error,
    Event,
    RunQueued,
    StageCompleted,
    StageRestarted,
    StageStarted,
    ToolCall,
    ToolCompletionChunk,
    ToolResult,
)
from stagebus.shared.domain.stage_results import ModelStageResult, ToolCallRequest, ToolStageResult
from stagebus.shared.domain.usage import Usage
from stagebus.shared.store import run_store
from tests.support import runs_by_hand
from tests.support.runs_by_hand import RunByHand, chunk
from tests.support.socket_server import serving
from tests.support.third_party import node_driver
from tests.support.waiting import until, until_equal

RUN = "01J9ZK3V7Q8E5W2R4T6Y8U0P1A"
USAGE = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
CALL = ToolCallRequest(id="call_0", name="add", arguments='{"a": 9007199254740993}')
HELLO = {"role": "user", "parts": [{"type": "text", "text": "Hi"}]}


def started(stage_id: str) -> Event:
    return StageStarted(stage_id=stage_id, attempt=1)


def thinks(text: str, stage_id: str = "extraction") -> Event:
    return ToolCompletionChunk.of(stage_id, {"choices": [{"index": 0, "delta": {"reasoning_content": text}}]})


def completed(stage_id: str, text: str, *calls: ToolCallRequest, finish_reason: str = "stop") -> Event:
    result = ModelStageResult(text=text, tool_calls=list(calls), finish_reason=finish_reason)
    return StageCompleted(stage_id=stage_id, result=result.model_dump(exclude_none=True))


def restarted(stage_id: str, sequence: int) -> Event:
    return StageRestarted(stage_id=stage_id, attempt=2, discard_from=sequence)


TOOLS_COMPLETED = StageCompleted(stage_id="tools", result=ToolStageResult(outcomes=[]).model_dump())
# A run with a call, in which the synthesis starts again after its first text.
WITH_CALL: list[Event] = [
    started("extraction"),
    thinks("Hm"),
    chunk("Let me "),
    chunk("add."),
    completed("extraction", "Let me add.", CALL, finish_reason="tool_calls"),
    started("tools"),
    ToolCall(stage_id="tools", call_id="call_0", name="add", arguments=CALL.arguments),
    ToolResult(stage_id="tools", call_id="call_0", name="add", content='{"sum": 5}'),
    TOOLS_COMPLETED,
    started("synthesis"),
    chunk("Wrong", "synthesis"),
    restarted("synthesis", 12),
    chunk("It is ", "synthesis"),
    chunk("5.", "synthesis"),
    completed("synthesis", "It is 5."),
]


def fold(*events: Event) -> list[Any]:
    """Returns the chunks of events that follow `run_queued`, without those that every run has first."""
    made = UiMessageFold(RunFacts(RUN, 0, "m", {}))
    messages: list[bytes] = []
    for sequence, event in enumerate([RunQueued(run_id=RUN, model="m"), *events], 1):
        messages += made.add(f"7-{sequence}".encode(), event.event.encode(), event.data())
    return [orjson.loads(message.removesuffix(DONE).removeprefix(b"data: ")) for message in messages][1:]


def types(chunks: list[Any]) -> list[str]:
    return [chunk["type"] for chunk in chunks]


# --- the fold ----------------------------------------------------------------


def test_run_with_a_call_and_a_restart_is_a_message_of_two_steps() -> None:
    call = {"toolCallId": f"{RUN}.call_0", "providerExecuted": True, "dynamic": True}

    assert fold(*WITH_CALL, Done(usage=USAGE)) == [
        {"type": "start-step"},
        {"type": "reasoning-start", "id": "reasoning_3"},
        {"type": "reasoning-delta", "id": "reasoning_3", "delta": "Hm"},
        {"type": "reasoning-end", "id": "reasoning_3"},
        {"type": "text-start", "id": "text_4"},
        {"type": "text-delta", "id": "text_4", "delta": "Let me "},
        {"type": "text-delta", "id": "text_4", "delta": "add."},
        {"type": "text-end", "id": "text_4"},
        {"type": "tool-input-available", "toolName": "add", "input": {"a": 9007199254740993}, **call},
        {"type": "tool-output-available", "output": {"sum": 5}, **call},
        {"type": "finish-step"},
        {"type": "start-step"},
        {"type": "text-start", "id": "text_12"},
        {"type": "text-delta", "id": "text_12", "delta": "Wrong"},
        {"type": "reset-step"},
        {"type": "text-start", "id": "text_14"},
        {"type": "text-delta", "id": "text_14", "delta": "It is "},
        {"type": "text-delta", "id": "text_14", "delta": "5."},
        {"type": "text-end", "id": "text_14"},
        {"type": "finish-step"},
        {
            "type": "finish",
            "finishReason": "stop",
            "messageMetadata": {"usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}},
        },
    ]


def test_text_that_differs_from_its_deltas_is_written_anew() -> None:
    """Such as text in which the worker found a call, or reasoning."""
    chunks = fold(started("extraction"), thinks("Hm"), chunk("<call>"), completed("extraction", "", CALL))
    rewritten = fold(started("extraction"), thinks("Hm"), chunk("a"), completed("extraction", "b"))
    unsaid = fold(started("extraction"), completed("extraction", "All at once"))

    assert types(chunks)[-5:] == ["reset-step", "reasoning-start", "reasoning-delta", "reasoning-end", CALLED]
    assert types(rewritten)[-7:] == [
        "reset-step", "reasoning-start", "reasoning-delta", "reasoning-end", "text-start", "text-delta", "text-end",
        "finish-step",
    ][-7:]  # fmt: skip
    assert rewritten[-3]["delta"] == "b"
    assert types(unsaid) == ["start-step", "text-start", "text-delta", "text-end", "finish-step"]


CALLED = "tool-input-available"


def test_failed_and_denied_calls_say_so() -> None:
    failed = ToolResult(stage_id="tools", call_id="call_0", name="add", content="no", is_error=True)
    asked = ApprovalRequired(stage_id="tools", call_id="call_0", name="add", arguments="{}", expires_at=1)
    denied = ApprovalDecided(stage_id="tools", call_id="call_0", decision="deny")
    approved = ApprovalDecided(stage_id="tools", call_id="call_0", decision="approve")
    call_id = f"{RUN}.call_0"

    assert fold(failed) == [
        {
            "type": "tool-output-error", "toolCallId": call_id, "errorText": "no",
            "providerExecuted": True, "dynamic": True,
        }
    ]  # fmt: skip
    assert fold(asked, denied, failed) == [
        {"type": "tool-approval-request", "approvalId": call_id, "toolCallId": call_id},
        {"type": "tool-output-denied", "toolCallId": call_id},
    ]
    assert types(fold(asked, approved, failed)) == ["tool-approval-request", "tool-output-error"]


@pytest.mark.parametrize(
    ("arguments", "given"),
    [('{"a": 1}', {"a": 1}), ("[1]", [1]), ("5", 5), ("", ""), ('{"a', '{"a'), ("NaN", "NaN")],
)
def test_input_is_the_value_of_the_arguments_or_their_text(arguments: str, given: Any) -> None:
    call = ToolCallRequest(id="c", name="f", arguments=arguments)

    assert fold(started("extraction"), completed("extraction", "", call))[-1]["input"] == given


@pytest.mark.parametrize(("content", "given"), [("[1]", [1]), ("5", "5"), ("18 °C", "18 °C"), ('"x"', '"x"')])
def test_output_is_the_value_of_objects_and_lists_else_the_text(content: str, given: Any) -> None:
    result = ToolResult(stage_id="tools", call_id="c", name="f", content=content)

    assert fold(result)[0]["output"] == given


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "stop"), ("tool_calls", "stop"), ("length", "length"), ("content_filter", "content-filter")],
)
def test_finish_reason_is_that_of_the_last_model_stage(reason: str, finish: str) -> None:
    chunks = fold(started("extraction"), completed("extraction", "", finish_reason=reason), Done())

    assert chunks[-1]["finishReason"] == finish


def test_stopped_run_ends_its_open_part_and_finishes() -> None:
    """Without `finish`, the workflow transport would ask again and again."""
    cancelled = fold(started("extraction"), chunk("Hal"), Cancel(reason="enough"))
    failed = fold(started("extraction"), chunk("Hal"), Error(error="it broke", code="internal"))

    assert cancelled[-3:] == [
        {"type": "text-end", "id": "text_3"},
        {"type": "abort", "reason": "enough"},
        {"type": "finish", "finishReason": "other"},
    ]
    assert failed[-3:] == [
        {"type": "text-end", "id": "text_3"},
        {"type": "error", "errorText": "it broke"},
        {"type": "finish", "finishReason": "error"},
    ]


# --- the routes --------------------------------------------------------------


def chunks_of(body: bytes) -> list[bytes]:
    """Returns the chunks of a stream, as bytes."""
    frames = [frame for frame in body.split(b"\n\n") if frame.startswith(b"data: ")]
    return [frame for frame in frames if frame != DONE.strip()]


@pytest.fixture
async def ended(run: RunByHand) -> RunByHand:
    """A run with a call and a restart that has ended."""
    await run.put(*WITH_CALL)
    await run.end(Done(usage=USAGE))
    return run


async def take_up(redis: Redis, response: httpx.Response) -> RunByHand:
    return await runs_by_hand.claim_by_hand(redis, response.headers["x-workflow-run-id"])


async def test_every_chunk_is_a_position_and_every_reader_gets_the_same_bytes(
    app: Starlette, web: httpx.AsyncClient, run: RunByHand
) -> None:
    hub = app.state.gateway.hub
    path = f"/api/chat/{run.run_id}/stream"
    live = asyncio.create_task(web.get(path))
    from_start = asyncio.create_task(web.get(path, params={"startIndex": 0}))
    await until_equal(lambda: hub.open_streams, 2)
    await run.put(*WITH_CALL[:11])
    late = asyncio.create_task(web.get(path, params={"startIndex": 5}))
    await until_equal(lambda: hub.open_streams, 3)
    await run.put(*WITH_CALL[11:])
    await run.end(Done(usage=USAGE))
    whole = chunks_of((await from_start).content)

    assert len(whole) == 22
    assert chunks_of((await live).content) == whole
    assert chunks_of((await late).content) == whole[5:]
    assert (await live).content.endswith(DONE)
    for index in range(len(whole) + 1):
        assert chunks_of((await web.get(path, params={"startIndex": index})).content) == whole[index:]
        response = await web.get(path, params={"startIndex": -index - 1})
        assert chunks_of(response.content) == whole[max(0, len(whole) - index - 1) :]
        assert response.headers["x-workflow-stream-tail-index"] == "21"
    headers = (await live).headers
    assert headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert headers["x-workflow-run-id"] == headers["x-run-id"] == run.run_id
    assert headers["content-type"] == "text/event-stream"


async def test_late_reader_without_an_index_gets_nothing_that_is_void(web: httpx.AsyncClient, ended: RunByHand) -> None:
    """So that AI SDK 6, which does not know `reset-step`, can join."""
    response = await web.get(f"/api/chat/{ended.run_id}/stream")

    assert b"reset-step" not in response.content
    assert b"Wrong" not in response.content
    assert b"It is " in response.content


@pytest.mark.parametrize("index", ["23", "x", "", "1.5", "9" * 30, "٣"])
async def test_index_beyond_the_chunks_is_refused(web: httpx.AsyncClient, ended: RunByHand, index: str) -> None:
    response = await web.get(f"/api/chat/{ended.run_id}/stream", params={"startIndex": index})

    assert (response.status_code, response.json()["code"]) == (400, "bad_start_index")


async def test_chat_stands_for_its_newest_run(web: httpx.AsyncClient, redis: Redis) -> None:
    chat, path = "a chat/1", "/api/chat/a%20chat%2F1"
    assert (await web.get(f"{path}/stream")).status_code == 204
    assert (await web.post(f"{path}/stop")).status_code == 404

    async with web.stream("POST", "/api/chat", json={"id": chat, "messages": [HELLO]}) as first:
        first_id = first.headers["x-run-id"]
    body = {"id": chat, "messages": [HELLO], "stagebus": {"max_rounds": 2}, "metadata": {"a": "b"}, "trigger": "x"}
    async with web.stream("POST", "/api/chat", json=body) as second:
        second_id = second.headers["x-run-id"]
        stopped = await web.post(f"{path}/stop")
        await second.aread()
    record = await run_store.get_run(redis, second_id)
    resumed = await web.get(f"{path}/stream")
    async with web.stream("GET", f"/api/chat/{first_id}/stream") as by_run:
        assert by_run.headers["x-run-id"] == first_id

    assert (stopped.status_code, stopped.json()["id"], stopped.json()["status"]) == (200, second_id, "cancelled")
    assert (record.request["max_rounds"], record.request["metadata"]) == (2, {"a": "b"})
    assert resumed.headers["x-run-id"] == second_id
    assert [orjson.loads(c[6:])["type"] for c in chunks_of(resumed.content)] == ["start", "abort", "finish"]


async def test_repeated_post_streams_the_same_run_and_moves_no_chat_back(web: httpx.AsyncClient) -> None:
    async def post(key: str, text: str = "Hi") -> httpx.Response:
        message = {"role": "user", "parts": [{"type": "text", "text": text}]}
        body = {"id": "c", "messages": [message]}
        async with web.stream("POST", "/api/chat", json=body, headers={"Idempotency-Key": key}) as response:
            return response

    first, newer, again, other = await post("a"), await post("b"), await post("a"), await post("a", "Hello")

    assert first.headers["x-run-id"] == again.headers["x-run-id"] != newer.headers["x-run-id"]
    assert other.status_code == 422
    await web.post(f"/runs/{newer.headers['x-run-id']}/cancel")
    assert (await web.get("/api/chat/c/stream")).headers["x-run-id"] == newer.headers["x-run-id"]


async def test_messages_are_read_leniently(web: httpx.AsyncClient, redis: Redis) -> None:
    image = {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AA=="}
    messages = [
        {"id": "1", "role": "system", "parts": [{"type": "text", "text": "Be brief."}]},
        {"id": "2", "role": "user", "parts": [{"type": "text", "text": "Look:"}, image, {"type": "data-x", "data": 1}]},
        {"id": "3", "role": "assistant", "parts": [
            {"type": "step-start"}, {"type": "reasoning", "text": "Hm"}, {"type": "text", "text": "A", "state": "done"},
            {"type": "dynamic-tool", "toolName": "f", "toolCallId": "c", "state": "output-available", "input": 1},
            {"type": "text", "text": "B"},
        ]},
        {"id": "4", "role": "assistant", "parts": []},
        {"id": "5", "role": "user", "parts": [{"type": "text", "text": "And now?"}], "metadata": {"x": 1}},
    ]  # fmt: skip
    body = orjson.dumps({"messages": messages, "messageId": None, "model": "demo"})
    headers = {"Content-Type": "text/plain;charset=UTF-8"}  # as fetch sends a string
    async with web.stream("POST", "/api/chat", content=body, headers=headers) as response:
        record = await run_store.get_run(redis, response.headers["x-run-id"])

    assert record.model == "demo"
    assert record.request["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look:"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            ],
        },
        {"role": "assistant", "content": "A\n\nB"},
        {"role": "user", "content": "And now?"},
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "parts": []}]}, "messages"),
        ({"messages": [HELLO], "id": ""}, "id"),
        ({"messages": [HELLO], "id": "a\nb"}, "id"),
        ({"messages": [HELLO], "id": "a\0"}, "id"),
        ({"messages": [HELLO], "model": 7}, "model"),
        ({"messages": [HELLO], "stagebus": {"no_such": 1}}, "stagebus.no_such"),
        ({"messages": [HELLO], "stagebus": 1}, "stagebus"),
        ({"messages": [{"role": "user", "parts": "x"}]}, "messages.0.parts"),
    ],
)
async def test_bad_body_names_its_field(web: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    response = await web.post("/api/chat", json=body)

    assert response.status_code == 422
    assert field in [error["field"] for error in response.json()["errors"]]


async def test_chat_of_another_tenant_does_not_exist(client_of: Any, redis: Redis) -> None:
    alice, bob = await client_of("alice"), await client_of("bob")
    body = {"id": "c", "messages": [HELLO]}
    posted = asyncio.create_task(alice.post("/api/chat", json=body))  # this client reads whole bodies only
    await until(lambda: redis.keys("sb:chat:*"))

    assert (await bob.get("/api/chat/c/stream")).status_code == 204
    assert (await bob.post("/api/chat/c/stop")).status_code == 404
    assert (await alice.post("/api/chat/c/stop")).status_code == 200
    run_id = (await posted).headers["x-run-id"]
    assert (await bob.get(f"/api/chat/{run_id}/stream")).status_code == 204


# --- the AI SDK --------------------------------------------------------------


def text_of(message: Any) -> str:
    return "|".join(part["text"] for part in message["parts"] if part["type"] == "text")


async def test_ai_sdk_sends_resumes_and_survives_a_cut_at_every_chunk(
    app: Starlette, settings: Settings, redis: Redis
) -> None:
    async with serving(app, settings) as (host, port), node_driver("ui_messages.mjs", f"http://{host}:{port}") as node:
        asking = asyncio.create_task(node.ask(do="send", chat="c", text="Hi", body={"metadata": {"user": "7"}}))
        run_id = await _run_of_chat(redis)
        run = await runs_by_hand.claim_by_hand(redis, run_id)
        await run.put(*WITH_CALL)
        await run.end(Done(usage=USAGE))
        sent = await asking

        assert (sent["status"], sent["error"], sent["finishReason"]) == ("ready", None, "stop")
        assert [message["role"] for message in sent["messages"]] == ["user", "assistant"]
        answer = sent["messages"][1]
        assert text_of(answer) == "Let me add.|It is 5."
        (call,) = [part for part in answer["parts"] if part["type"] == "dynamic-tool"]
        assert (call["state"], call["output"], call["providerExecuted"]) == ("output-available", {"sum": 5}, True)
        assert answer["metadata"] == {
            "runId": run_id, "usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5},
        }  # fmt: skip

        resumed = await node.ask(do="resume", chat="c")
        assert (resumed["status"], resumed["messages"][-1]["id"]) == ("ready", f"msg_{run_id}")
        assert text_of(resumed["messages"][-1]) == "Let me add.|It is 5."
        for at in range(22):
            torn = await node.ask(do="torn", run=run_id, at=at)
            first, second = torn["requests"]
            assert first == "?startIndex=0"
            # A stream that breaks drops what the client has not taken out of its buffer.
            assert 0 <= int(second.removeprefix("?startIndex=")) <= at
            assert text_of(torn["message"]) == "Let me add.|It is 5."
        await runs_by_hand.stop(run)


@pytest.mark.parametrize(
    ("end", "seen"),
    [
        (Cancel(), {"status": "ready", "finishReason": "other"}),
        (Error(error="it broke", code="internal"), {"status": "error", "error": "it broke", "isError": True}),
    ],
    ids=["cancelled", "failed"],
)
async def test_ai_sdk_sees_how_a_stopped_run_ended(
    app: Starlette, settings: Settings, redis: Redis, end: Event, seen: dict[str, Any]
) -> None:
    async with serving(app, settings) as (host, port), node_driver("ui_messages.mjs", f"http://{host}:{port}") as node:
        asking = asyncio.create_task(node.ask(do="send", chat="c", text="Hi", body={}))
        run = await runs_by_hand.claim_by_hand(redis, await _run_of_chat(redis))
        await run.put(started("extraction"), chunk("Half"))
        await run.end(end)
        sent = await asking
        await runs_by_hand.stop(run)

    assert {name: sent[name] for name in seen} == seen
    assert text_of(sent["messages"][-1]) == "Half"


async def _run_of_chat(redis: Redis) -> str:
    await until(lambda: redis.keys("sb:chat:*"))
    (key,) = await redis.keys("sb:chat:*")
    return (await redis.get(key)).decode()
