"""The Responses view with OpenAI's own SDK, over logs that the tests write themselves."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import Cancel, Error
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.log import sse
from stagebus.shared.store import run_store, tool_catalog
from stagebus.shared.store.tool_catalog import ToolDescription
from tests.gateway.conftest import ClientOf
from tests.support import scripted_log, snapshots
from tests.support.runs_by_hand import RunByHand
from tests.support.scripted_log import ANSWER, EVENTS, RESTART, ask_client, frames_of, go_on, tell
from tests.support.socket_server import serving
from tests.support.waiting import until, until_equal

Claim = Callable[[str], Awaitable[RunByHand]]
OUTPUT = f"I look it up.{ANSWER}"
SOON_S = 10.0


def id_of(run: RunByHand) -> str:
    return f"resp_{run.run_id}"


def stream_url(run: RunByHand) -> str:
    return f"/v1/responses/{id_of(run)}?stream=true"


async def test_create_streams_the_run_that_it_made(openai: AsyncOpenAI, claim: Claim) -> None:
    """The stock client: create, follow, and the helper that assembles the answer, through a restart in mid-text."""
    async with openai.responses.stream(model="demo", input="Hello", metadata={"user": "42"}) as stream:
        created = await anext(stream)
        run = await claim(created.response.id.removeprefix("resp_"))
        telling = asyncio.create_task(tell(run))
        types = [event.type async for event in stream]
        final = await stream.get_final_response()
    await telling

    assert (final.output_text, final.status) == (OUTPUT, "completed")
    assert final.metadata == {"user": "42"}
    assert final.usage.total_tokens == 12
    assert (types[0], types[-1]) == ("response.queued", "response.completed")
    assert await openai.responses.retrieve(final.id) == sdk.types.responses.Response.model_validate(
        final.model_dump(exclude={"output": {"__all__": {"content": {"__all__": {"parsed"}}}}})
    )


async def test_connection_torn_at_every_message_resumes_exactly(
    openai: AsyncOpenAI, http: httpx.AsyncClient, run: RunByHand
) -> None:
    """Also while the run continues: one reader goes from connection to connection with one event each."""
    events: list[Any] = []

    async def hop() -> None:
        while not events or events[-1].type != "response.completed":
            after = {"starting_after": events[-1].sequence_number} if events else {}
            async with await openai.responses.retrieve(id_of(run), stream=True, **after) as stream:
                events.append(await anext(stream))

    hopping = asyncio.create_task(hop())
    await tell(run)
    await asyncio.wait_for(hopping, SOON_S)
    whole = frames_of((await http.get(stream_url(run))).text)

    assert [event.to_dict() for event in events] == [data for _, data in whole]
    for number in (0, 20, len(whole) - 2):
        rest = await openai.responses.retrieve(id_of(run), stream=True, starting_after=number)
        assert [event.sequence_number async for event in rest] == list(range(number + 1, len(whole)))
    nothing = await openai.responses.retrieve(id_of(run), stream=True, starting_after=len(whole) - 1)
    assert [event async for event in nothing] == []


async def test_early_and_late_reader_get_the_same_bytes(http: httpx.AsyncClient, hub: Hub, run: RunByHand) -> None:
    early = asyncio.create_task(http.get(stream_url(run)))
    await until_equal(lambda: hub.open_streams, 1)
    await tell(run, 0, RESTART - 1)
    late = asyncio.create_task(http.get(stream_url(run)))
    await until_equal(lambda: hub.open_streams, 2)
    await tell(run, RESTART - 1)
    bodies = [(await task).content for task in (early, late)]
    again = await http.get(stream_url(run))

    assert bodies[0] == bodies[1] == again.content
    assert b"\r" not in again.content
    assert b"\nid:" not in again.content
    assert b"retry:" not in again.content
    assert again.headers["content-type"] == "text/event-stream"
    assert again.headers["cache-control"] == "no-cache, no-transform"
    assert again.headers["x-run-id"] == run.run_id


async def test_text_is_that_of_the_native_stream(http: httpx.AsyncClient, openai: AsyncOpenAI, run: RunByHand) -> None:
    await tell(run)
    native = sse.decode((await http.get(f"/runs/{run.run_id}/events")).content)
    completed = [frame for frame in native if frame.event == "stage_completed"]

    response = await openai.responses.retrieve(id_of(run))
    messages = [item.content[0].text for item in response.output if item.type == "message"]
    assert len(completed) == 3
    assert all(f'"text":"{text}"' in frame.data for text, frame in zip(messages, completed[::2], strict=True))


async def test_answer_that_is_no_stream_waits_for_the_end(openai: AsyncOpenAI, hub: Hub, claim: Claim) -> None:
    for end, status in ((scripted_log.DONE, "completed"), (Error(error="no", code="model_error"), "failed")):
        creating = asyncio.create_task(openai.responses.create(model="demo", input=f"until {status}"))
        await until(lambda: hub.open_streams == 1)
        run = await claim(next(iter(hub._streams_by_run)))
        await tell(run, 0, len(EVENTS))
        await run.end(end)
        response = await asyncio.wait_for(creating, SOON_S)
        await until_equal(lambda: hub.open_streams, 0)
        assert (response.output_text, response.status) == (OUTPUT, status)


async def test_same_key_is_the_same_run_in_every_form(openai: AsyncOpenAI, claim: Claim) -> None:
    key = {"Idempotency-Key": "once"}
    made = await openai.responses.create(model="demo", input="Hi", background=True, extra_headers=key)
    run = await claim(made.id.removeprefix("resp_"))
    await tell(run)
    stream = await openai.responses.create(model="demo", input="Hi", stream=True, extra_headers=key)
    events = [event async for event in stream]
    waited = await openai.responses.create(model="demo", input="Hi", extra_headers=key)

    assert made.status == "queued"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].response.id == events[-1].response.id == waited.id == made.id
    with pytest.raises(sdk.BadRequestError) as caught:
        await openai.responses.create(model="demo", input="Other", background=True, extra_headers=key)
    assert caught.value.code == "idempotency_conflict"


async def test_cancel_by_the_sdk_is_safe_to_repeat(openai: AsyncOpenAI, claim: Claim, run: RunByHand) -> None:
    stream = await openai.responses.create(model="demo", input="Hi", stream=True)
    response_id = (await anext(aiter(stream))).response.id
    cancelled = [await openai.responses.cancel(response_id) for _ in range(2)]
    events = [event async for event in stream]

    assert {response.status for response in cancelled} == {"cancelled"}
    assert (events[-1].type, events[-1].response.status) == ("response.incomplete", "cancelled")
    await tell(run)
    with pytest.raises(sdk.BadRequestError, match=r"Cannot cancel a completed response\."):
        await openai.responses.cancel(id_of(run))


LOCATE: Any = {"type": "function", "name": "locate", "parameters": {"type": "object"}, "strict": False}


async def test_client_runs_a_function_and_the_next_response_continues_the_run(
    openai: AsyncOpenAI, http: httpx.AsyncClient, claim: Claim, redis: Redis
) -> None:
    """The SDK's helper, then the stream of the rest, whoever repeats the request; both can be read again from any event."""
    async with openai.responses.stream(model="demo", input="Hello", tools=[LOCATE]) as stream:
        run = await claim((await anext(stream)).response.id.removeprefix("resp_"))
        telling = asyncio.create_task(ask_client(run))
        [event async for event in stream]
        first = await stream.get_final_response()
    await telling
    (call,) = [item for item in first.output if item.type == "function_call"]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Oslo"}
    request: Any = {"model": "demo", "previous_response_id": first.id, "input": [output], "tools": [LOCATE]}
    async with openai.responses.stream(**request) as stream:
        results = await redis.hgetall(f"sb:run:{{{run.run_id}}}:results")
        telling = asyncio.create_task(go_on(run))
        begun = await anext(stream)
        [event async for event in stream]
        second = await stream.get_final_response()
    await telling

    assert (first.status, first.output_text, call.name, call.arguments) == (
        "completed", "Where?", "locate", '{"what":"me"}',
    )  # fmt: skip
    assert [item.type for item in first.output] == ["message", "mcp_call", "function_call"]
    assert list(results.values()) == [b'{"content":"Oslo"}']
    assert begun.response.id == second.id == f"{first.id}_2"
    assert (second.status, second.output_text, second.previous_response_id) == ("completed", ANSWER, first.id)
    assert [item.type for item in second.output] == ["message"]
    for response in (first, second):
        assert (await openai.responses.retrieve(response.id)).output_text == response.output_text
        whole = frames_of((await http.get(f"/v1/responses/{response.id}?stream=true")).text)
        assert [data["sequence_number"] for _, data in whole] == list(range(len(whole)))
        assert whole[-1][1]["type"] == "response.completed"
        for number in range(len(whole)):
            rest = await http.get(f"/v1/responses/{response.id}?stream=true&starting_after={number}")
            assert frames_of(rest.text) == whole[number + 1 :]
        beyond = await http.get(f"/v1/responses/{response.id}?stream=true&starting_after={len(whole)}")
        assert beyond.status_code == 400
    again = await openai.responses.create(**request)
    assert (again.id, again.output_text) == (second.id, ANSWER)
    with pytest.raises(sdk.ConflictError):
        await openai.responses.create(**{**request, "input": [{**output, "output": "Bergen"}]})
    following = await openai.responses.create(
        model="demo", previous_response_id=second.id, input="Thanks", background=True
    )
    assert following.id.removeprefix("resp_") != run.run_id
    with pytest.raises(sdk.BadRequestError, match="outputs of the function calls"):
        await openai.responses.create(model="demo", previous_response_id=first.id, input="Thanks")
    for path in ("_3", "_3?stream=true", "_1", "_x"):
        assert (await http.get(f"/v1/responses/{first.id}{path}")).status_code == 404


