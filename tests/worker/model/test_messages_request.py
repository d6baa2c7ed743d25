"""The body of a request to the Messages API."""

from typing import Any

import pytest

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.model_items import ModelItems
from stagebus.shared.errors import ModelRejected
from stagebus.worker.model.chat_request import ORIGIN_KEY, MessageOrigin
from stagebus.worker.model.messages_request import messages_request_body

Json = dict[str, Any]

USER = {"role": "user", "content": "What is the weather?"}
FUNCTION = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
MARK = {"cache_control": {"type": "ephemeral"}}
THINKING = {"type": "thinking", "thinking": "Hm.", "signature": "signed"}
TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}


def route(extra_body: Json | None = None, **abilities: Any) -> ModelRoute:
    return ModelRoute("m", "anthropic", "claude", Abilities(api="messages", **abilities), extra_body or {})


def body(*messages: Json, to: ModelRoute | None = None, **fields: Any) -> Json:
    return messages_request_body({"messages": [USER, *messages], **fields}, to or route(caching=False))


def called(*call_ids: str, **fields: Any) -> Json:
    function = {"name": "weather", "arguments": '{"city":"Paris"}'}
    calls = [{"id": call_id, "type": "function", "function": function} for call_id in call_ids]
    return {"role": "assistant", "content": None, "tool_calls": calls, ORIGIN_KEY: MessageOrigin("anthropic"), **fields}


def result(call_id: str, content: Any = "18") -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def test_limit_is_always_sent() -> None:
    assert body()["max_tokens"] == 32_000
    assert body(max_tokens=7)["max_tokens"] == 7
    assert body(to=route(max_tokens_default=4096))["max_tokens"] == 4096


def test_results_of_a_round_are_one_message_before_its_text() -> None:
    written = body(
        {"role": "system", "content": "Be brief."}, called("a", "b", content="Hm."), {"role": "user", "content": "And?"},
        result("a"), result("b", ""),
    )  # fmt: skip

    assert written["system"] == [{"type": "text", "text": "Be brief."}]
    assert [message["role"] for message in written["messages"]] == ["user", "assistant", "user"]
    assert written["messages"][1]["content"] == [
        {"type": "text", "text": "Hm."}, {**TOOL_USE, "id": "a"}, {**TOOL_USE, "id": "b"},
    ]  # fmt: skip
    assert written["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "a", "content": "18"}, {"type": "tool_result", "tool_use_id": "b"},
        {"type": "text", "text": "And?"},
    ]  # fmt: skip


def test_own_thinking_goes_back_before_the_calls() -> None:
    items = ModelItems(
        "messages", "anthropic", "claude", [THINKING, {"type": "tool_use", "caller": {"type": "direct"}}]
    )
    answer = called("toolu_1", **{ORIGIN_KEY: MessageOrigin("anthropic", items=items)})
    (_, assistant, _) = body(answer, result("toolu_1"))["messages"]
    (_, of_another, _) = body(
        answer, result("toolu_1"), to=ModelRoute("m", "anthropic", "other", Abilities(api="messages"), {})
    )["messages"]

    assert assistant["content"] == [THINKING, {**TOOL_USE, "caller": {"type": "direct"}}]
    assert of_another["content"] == [TOOL_USE]


def test_call_ids_have_only_the_characters_that_the_api_takes() -> None:
    written = body(called("resp:1"), result("resp:1"), {"role": "user", "content": "x"})
    made, given = written["messages"][1]["content"][0]["id"], written["messages"][2]["content"][0]["tool_use_id"]

    assert made == given
    assert made.replace("_", "").isalnum()


def test_images_and_files_become_blocks() -> None:
    parts = [
        {"type": "text", "text": ""}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,BBBB", "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "f"}}, {"type": "refusal", "refusal": "No."},
    ]  # fmt: skip

    assert body({"role": "user", "content": parts})["messages"][0]["content"][1:] == [
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {
            "type": "document", "title": "a.pdf",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"},
        },
        {"type": "document", "source": {"type": "file", "file_id": "f"}},
        {"type": "text", "text": "No."},
    ]  # fmt: skip


def test_audio_is_rejected_with_its_name() -> None:
    with pytest.raises(ModelRejected, match="input_audio"):
        body({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x", "format": "mp3"}}]})


@pytest.mark.parametrize(
    ("choice", "parallel", "chosen"),
    [
        (None, None, None), ("auto", None, {"type": "auto"}), ("required", None, {"type": "any"}),
        ("none", False, {"type": "none"}), (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"type": "function", "function": {"name": "weather"}}, False,
         {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}),
    ],
)  # fmt: skip
def test_tool_choice_has_the_form_of_the_api(choice: Any, parallel: bool | None, chosen: Json | None) -> None:
    written = body(tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel)

    assert written["tools"] == [{"name": "weather", "description": "d", "input_schema": {"type": "object"}}]
    assert written.get("tool_choice") == chosen


def test_tools_without_parameters_have_a_schema() -> None:
    (tool,) = body(tools=[{"type": "function", "function": {"name": "f", "strict": True}}])["tools"]

    assert tool == {"name": "f", "strict": True, "input_schema": {"type": "object"}}


def test_called_tools_are_declared_but_cannot_be_called_again() -> None:
    asked = [called("a"), result("a")]
    declared = body(*asked, declared_tools=TOOLS, to=route())
    uncached = body(*asked, declared_tools=TOOLS)

    assert declared["tools"] == body(tools=TOOLS, to=route())["tools"]
    assert uncached["tools"] == body(*asked)["tools"] == [{"name": "weather", "input_schema": {"type": "object"}}]
    assert declared["tool_choice"] == uncached["tool_choice"] == {"type": "none"}


def test_cache_marks_are_at_most_four() -> None:
    rounds = [message for call_id in "abc" for message in (called(call_id), result(call_id))]
    written = body({"role": "system", "content": "Be brief."}, *rounds, tools=TOOLS, to=route())
    users = [message for message in written["messages"] if message["role"] == "user"]

    assert str(written).count("cache_control") == 4
    assert written["tools"][-1].items() >= MARK.items()
    assert written["system"][-1].items() >= MARK.items()
    assert [message["content"][-1].items() >= MARK.items() for message in users] == [False, False, True, True]


def test_parameters_have_the_names_of_the_api() -> None:
    schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
    written = body(
        temperature=0.5, top_p=0.9, stop=["x"], seed=1, verbosity="low", service_tier="flex", reasoning_effort="minimal",
        response_format={"type": "json_schema", "json_schema": schema},
        to=route({"thinking": {"type": "adaptive"}}, leave_out=["temperature"]),
    )  # fmt: skip

    assert written["thinking"] == {"type": "adaptive"}
    assert written["output_config"] == {
        "effort": "low",
        "format": {"type": "json_schema", "schema": {"type": "object"}},
    }
    assert (written["top_p"], written["stop_sequences"]) == (0.9, ["x"])
    assert not {"temperature", "seed", "verbosity", "service_tier", "stop", "response_format"} & written.keys()
    assert "output_config" not in body(reasoning_effort="none")
