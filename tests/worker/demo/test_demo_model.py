"""The demo over HTTP, as clients of OpenAI and Open-Meteo see it."""

import asyncio
import json

import httpx
import openai
import pytest

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
PROMPT = [{"role": "user", "content": "What is the weather in Paris and in Tokyo?"}]


@pytest.fixture
async def http(demo_url):
    async with httpx.AsyncClient(base_url=demo_url) as client:
        yield client


@pytest.fixture
async def sdk(demo_url):
    async with openai.AsyncOpenAI(base_url=f"{demo_url}/v1", api_key="demo", max_retries=0) as client:
        yield client


async def test_sdk_reads_the_stream(sdk):
    stream = await sdk.chat.completions.create(
        model="demo:delay_ms=0", messages=PROMPT, tools=TOOLS, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    arguments = {0: "", 1: ""}
    for chunk in chunks:
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            arguments[call.index] += call.function.arguments
    assert [json.loads(text) for text in arguments.values()] == [{"city": "Paris"}, {"city": "Tokyo"}]
    assert chunks[-2].choices[0].finish_reason == "tool_calls"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


async def test_sdk_reads_the_whole_answer(sdk):
    calling = await sdk.chat.completions.create(model="demo", messages=PROMPT, tools=TOOLS)
    plain = await sdk.chat.completions.create(model="demo", messages=PROMPT)

    assert [json.loads(call.function.arguments)["city"] for call in calling.choices[0].message.tool_calls] == [
        "Paris",
        "Tokyo",
    ]
    assert calling.choices[0].finish_reason == "tool_calls"
    assert "demo model" in plain.choices[0].message.content
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens


async def test_sdk_lists_the_model(sdk):
    assert [model.id async for model in sdk.models.list()] == ["demo"]


async def test_sdk_maps_demo_errors(sdk):
    with pytest.raises(openai.RateLimitError) as failure:
        await sdk.chat.completions.create(model="demo:status=429,retry_after=3", messages=PROMPT)
    assert failure.value.response.headers["retry-after"] == "3"
    assert failure.value.type == "rate_limit_error"
    with pytest.raises(openai.BadRequestError, match="speed"):
        await sdk.chat.completions.create(model="demo:speed=3", messages=PROMPT)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"model": "demo"}', b'{"model": "demo", "messages": [1]}'])
async def test_bad_request_gets_an_openai_error(http, body):
    answer = await http.post("/v1/chat/completions", content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_fail_times_counts_per_conversation(http):
    def asked(content):
        messages = [{"role": "user", "content": content}]
        return http.post("/v1/chat/completions", json={"model": "demo:status=500,fail_times=2", "messages": messages})

    assert [(await asked("times")).status_code for _ in range(3)] == [500, 500, 200]
    assert (await asked("another")).status_code == 500


async def test_faults_apply_to_their_stage(http):
    def asked(**fields):
        body = {"model": "demo:delay_ms=0,status=500,on=synthesis", "messages": PROMPT, **fields}
        return http.post("/v1/chat/completions", json=body)

    assert (await asked(tools=TOOLS)).status_code == 200
    assert (await asked()).status_code == 500


async def test_unstreamed_answer_can_have_faults(http):
    body = {"model": "demo:cut_after=0", "messages": PROMPT}
    with pytest.raises(httpx.RemoteProtocolError):
        await http.post("/v1/chat/completions", json=body)
    answer = await http.post("/v1/chat/completions", json=body | {"model": "demo:garbage_after=0"})
    with pytest.raises(json.JSONDecodeError):
        answer.json()


async def test_disconnect_ends_a_silent_stream(http):
    body = {"model": "demo:delay_ms=0,stall_after=0", "messages": PROMPT, "stream": True}
    async with http.stream("POST", "/v1/chat/completions", json=body):
        assert (await http.get("/demo/stats")).json()["open_streams"] == 1
    async with asyncio.timeout(5):
        while (await http.get("/demo/stats")).json()["open_streams"]:
            pass


async def test_stats_count_requests_by_model(http):
    body = {"model": "demo:delay_ms=0,tokens=7", "messages": PROMPT}
    before = (await http.get("/demo/stats")).json()
    await http.post("/v1/chat/completions", json=body)
    after = (await http.get("/demo/stats")).json()

    assert after["requests"] == before["requests"] + 1
    assert after["requests_by_model"][body["model"]] == before["requests_by_model"].get(body["model"], 0) + 1


async def test_same_request_streams_the_same_bytes(http):
    body = {"model": "demo:delay_ms=0", "messages": PROMPT, "tools": TOOLS, "stream": True}

    first, second = [(await http.post("/v1/chat/completions", json=body)).content for _ in range(2)]
    assert first == second
    assert first.endswith(b"data: [DONE]\n\n")
