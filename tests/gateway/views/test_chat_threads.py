"""Chats of the AI SDK and of AG-UI as threads: the history of a client leads to the turn that it answers."""

import asyncio
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.gateway.views.chat_threads import ChatMessage, thread_fields, thread_id_of
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import DEFAULT_TENANT
from stagebus.shared.domain.threads import Thread, ThreadIdentity
from stagebus.shared.store import thread_store
from stagebus.shared.thread_errors import ThreadNotFound
from tests.gateway.api.test_thread_runs import end
from tests.support.waiting import until

IDENTITY = ThreadIdentity(DEFAULT_TENANT, "", "chat")
RUN, OTHER = "01J9ZK3V7Q8E5W2R4T6Y8V0P1A", "01J9ZK5B2M4T7X9C1F3H5K7N9Q"


def said(role: str, text: str, message_id: str = "") -> dict[str, Any]:
    return {"id": message_id or text, "role": role, "parts": [{"type": "text", "text": text}], "content": text}


def answer_of(run_id: str) -> dict[str, Any]:
    return said("assistant", "an answer", f"msg_{run_id}")


async def turn(
    api: httpx.AsyncClient, redis: Redis, settings: Settings, *messages: dict[str, Any], path: str = "/api/chat"
) -> str:
    """Posts a history, ends the run that it made, and returns that."""
    known = await turns()(redis)
    body = {"id": "chat", "threadId": "chat", "runId": f"r{len(known)}", "messages": messages}
    posting = asyncio.create_task(api.post(path, json=body))
    await until(lambda: grown(redis, len(known)))
    run_id = (await turns()(redis))[-1]
    await end(redis, settings, run_id)
    answer = await posting
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-run-id"] == run_id
    return run_id


def turns() -> Any:
    async def read(redis: Redis) -> list[str]:
        try:
            return [one.run_id for one in (await thread_store.read_thread(redis, IDENTITY)).turns]
        except ThreadNotFound:
            return []

    return read


async def grown(redis: Redis, count: int) -> bool:
    return len(await turns()(redis)) > count


async def read(redis: Redis) -> Thread:
    return await thread_store.read_thread(redis, IDENTITY, with_messages=True)


@pytest.mark.parametrize("path", ["/api/chat", "/agui"])
async def test_history_leads_to_the_turn_that_it_answers(
    api: httpx.AsyncClient, redis: Redis, settings: Settings, path: str
) -> None:
    """The next message, the same again, and another one in its place."""
    hello = said("user", "Hello")
    first = await turn(api, redis, settings, hello, path=path)
    talk = [hello, answer_of(first)]
    second = await turn(api, redis, settings, *talk, said("user", "And?"), path=path)
    again = await turn(api, redis, settings, *talk, said("user", "And?"), path=path)
    edited = await turn(api, redis, settings, said("user", "Good morning"), path=path)
    thread = await read(redis)

    assert [(one.run_id, one.parent_run_id) for one in thread.turns] == [
        (first, ""), (second, first), (again, first), (edited, ""),
    ]  # fmt: skip
    assert [one.messages_in for one in thread.turns] == [
        ({"role": "user", "content": text},) for text in ("Hello", "And?", "And?", "Good morning")
    ]