async def test_outputs_must_be_those_that_the_run_waits_for(openai: AsyncOpenAI, claim: Claim) -> None:
    """A history with its calls and outputs also continues the run; anything else is refused and changes nothing."""
    first = await openai.responses.create(model="demo", input="Hello", tools=[LOCATE], background=True)
    run = await claim(first.id.removeprefix("resp_"))
    await ask_client(run)
    asked = await openai.responses.retrieve(first.id)
    call = asked.output[-1].to_dict()
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Oslo"}
    user = {"role": "user", "content": "Hello"}
    bad: list[Any] = [
        [user],
        [output, user],
        [{**output, "call_id": f"{run.run_id}.call_9"}],
        [{**output, "output": [{"type": "input_image", "image_url": "x"}]}],
    ]
    for wrong in bad:
        with pytest.raises(sdk.BadRequestError) as refused:
            await openai.responses.create(model="demo", previous_response_id=first.id, input=wrong)
        assert refused.value.param == "input"
    with pytest.raises(sdk.BadRequestError, match="Cannot cancel a completed response"):
        await openai.responses.cancel(first.id)
    whole: Any = [user, *(item.to_dict() for item in asked.output), output]
    second = await openai.responses.create(model="demo", input=whole, background=True)
    await go_on(run)

    assert asked.status == "completed"
    assert (second.id, second.status) == (f"{first.id}_2", "queued")
    assert (await openai.responses.retrieve(second.id)).output_text == ANSWER


