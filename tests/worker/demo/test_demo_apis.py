"""The demo by the Responses and the Messages API, as their clients see it."""

import json

import httpx
import openai
import pytest

PROMPT = "What is the weather in Paris and in Tokyo?"
FUNCTION = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}
TOOL = {"name": "get_weather", "input_schema": {"type": "object"}}
MODEL = "demo:delay_ms=0,reasoning=1"
CITIES = [{"city": "Paris"}, {"city": "Tokyo"}]


@pytest.fixture
async def http(demo_url):
    async with httpx.AsyncClient(base_url=f"{demo_url}/v1") as client:
        yield client


def data_of(stream: str) -> list[dict]:
    return [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]


async def test_sdk_reads_the_stream_of_a_response_and_gives_its_items_back(demo_url):
    """The SDK checks that each event belongs to the item and the part that were added before it."""
    async with openai.AsyncOpenAI(base_url=f"{demo_url}/v1", api_key="demo", max_retries=0) as sdk:
        async with sdk.responses.stream(model=MODEL, input=PROMPT, tools=[FUNCTION]) as stream:
            async for _ in stream:
                pass
            first = await stream.get_final_response()
        calls = [item for item in first.output if item.type == "function_call"]
        outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "18"} for call in calls]
        items = [item.model_dump(exclude_none=True) for item in first.output]
        question = {"role": "user", "content": PROMPT}
        second = await sdk.responses.create(model=MODEL, input=[question, *items, *outputs])
        with pytest.raises(openai.BadRequestError, match="without the reasoning"):
            await sdk.responses.create(model=MODEL, input=[question, *items[1:], *outputs])
        short = await sdk.responses.create(model="demo:delay_ms=0,tokens=40", input="talk", max_output_tokens=16)

    assert [json.loads(call.arguments) for call in calls] == CITIES
    assert second.output_text.startswith("This is the demo model, and here is what the tools found.")
    assert (short.status, len(short.output_text.split())) == ("incomplete", 16)


async def test_message_is_streamed_and_its_thinking_has_to_come_back(http):
    body = {"model": MODEL, "max_tokens": 1000, "tools": [TOOL], "messages": [{"role": "user", "content": PROMPT}]}
    events = data_of((await http.post("/messages", json={**body, "stream": True})).text)
    whole = (await http.post("/messages", json=body)).json()
    uses = [block for block in whole["content"] if block["type"] == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": use["id"], "content": "18"} for use in uses]

    def follow_up(content: list[dict]) -> dict:
        answered = [{"role": "assistant", "content": content}, {"role": "user", "content": results}]
        return {**body, "messages": body["messages"] + answered}

    second = (await http.post("/messages", json=follow_up(whole["content"]))).json()
    refused = await http.post("/messages", json=follow_up(whole["content"][1:]))

    assert [use["input"] for use in uses] == CITIES
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
    assert second["stop_reason"] == "end_turn"
    assert refused.status_code == 400


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/responses", {}),
        ("/responses", {"input": [1]}),
        ("/messages", {"messages": [{"role": "user", "content": "x"}]}),
        ("/messages", {"max_tokens": 5}),
    ],
)
async def test_bad_request_gets_an_error(http, path, fields):
    answer = await http.post(path, json={"model": "demo", **fields})

    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("path", ["/responses", "/messages"])
async def test_error_of_the_script_is_an_event_of_the_api(http, path):
    body = {"model": "demo:delay_ms=0,error_after=3", "max_tokens": 100, "stream": True}
    question = [{"role": "user", "content": "x"}]
    stream = (await http.post(path, json={**body, "input": question, "messages": question})).text

    assert data_of(stream)[-1]["type"] == "error"
    assert "event: error\n" in stream