async def test_new_message_interrupts_the_answer_that_is_being_written(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    body = {"id": "chat", "messages": [said("user", "Hello")]}
    posting = asyncio.create_task(api.post("/api/chat", json=body))
    await until(lambda: grown(redis, 0))
    await turn(api, redis, settings, said("user", "Hello"), said("user", "Stop, this instead"))

    assert b'"type":"abort"' in (await posting).content
    assert [one.status for one in (await read(redis)).turns] == ["cancelled", "succeeded"]


async def test_chat_whose_thread_lacks_the_turn_begins_a_branch_with_the_whole_history(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    """Its turns may be older than the thread's retention, or than threads."""
    run_id = await turn(api, redis, settings, said("user", "Hello"), answer_of(RUN), said("user", "And?"))
    (only,) = (await read(redis)).turns

    assert (only.run_id, only.parent_run_id) == (run_id, "")
    assert [message["content"] for message in only.messages_in] == ["Hello", "an answer", "And?"]


async def test_chat_goes_on_without_a_thread_that_is_full(
    api: httpx.AsyncClient, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagebus.shared.domain.threads.TURNS_MAX", 0)
    posting = asyncio.create_task(api.post("/api/chat", json={"id": "chat", "messages": [said("user", "Hello")]}))
    await until(lambda: redis.exists("sb:active"))
    (run_id,) = await redis.zrange("sb:active", 0, -1)
    await api.post(f"/runs/{run_id.decode()}/cancel")

    assert (await posting).status_code == 200
    assert "thread_id" not in (await api.get(f"/runs/{run_id.decode()}")).json()


def message(role: str, message_id: str = "x", **fields: Any) -> ChatMessage:
    return ChatMessage(message_id, {"role": role, "content": "text", **fields})


def parents(*conversation: ChatMessage) -> list[str]:
    return [fields["parent_run_id"] for fields in thread_fields("chat", conversation)]


def test_newest_known_answer_is_the_parent() -> None:
    talk = [message("user"), message("assistant", f"msg_{RUN}"), message("user")]

    assert parents(*talk) == [RUN, "root"]
    assert parents(*talk, message("assistant", f"msg_{OTHER}_12"), message("user")) == [OTHER, "root"]
    assert parents(message("user"), message("assistant", "greeting"), message("user")) == ["root"]
    assert parents(*talk[:2]) == ["root"], "there is nothing new; the model goes on from the whole conversation"
    assert parents(*talk[:2], message("assistant", "own"), message("user")) == ["root"]


def test_messages_that_a_thread_cannot_have_place_the_run_in_none() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]

    assert parents(message("user"), message("assistant", tool_calls=calls)) == []


def test_chat_id_that_no_thread_can_have_is_hashed() -> None:
    assert thread_id_of("chat") == "chat"
    assert len(thread_id_of("x" * 200)) == len(thread_id_of("..")) == 64


async def respond(api: httpx.AsyncClient, redis: Redis, settings: Settings, **body: Any) -> str:
    """Creates a response in the background and ends it; returns its run."""
    answer = await api.post("/v1/responses", json={"background": True, **body})
    assert answer.status_code == 200, answer.text
    run_id: str = answer.json()["id"].removeprefix("resp_")
    await end(redis, settings, run_id)
    return run_id


async def test_previous_response_is_the_turn_before(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    """The first response has no thread yet: it becomes the first turn's messages."""
    first = await respond(api, redis, settings, input="Hello")
    second = await respond(api, redis, settings, input="And?", previous_response_id=f"resp_{first}")
    third = await respond(api, redis, settings, input="So?", previous_response_id=f"resp_{second}")
    branch = await respond(api, redis, settings, input="Or?", previous_response_id=f"resp_{second}")
    said = [(await api.get(f"/v1/responses/resp_{one}")).json() for one in (first, second, third, branch)]
    identity = ThreadIdentity(DEFAULT_TENANT, "", f"resp_{first}")
    thread = await thread_store.read_thread(redis, identity, with_messages=True)

    assert [(one.run_id, one.parent_run_id) for one in thread.turns] == [
        (second, ""), (third, second), (branch, second),
    ]  # fmt: skip
    assert [[message["content"] for message in one.messages_in] for one in thread.turns] == [
        ["Hello", "And?"], ["So?"], ["Or?"],
    ]  # fmt: skip
    assert [one["previous_response_id"] for one in said] == [None, f"resp_{first}", *[f"resp_{second}"] * 2]


async def test_conversation_is_a_thread(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    first = await respond(api, redis, settings, input="Hello", conversation="chat")
    second = await respond(api, redis, settings, input="And?", conversation={"id": "chat"})

    assert [(one.run_id, one.parent_run_id) for one in (await read(redis)).turns] == [(first, ""), (second, first)]
    assert (await api.get(f"/v1/responses/resp_{second}")).json()["previous_response_id"] is None, "not together"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": f"resp_{RUN}"}, "previous_response_id"),
        ({"previous_response_id": "x"}, "previous_response_id"),
        ({"previous_response_id": f"resp_{RUN}", "conversation": "chat"}, "previous_response_id"),
        ({"conversation": {}}, "conversation"),
        ({"conversation": "chat", "input": [{"type": "message", "role": "assistant", "content": "x"}]}, "input"),
    ],
)
async def test_responses_that_nothing_precedes_are_refused(
    api: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    answer = await api.post("/v1/responses", json={"input": "Hello", **body})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_response_that_has_not_ended_is_not_followed(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    first = (await api.post("/v1/responses", json={"input": "Hello", "background": True})).json()["id"]
    answer = await api.post("/v1/responses", json={"input": "And?", "previous_response_id": first})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "previous_response_id")
    await end(redis, settings, first.removeprefix("resp_"))