async def test_response_that_waits_for_outputs_is_cancelled_by_its_own_id(openai: AsyncOpenAI, claim: Claim) -> None:
    first = await openai.responses.create(model="demo", input="Hello", tools=[LOCATE], background=True)
    run = await claim(first.id.removeprefix("resp_"))
    await ask_client(run)
    cancelling = asyncio.create_task(openai.responses.cancel(f"{first.id}_2"))
    await run.end(Cancel())
    cancelled = await cancelling

    assert (cancelled.id, cancelled.status) == (f"{first.id}_2", "cancelled")
    assert (await openai.responses.retrieve(first.id)).status == "completed"


async def test_function_that_a_worker_has_runs_there(openai: AsyncOpenAI, redis: Redis) -> None:
    await tool_catalog.publish_tools(redis, [ToolDescription(name="weather", description="", parameters={})])
    tools: Any = [{"type": "mcp", "server_label": "stagebus"}, LOCATE, {**LOCATE, "name": "weather"}]
    made = await openai.responses.create(model="demo", input="Hello", tools=tools, background=True)
    request = (await run_store.get_run(redis, made.id.removeprefix("resp_"))).request

    assert request["tools"] == ["weather", "locate"]
    assert [tool["name"] for tool in request["client_tools"]] == ["locate"]


async def test_failed_run_ends_with_the_error(openai: AsyncOpenAI, run: RunByHand) -> None:
    await tell(run, 0, 6)
    await run.end(Error(error="the provider is overloaded", code="model_unavailable"))
    events = [event async for event in await openai.responses.retrieve(id_of(run), stream=True)]

    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message == "the provider is overloaded"
    assert events[-1].response.output_text == "I look it up."


@pytest.mark.parametrize("after", ["", "x", "-1", "49", "1.5", "+1", "9" * 40, "٣"])
async def test_bad_position_is_refused(http: httpx.AsyncClient, run: RunByHand, after: str) -> None:
    await tell(run)
    response = await http.get(stream_url(run), params={"stream": "true", "starting_after": after})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "starting_after"
    assert response.headers["x-run-id"] == run.run_id


