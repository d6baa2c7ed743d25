"""The body of a request to the Responses API."""

from typing import Any

import orjson
import pytest
from openai.types.responses import ResponseInputParam
from pydantic import TypeAdapter

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.model_items import ModelItems
from stagebus.worker.model.chat_request import ORIGIN_KEY, MessageOrigin
from stagebus.worker.model.responses_request import responses_request_body

Json = dict[str, Any]

USER = {"role": "user", "content": "What is the weather?"}
FUNCTION = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
ITEMS = [
    {"type": "reasoning", "summary": [], "encrypted_content": "secret"},
    {"type": "message", "role": "assistant", "content": [], "phase": "commentary"},
    {"type": "function_call"},
]


def route(extra_body: Json | None = None, **abilities: Any) -> ModelRoute:
    return ModelRoute("m", "openai", "gpt", Abilities(api="responses", **abilities), extra_body or {})


def body(*messages: Json, to: ModelRoute | None = None, **fields: Any) -> Json:
    return responses_request_body({"messages": [USER, *messages], **fields}, to or route())


def called(call_id: str = "call_1", items: ModelItems | None = None, **fields: Any) -> Json:
    function = {"name": "weather", "arguments": '{"city":"Paris"}'}
    calls = [{"id": call_id, "type": "function", "function": function}]
    origin = MessageOrigin("openai", items=items)
    return {"role": "assistant", "content": None, "tool_calls": calls, ORIGIN_KEY: origin, **fields}


def result(call_id: str = "call_1") -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": "18"}


def own(**fields: Any) -> ModelItems:
    return ModelItems(**{"api": "responses", "provider": "openai", "model": "gpt", "items": ITEMS, **fields})


CALL_ITEM = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Paris"}'}
OUTPUT_ITEM = {"type": "function_call_output", "call_id": "call_1", "output": "18"}


def test_nothing_is_stored_and_encrypted_reasoning_is_asked_for() -> None:
    written = body()

    assert written.pop("prompt_cache_key")
    assert written == {
        "model": "gpt", "input": [USER], "stream": True, "store": False, "include": ["reasoning.encrypted_content"],
    }  # fmt: skip


def test_messages_become_items() -> None:
    parts = [
        {"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "file", "file": {"file_id": "f", "filename": None}},
    ]  # fmt: skip
    said = {"role": "assistant", "content": [{"type": "text", "text": "I see."}], "refusal": None}
    written = responses_request_body(
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "In French."},
                      {"role": "user", "content": parts}, said, {"role": "system", "content": "Later."}]},
        route(),
    )  # fmt: skip

    assert written["instructions"] == "Be brief.\n\nIn French."
    assert written["input"] == [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": "https://x/y.png", "detail": "auto"},
                {"type": "input_file", "file_id": "f"},
            ],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": "I see."}]},
        {"role": "system", "content": "Later."},
    ]


def test_calls_and_results_become_items() -> None:
    assert body(called(content="Hm."), result())["input"][1:] == [
        {"role": "assistant", "content": "Hm."}, CALL_ITEM, OUTPUT_ITEM,
    ]  # fmt: skip


def test_own_items_go_back_in_their_order() -> None:
    assert body(called(items=own(), content="shown"), result())["input"][1:] == [*ITEMS[:2], CALL_ITEM, OUTPUT_ITEM]


@pytest.mark.parametrize("other", [{"provider": "azure"}, {"model": "gpt-mini"}, {"api": "messages"}])
def test_items_of_another_model_are_left_out(other: Json) -> None:
    assert body(called(items=own(**other)), result())["input"][1:] == [CALL_ITEM, OUTPUT_ITEM]


def test_calls_follow_the_items_if_their_number_changed() -> None:
    two = own(items=[*ITEMS, {"type": "function_call"}])

    assert body(called(items=two), result())["input"][1:] == [*ITEMS[:2], CALL_ITEM, OUTPUT_ITEM]


def test_tools_are_not_strict_unless_they_say_so() -> None:
    strict = {"type": "function", "function": {**FUNCTION, "strict": True}}
    written = body(
        tools=[*TOOLS, strict], tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
    )  # fmt: skip

    assert [tool["strict"] for tool in written["tools"]] == [False, True]
    assert written["tools"][0] == {"type": "function", "strict": False, **FUNCTION}
    assert written["tool_choice"] == {"type": "function", "name": "weather"}
    assert written["parallel_tool_calls"] is False


def test_declared_tools_keep_the_prefix_and_cannot_be_called() -> None:
    extraction = body(tools=TOOLS, tool_choice="auto", declared_tools=TOOLS)
    synthesis = body(called(), result(), declared_tools=TOOLS)

    assert synthesis["tools"] == extraction["tools"]
    assert synthesis["tool_choice"] == "none"
    assert synthesis["prompt_cache_key"] == extraction["prompt_cache_key"]
    assert "tools" not in body(declared_tools=TOOLS, to=route(caching=False))
    assert orjson.dumps(synthesis["input"]).startswith(orjson.dumps(extraction["input"])[:-1])


def test_cache_key_differs_between_conversations() -> None:
    other = responses_request_body({"messages": [{"role": "user", "content": "Another?"}]}, route())

    assert other["prompt_cache_key"] != body()["prompt_cache_key"]
    assert "prompt_cache_key" not in body(to=route(caching=False))


def test_parameters_have_the_names_of_the_api() -> None:
    schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
    written = body(
        max_tokens=5, temperature=0.5, top_p=None, seed=1, stop=["x"], reasoning_effort="low", verbosity="low",
        service_tier="flex", response_format={"type": "json_schema", "json_schema": schema},
        to=route({"reasoning": {"summary": "auto", "effort": "high"}, "text": {"x": 1}}),
    )  # fmt: skip

    assert written["max_output_tokens"] == 16
    assert (written["temperature"], written["service_tier"]) == (0.5, "flex")
    assert written["reasoning"] == {"summary": "auto", "effort": "low"}
    assert written["text"] == {"x": 1, "verbosity": "low", "format": {"type": "json_schema", **schema}}
    assert not {"top_p", "seed", "stop", "max_tokens"} & written.keys()


def test_fields_of_the_file_are_left_out() -> None:
    written = body(temperature=1, to=route(leave_out=["temperature", "include"]))

    assert not {"temperature", "include"} & written.keys()


def test_items_have_the_types_of_the_sdk() -> None:
    """Servers such as vLLM check requests by the SDK's own types."""
    parts = [
        {"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "file", "file": {"file_id": "f"}},
    ]  # fmt: skip
    items = own(items=[{"id": "rs", **ITEMS[0]}, {**ITEMS[1], "content": "Hm."}, ITEMS[2]])
    written = body(
        {"role": "user", "content": parts}, {"role": "assistant", "content": "I see."},
        called(items=items), result(), called("call_2", content="Hm."), result("call_2"),
    )  # fmt: skip

    assert TypeAdapter(ResponseInputParam).validate_python(written["input"])
