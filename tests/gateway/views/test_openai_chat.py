"""The chat completions view with OpenAI's own SDK, over logs that the tests write themselves."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from redis.asyncio import Redis

from stagebus.gateway.streaming.fold import END, RunFacts
from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.views.openai_chat import ChatFold, ChatOptions
from stagebus.shared.domain.events import Cancel, Error, StageCompleted, StageRestarted
from tests.gateway.conftest import ClientOf
from tests.support.runs_by_hand import RunByHand, chunk
from tests.support.scripted_log import ANSWER, DONE, EVENTS, RESTART, fold_events, frames_of, tell, thought
from tests.support.waiting import until, until_equal

Claim = Callable[[str], Awaitable[RunByHand]]
RUN = RunFacts("01RUN", 1_700_000_000_123, "m", {})
GOLDEN = Path(__file__).parent / "golden" / "chat.sse"
TEXT = f"I look it up.\n\n{ANSWER}"
ASK: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
KEY = {"Idempotency-Key": "once"}
SOON_S = 10.0
# The log without what the restart made void, as a client gets it that comes later.
SETTLED = [*EVENTS[:15], *EVENTS[RESTART + 1 :]]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for one in chunks for choice in one.choices)


async def begin(openai: AsyncOpenAI, claim: Claim) -> RunByHand:
    """Creates the run of the key."""
    stream = await openai.chat.completions.create(**ASK, stream=True, extra_headers=KEY)
    run_id = (await anext(aiter(stream))).id.removeprefix("chatcmpl-")
    await stream.close()
    return await claim(run_id)


def test_run_without_a_restart_gives_the_golden_chunks() -> None:
    messages = fold_events(ChatFold(RUN, ChatOptions(include_usage=True)), [*SETTLED, DONE])

    assert b"".join(messages) == GOLDEN.read_bytes()
    for _, data in frames_of(GOLDEN.read_text())[:-1]:
        ChatCompletionChunk.model_validate(data)


def test_restart_ends_a_client_that_has_void_text_and_no_other() -> None:
    for said, messages in ((chunk("x"), 2), (thought("x"), 2), (None, 0)):
        fold = ChatFold(RUN)
        fold_events(fold, [said] if said else [])
        restarted = StageRestarted(stage_id="extraction", attempt=2, discard_from=2)
        assert len(given := fold.add(b"2-9", b"stage_restarted", restarted.data())) == messages
        assert not given or given[-1] == END
    tools = StageRestarted(stage_id="tools", attempt=2, discard_from=9)
    assert fold.add(b"2-9", b"stage_restarted", tools.data()) == []


@pytest.mark.parametrize(
    ("reason", "finish_reason"),
    [("stop", "stop"), ("tool_calls", "stop"), ("length", "length"), ("max_tokens", "length"), ("content_filter",) * 2],
)
def test_finish_reason_is_that_of_the_last_stage(reason: str, finish_reason: str) -> None:
    fold = ChatFold(RUN)
    result = {"text": "Hello.", "finish_reason": reason}
    messages = fold_events(fold, [chunk("Hel"), StageCompleted(stage_id="extraction", result=result), DONE])
    chunks = [ChatCompletionChunk.model_validate(data) for _, data in frames_of(b"".join(messages).decode())[:-1]]

    assert text_of(chunks) == "Hello.", "what the chunks left out comes with the result"
    assert chunks[-1].choices[0].finish_reason == finish_reason
    assert ChatCompletion.model_validate(fold.completion()).choices[0].finish_reason == finish_reason


async def test_stream_without_a_restart_has_all_stages_text_and_usage(openai: AsyncOpenAI, claim: Claim) -> None:
    stream = await openai.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = [await anext(aiter(stream))]
    run = await claim(chunks[0].id.removeprefix("chatcmpl-"))
    for event in SETTLED:
        await run.put(event)
    await run.end(DONE)
    chunks += [one async for one in stream]

    assert text_of(chunks) == TEXT
    assert (
        "".join(one.choices[0].delta.model_extra.get("reasoning_content", "") for one in chunks[:-1])
        == "Oslo, I think."
    )
    assert chunks[-1].usage.total_tokens == 12
    assert not any(choice.delta.tool_calls for one in chunks for choice in one.choices)
    assert {one.id for one in chunks} == {f"chatcmpl-{run.run_id}"}


async def test_client_comes_back_at_every_moment_to_the_same_answer(openai: AsyncOpenAI, claim: Claim) -> None:
    """Each connection is cut after one event more; the last one has the whole answer, in spite of the restart."""
    run = await begin(openai, claim)
    for event in EVENTS:
        stream = await openai.chat.completions.create(**ASK, stream=True, extra_headers=KEY)
        await anext(aiter(stream))
        await run.put(event)
        await stream.close()
    await run.end(DONE)
    chunks = [one async for one in await openai.chat.completions.create(**ASK, stream=True, extra_headers=KEY)]

    assert text_of(chunks) == TEXT
    assert {one.id for one in chunks} == {f"chatcmpl-{run.run_id}"}


async def test_restart_in_mid_text_never_ends_in_void_or_doubled_text(
    openai: AsyncOpenAI, http: httpx.AsyncClient, hub: Hub, claim: Claim
) -> None:
    run = await begin(openai, claim)
    await until_equal(lambda: hub.open_streams, 0)
    with_void = asyncio.create_task(http.post("/v1/chat/completions", json={**ASK, "stream": True}, headers=KEY))
    await until_equal(lambda: hub.open_streams, 1)
    await tell(run, 0, RESTART + 1)
    error = frames_of((await asyncio.wait_for(with_void, SOON_S)).text)[-1][1]["error"]
    late = [
        asyncio.create_task(http.post("/v1/chat/completions", json={**ASK, "stream": True}, headers=KEY))
        for _ in range(2)
    ]
    await until_equal(lambda: hub.open_streams, 2)
    await tell(run, RESTART + 1)
    bodies = [(await task).text for task in late]
    bodies.append((await http.post("/v1/chat/completions", json={**ASK, "stream": True}, headers=KEY)).text)

    assert error["code"] == "stage_restarted"
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0].endswith("data: [DONE]\n\n")
    assert "It rai" not in bodies[0]
    chunks = [ChatCompletionChunk.model_validate(data) for _, data in frames_of(bodies[0])[:-1]]
    assert text_of(chunks) == TEXT


async def test_sdk_raises_where_text_became_void(openai: AsyncOpenAI, claim: Claim) -> None:
    stream = await openai.chat.completions.create(**ASK, stream=True)
    run = await claim((await anext(aiter(stream))).id.removeprefix("chatcmpl-"))
    await tell(run, 0, RESTART + 1)

    with pytest.raises(sdk.APIError, match="void"):
        async for _ in stream:
            pass


async def test_answer_that_is_no_stream_survives_a_restart(openai: AsyncOpenAI, hub: Hub, claim: Claim) -> None:
    creating = asyncio.create_task(openai.chat.completions.create(**ASK))
    await until(lambda: hub.open_streams == 1)
    run = await claim(next(iter(hub._streams_by_run)))
    await tell(run)
    completion = await asyncio.wait_for(creating, SOON_S)

    assert completion.choices[0].message.content == TEXT
    assert completion.usage.prompt_tokens_details.cached_tokens == 3
    assert (completion.id, completion.object) == (f"chatcmpl-{run.run_id}", "chat.completion")


@pytest.mark.parametrize(
    ("end", "kind", "code"),
    [
        (Error(error="overloaded", code="model_unavailable"), "server_error", "model_unavailable"),
        (Cancel(), "cancelled", "run_cancelled"),
    ],
)
async def test_run_that_fails_is_an_error_and_is_not_repeated(
    url: str, redis: Redis, hub: Hub, claim: Claim, end: Any, kind: str, code: str
) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2) as openai:
        waiting = asyncio.create_task(openai.chat.completions.create(**ASK, extra_headers=KEY))
        stream = await openai.chat.completions.create(**ASK, stream=True, extra_headers=KEY)
        await until_equal(lambda: hub.open_streams, 2)
        run = await claim((await anext(aiter(stream))).id.removeprefix("chatcmpl-"))
        await run.say("Half")
        await run.end(end)
        with pytest.raises(sdk.APIError) as streamed:
            _ = [one async for one in stream]
        with pytest.raises(sdk.InternalServerError) as waited:
            await asyncio.wait_for(waiting, SOON_S)

    assert (streamed.value.type, streamed.value.code) == (waited.value.type, waited.value.code) == (kind, code)
    assert waited.value.response.headers["x-should-retry"] == "false"
    assert waited.value.response.headers["x-run-id"] == run.run_id


async def test_client_that_leaves_does_not_affect_the_run(openai: AsyncOpenAI, hub: Hub, claim: Claim) -> None:
    waiting = asyncio.create_task(openai.chat.completions.create(**ASK))
    await until_equal(lambda: hub.open_streams, 1)
    run = await claim(next(iter(hub._streams_by_run)))
    waiting.cancel()
    await until_equal(lambda: hub.open_streams, 0)
    await tell(run)


async def test_bad_requests_and_other_tenants(openai: AsyncOpenAI, client_of: ClientOf) -> None:
    for body, param in (
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"n": 2}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"functions": []}, "functions"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stream_options": 7}, "stream_options"),
    ):
        with pytest.raises(sdk.BadRequestError) as caught:
            await openai.chat.completions.create(**{**ASK, **body})
        assert caught.value.param == param
    owner, other = await client_of("acme"), await client_of("other")
    ids = {
        (await client.post("/v1/responses", json={"input": "Hi", "background": True}, headers=KEY)).json()["id"]
        for client in (owner, other)
    }
    assert len(ids) == 2, "keys are per tenant"
