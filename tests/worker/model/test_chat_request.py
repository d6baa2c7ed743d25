"""The same request in each provider's form."""

import re
from typing import Any

import pytest

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute
from stagebus.worker.model.chat_request import ORIGIN_KEY, MessageOrigin, chat_request_body

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
SIGNATURE = {"google": {"thought_signature": "abc="}}
ASKED = {
    "model": "what clients say",
    "messages": [{"role": "user", "content": "Hello"}],
    "tools": TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "max_tokens": 5,
    "temperature": 0.0,
}


def route(extra_body: dict[str, Any] | None = None, provider: str = "p", **abilities: Any) -> ModelRoute:
    return ModelRoute("what clients say", provider, "its-id", Abilities(**abilities), extra_body or {})


def body(asked: dict[str, Any] = ASKED, extra_body: dict[str, Any] | None = None, **abilities: Any) -> dict[str, Any]:
    return chat_request_body(asked, route(extra_body, **abilities))


def assistant(call_id: str = "call_1", origin: MessageOrigin | None = None) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": SIGNATURE}
    return {"role": "assistant", "content": None, "tool_calls": [call]} | (
        {} if origin is None else {ORIGIN_KEY: origin}
    )


def test_request_body_has_all_fields_and_the_provider_s_model_id() -> None:
    assert body() == {
        **ASKED, "model": "its-id", "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


@pytest.mark.parametrize("tools", [None, []])
def test_request_without_tools_has_no_tool_fields(tools: list[Any] | None) -> None:
    """Providers reject tool fields without tools."""
    assert body({**ASKED, "tools": tools}).keys().isdisjoint({"tools", "tool_choice", "parallel_tool_calls"})


@pytest.mark.parametrize(
    ("abilities", "gone", "there"),
    [
        ({"tools": "prompted"}, {"tools", "tool_choice", "parallel_tool_calls"}, {}),
        ({"tools": "none"}, {"tools", "tool_choice", "parallel_tool_calls"}, {}),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls"}, {"tool_choice": "auto"}),
        ({"max_tokens_parameter": "max_completion_tokens"}, {"max_tokens"}, {"max_completion_tokens": 5}),
        ({"stream_options": False}, {"stream_options"}, {"stream": True}),
        ({"leave_out": ["temperature", "tool_choice"]}, {"temperature", "tool_choice"}, {"tools": TOOLS}),
        ({"extra_body": {"options": {"num_ctx": 8192}}}, set(), {"options": {"num_ctx": 8192}}),
        ({"extra_body": {"temperature": 1, "top_p": 0.5}}, set(), {"temperature": 0.0, "top_p": 0.5}),
    ],
)
def test_abilities_change_the_request_body(abilities: dict[str, Any], gone: set[str], there: dict[str, Any]) -> None:
    made = body(**abilities)

    assert gone.isdisjoint(made)
    assert there.items() <= made.items()


def called(call_id: str, name: str, arguments: str, origin: MessageOrigin | None) -> list[dict[str, Any]]:
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    asking = {"role": "assistant", "content": None, "tool_calls": [call]} | ({ORIGIN_KEY: origin} if origin else {})
    return [asking, {"role": "tool", "tool_call_id": call_id, "content": "18 °C"}]


LONG_ID = "call_1__thought__" + "CqYBAXLI2n/+ab==" * 20


@pytest.mark.parametrize("call_id", ["functions.get_weather:0", LONG_ID, "a" * 41, "\ud800"])
def test_call_id_is_plain_for_other_providers_and_kept_for_its_own(call_id: str) -> None:
    messages = called(call_id, "f", "{}", MessageOrigin("kimi"))
    own = chat_request_body({**ASKED, "messages": messages}, route(provider="kimi"))["messages"]
    other = chat_request_body({**ASKED, "messages": messages}, route(provider="openai"))["messages"]

    assert own[0]["tool_calls"][0]["id"] == own[1]["tool_call_id"] == call_id
    assert other[0]["tool_calls"][0]["id"] == other[1]["tool_call_id"]
    assert re.fullmatch("[A-Za-z0-9_-]{1,40}", other[1]["tool_call_id"])


@pytest.mark.parametrize("origin", [None, MessageOrigin("p"), MessageOrigin("other")])
def test_names_and_arguments_are_in_the_form_that_every_provider_accepts(origin: MessageOrigin | None) -> None:
    for name, sent in (
        ("weather_nowcity</arg_key>", "weather_nowcity_arg_key_"),
        ("", "unnamed"),
        ("x" * 80, "x" * 64),
    ):
        asking, _ = chat_request_body({**ASKED, "messages": called("1", name, "", origin)}, route())["messages"]
        assert asking["tool_calls"][0]["function"] == {"name": sent, "arguments": "{}"}
    for written, sent in (('{"a": "b"c"}', '{"invalid_json":"{\\"a\\": \\"b\\"c\\"}"}'), ('{"a": 1}</x>', '{"a":1}')):
        asking, _ = chat_request_body({**ASKED, "messages": called("1", "f", written, origin)}, route())["messages"]
        assert asking["tool_calls"][0]["function"]["arguments"] == sent


def test_messages_of_another_form_are_sent_as_they_are() -> None:
    odd = [{"role": "assistant", "tool_calls": calls} for calls in ([1, {"id": 2}, {"function": 3}], {"id": "a"}, None)]
    odd += [{"role": "tool", "tool_call_id": 7}, {"role": "tool", "tool_call_id": "unknown.id:0"}]

    assert chat_request_body({**ASKED, "messages": odd}, route())["messages"] == odd


def test_extra_content_is_returned_only_to_its_provider() -> None:
    message = assistant(origin=MessageOrigin("gemini"))
    own = chat_request_body({**ASKED, "messages": [message]}, route(provider="gemini"))["messages"][0]
    other = chat_request_body({**ASKED, "messages": [message]}, route(provider="openai"))["messages"][0]

    assert own == assistant()
    assert "extra_content" not in other["tool_calls"][0]
    assert ORIGIN_KEY not in other


def test_reasoning_field_is_sent_with_calls_even_if_empty() -> None:
    for reasoning in ("because", ""):
        messages = [assistant(origin=MessageOrigin("p", reasoning))]
        (message,) = body({**ASKED, "messages": messages}, reasoning_field="reasoning_content")["messages"]

        assert message["reasoning_content"] == reasoning
        assert "reasoning_content" not in body({**ASKED, "messages": messages})["messages"][0]


def test_reasoning_details_are_returned_only_to_their_provider() -> None:
    blocks = [{"type": "reasoning.encrypted", "data": "x"}]
    for origin, given in (
        (MessageOrigin("p", "because", blocks), blocks),
        (MessageOrigin("q", "", blocks), None),
        (MessageOrigin("p"), None),
    ):
        made = chat_request_body(
            {**ASKED, "messages": [assistant(origin=origin)]}, route(provider="p", reasoning_field="reasoning_details")
        )

        assert made["messages"][0].get("reasoning_details") == given


def test_short_call_ids_still_match_call_and_result() -> None:
    answer = {"role": "tool", "tool_call_id": "call_1", "content": "12 °C"}
    messages = [
        assistant(origin=MessageOrigin("p")),
        answer,
        assistant("abcDEF123"),
        {**answer, "tool_call_id": "abcDEF123"},
    ]
    made = body({**ASKED, "messages": messages}, short_call_ids=True)["messages"]
    short = made[0]["tool_calls"][0]["id"]

    assert len(short) == 9
    assert short.isalnum()
    assert made[1]["tool_call_id"] == short
    assert made[2]["tool_calls"][0]["id"] == made[3]["tool_call_id"] == "abcDEF123"
    assert messages[1]["tool_call_id"] == "call_1", "the conversation itself stays as it is"