async def test_drain_and_loss_cut_the_connection(
    app: Starlette, settings: Settings, redis: Redis, hub: Hub, run: RunByHand
) -> None:
    """R5 at the socket: whole frames, then the end of the connection without HTTP's last chunk."""
    async with serving(app, settings) as address:
        await tell(run, 0, 4)
        snapshot = await snapshots.take(redis)
        await tell(run, 4, 6)
        received = []
        for disturb in (hub.drain, lambda: snapshots.restore(redis, snapshot)):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(f"GET {stream_url(run)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await asyncio.wait_for(reader.readuntil(b"it up."), SOON_S)
            await disturb()
            for stream in hub._all_streams():
                stream.catch_up()
            received.append(await asyncio.wait_for(reader.read(), SOON_S))
            writer.close()
            hub.is_draining = False

    assert all(rest.endswith(b"}\n\n\r\n") for rest in received)
    assert not any(b"0\r\n\r\n" in rest for rest in received)


async def test_gateway_that_drains_or_is_full_answers_before_the_stream(
    app: Starlette, http: httpx.AsyncClient, hub: Hub, redis: Redis, run: RunByHand
) -> None:
    async def refusals() -> list[httpx.Response]:
        return [
            await http.get(stream_url(run)),
            await http.post("/v1/responses", json={"model": "demo", "input": "Hi", "stream": True}),
            await http.post("/v1/responses", json={"model": "demo", "input": "Hi"}),
        ]

    runs = await redis.keys("sb:run:*")
    hub.begin_drain()
    draining = await refusals()
    hub.is_draining = False
    hub.open_streams = 10**9
    full = await refusals()
    hub.open_streams = 0

    assert {response.status_code for response in draining} == {503}
    assert {response.status_code for response in full} == {429}
    assert all(response.headers["retry-after"] for response in [*draining, *full])
    assert {response.json()["error"]["type"] for response in full} == {"rate_limit_error"}
    assert sorted(await redis.keys("sb:run:*")) == sorted(runs), "a refused request creates no run"


async def test_redis_away_is_an_error_before_the_stream_and_ends_no_open_one(
    app: Starlette, http: httpx.AsyncClient, hub: Hub, run: RunByHand, nowhere: Redis
) -> None:
    """An open stream goes on when Redis is back."""
    gateway = app.state.gateway
    reading = asyncio.create_task(http.get(stream_url(run)))
    await until_equal(lambda: hub.open_streams, 1)
    app.state.gateway = dataclasses.replace(gateway, redis=nowhere)
    refused = await http.get(stream_url(run))
    app.state.gateway = gateway
    await tell(run)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert refused.headers["retry-after"]
    assert frames_of((await reading).text)[-1][0] == "response.completed"


async def test_tenants_and_scopes_are_apart(client_of: ClientOf, redis: Redis) -> None:
    owner, other = await client_of("acme"), await client_of("other")
    made = (await owner.post("/v1/responses", json={"model": "demo", "input": "Hi", "background": True})).json()["id"]
    writer, reader = await client_of("acme", Scope.RUNS_WRITE), await client_of("acme", Scope.RUNS_READ)
    stopper = await client_of("acme", Scope.RUNS_CANCEL)
    ticket = (await owner.post(f"/runs/{made.removeprefix('resp_')}/ticket")).json()["ticket"]
    anonymous = await client_of("acme")
    del anonymous.headers["Authorization"]

    assert (await owner.get(f"/v1/responses/{made}")).status_code == 200
    for url in (f"/v1/responses/{made}", f"/v1/responses/{made}?stream=true"):
        missing = await other.get(url)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "run_not_found")
    assert (await other.post(f"/v1/responses/{made}/cancel")).status_code == 404
    assert (await writer.post("/v1/responses", json={"input": "Hi", "background": True})).status_code == 403
    assert (await reader.post(f"/v1/responses/{made}/cancel")).status_code == 403
    assert (await stopper.post(f"/v1/responses/{made}/cancel")).status_code == 403, "the answer has the text"
    assert (await anonymous.get(f"/v1/responses/{made}", params={"ticket": ticket})).status_code == 200
    refused = await anonymous.get(f"/v1/responses/{made}")
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert "Bearer" in refused.headers["www-authenticate"]


async def test_models_and_bad_requests(openai: AsyncOpenAI, redis: Redis) -> None:
    assert [model.id async for model in openai.models.list()] == ["demo"]
    await tool_catalog.publish_tools(redis, [ToolDescription(name="weather", description="", parameters={})])

    for body, param in (
        ({"input": []}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "name": "unknown"}]}, "tools"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"temperature": 7}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"extra_body": {"stagebus": {"colour": "red"}}}, "stagebus"),
        ({"extra_body": {"stagebus": {"max_rounds": 99}}}, "stagebus"),
    ):
        with pytest.raises(sdk.BadRequestError) as caught:
            await openai.responses.create(**{"model": "demo", "input": "Hi", "background": True, **body})
        assert caught.value.param == param
    with pytest.raises(sdk.NotFoundError):
        await openai.responses.retrieve("resp_unknown")
