"""Requests of the Responses API as bodies of `POST /runs`."""

from typing import Any

import pytest

from stagebus.gateway.views.create_response import as_run
from stagebus.shared.errors import InvalidRequest

USER = {"role": "user", "content": "Hi"}


def run_of(**body: Any) -> dict[str, Any]:
    return {name: value for name, value in as_run({"input": "Hi", **body}).items() if value is not None}


def test_text_is_a_user_message_after_the_instructions() -> None:
    run = run_of(instructions="Be brief.", model="m", max_output_tokens=9, temperature=0.5, metadata={"a": "b"})

    assert run == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, USER],
        "max_tokens": 9,
        "temperature": 0.5,
        "metadata": {"a": "b"},
    }
    ignored = {"store": False, "truncation": "auto", "include": [], "reasoning": {"effort": "low"}, "user": "u"}
    assert run_of(**ignored, text={"format": {"type": "text"}}) == {"messages": [USER]}


def test_output_of_an_earlier_response_can_be_sent_back() -> None:
    call = {"type": "mcp_call", "id": "mcp_R_call_0", "server_label": "stagebus", "name": "add", "arguments": "{}"}
    failed = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "no"}]}
    run = run_of(
        input=[
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "What is it?"},
                {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "low"},
            ]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "mcp_list_tools", "id": "l", "server_label": "stagebus", "tools": []},
            {**call, "output": "5", "error": None, "status": "completed"},
            {**call, "id": "mcp_R_call_1", "output": None, "error": failed, "status": "failed"},
            {"type": "message", "id": "msg_v", "role": "assistant", "content": [], "status": "incomplete"},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
                {"type": "output_text", "text": "Five.", "annotations": [], "logprobs": []},
            ]},
            {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "6"},
            {"role": "user", "content": "Again."},
        ]
    )  # fmt: skip

    ask, calls, five, error, answer, second, six, again = run["messages"]
    assert ask["content"][1] == {
        "type": "image_url",
        "image_url": {"url": "https://example.org/a.png", "detail": "low"},
    }
    assert [made["id"] for made in calls["tool_calls"]] == ["mcp_R_call_0", "mcp_R_call_1"]
    assert (five["tool_call_id"], five["content"]) == ("mcp_R_call_0", "5")
    assert (error["tool_call_id"], error["content"]) == ("mcp_R_call_1", "no")
    assert answer == {"role": "assistant", "content": [{"type": "text", "text": "Five."}]}
    assert second["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}
    assert six == {"role": "tool", "tool_call_id": "c", "content": "6"}
    assert again == {"role": "user", "content": "Again."}


@pytest.mark.parametrize(
    ("tools", "names"),
    [
        (None, None),
        ([], []),
        ([{"type": "mcp", "server_label": "stagebus", "server_url": "https://example.org"}], None),
        ([{"type": "mcp", "server_label": "stagebus", "allowed_tools": ["a", "b"]}], ["a", "b"]),
        ([{"type": "mcp", "server_label": "stagebus", "allowed_tools": {"tool_names": ["a"]}}], ["a"]),
        ([{"type": "mcp", "server_label": "stagebus", "allowed_tools": []}], []),
        ([{"type": "function", "name": "a"}, {"type": "function", "name": "a"}], ["a"]),
        (
            [{"type": "mcp", "server_label": "stagebus"}, {"type": "function", "name": "a", "parameters": {}}],
            ["*", {"type": "function", "function": {"name": "a", "parameters": {}}}],
        ),
    ],
)
def test_tools_are_names_and_definitions(tools: Any, names: list[Any] | None) -> None:
    assert run_of(tools=tools).get("tools") == names


@pytest.mark.parametrize(
    ("choice", "native"),
    [
        ("required", "required"),
        ({"type": "function", "name": "add"}, "add"),
        ({"type": "mcp", "server_label": "stagebus", "name": "add"}, "add"),
        ({"type": "mcp", "server_label": "stagebus"}, "required"),
    ],
)
def test_tool_choice_is_a_word_or_a_name(choice: Any, native: str) -> None:
    assert run_of(tool_choice=choice)["tool_choice"] == native


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": None}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["x"]}, "input.0"),
        ({"input": [{"type": "web_search_call"}]}, "input.0"),
        ({"input": [{"type": ["message"]}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": ["text"]}]}]}, "input.0.0"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_video"}]}]}, "input.0.0"),
        ({"input": [{"type": "mcp_call"}]}, "input.0.0"),
        ({"instructions": ["x"]}, "instructions"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"tools": {}}, "tools"),
        ({"tools": ["x"]}, "tools.0"),
        ({"tools": [{"type": "mcp", "server_label": "elsewhere"}]}, "tools.0"),
        ({"tools": [{"type": "mcp", "server_label": "stagebus", "allowed_tools": [1]}]}, "tools.0"),
    ],
)
def test_unsupported_and_malformed_fields_are_named(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        run_of(**body)

    assert caught.value.errors[0]["field"] == field
