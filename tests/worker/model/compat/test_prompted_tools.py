"""Tools for models without native calls: the prompt, and the parsing of the answer."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from stagebus.worker.model.compat.call_fragments import ParsedCall
from stagebus.worker.model.compat.prompted_tools import (
    correction_messages,
    example_call,
    find_call_faults,
    parse_prompted_calls,
    prompt_with_tools,
)

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
USER = {"role": "user", "content": "Is it warm in Köln?"}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
KOELN = ParsedCall("", "get_weather", '{"city":"Köln"}')


def called(call_id: str, city: str) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'},
    }


def told(messages: list[dict[str, Any]], choice: Any = "auto", *, is_one_call: bool = False) -> list[dict[str, Any]]:
    return prompt_with_tools(messages, [WEATHER], choice, is_one_call=is_one_call)


def test_tools_are_described_in_the_system_message() -> None:
    system, user = told([USER])

    assert system["role"] == "system"
    assert '<tools>\n{"name": "get_weather", "parameters": {"type": "object"}}\n</tools>' in system["content"]
    assert user == USER


@pytest.mark.parametrize("role", ["system", "developer"])
def test_own_system_text_comes_first(role: str) -> None:
    parts = [{"type": "text", "text": "Be kind."}]

    assert told([{"role": role, "content": "Be kind."}, USER])[0]["content"].startswith(
        "Be kind.\n\nYou may call tools."
    )
    assert told([{"role": role, "content": parts}, USER])[0]["content"][0] == parts[0]
    assert len(told([{"role": role, "content": parts}, USER])) == 2


@pytest.mark.parametrize(
    ("choice", "is_one_call", "words"),
    [
        ("auto", False, ["If you need no tool", "one <tool_call> after the other"]),
        ("required", False, ["You have to call at least one tool now"]),
        (NAMED, True, ["You have to call the tool get_weather now, and no other", "one <tool_call> at the most"]),
    ],
)
def test_tool_choice_is_put_into_the_prompt(choice: Any, is_one_call: bool, words: list[str]) -> None:
    content = told([USER], choice, is_one_call=is_one_call)[0]["content"]

    assert all(word in content for word in words)
    assert ("If you need no tool" in content) == (choice == "auto")


def test_calls_and_results_become_text_without_tools() -> None:
    messages = [
        USER,
        {"role": "assistant", "content": "Let me see.", "tool_calls": [called("1", "Köln"), called("2", "Bonn")]},
        {"role": "tool", "tool_call_id": "1", "content": "18 °C"},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "19 °C"}]},
    ]

    user, assistant, results = prompt_with_tools(messages, [], None, is_one_call=False)
    assert user == USER
    assert assistant == {
        "role": "assistant",
        "content": f"Let me see.\n{CALL}\n{CALL.replace('Köln', 'Bonn')}",
    }
    assert results["role"] == "user"
    assert results["content"].count("<tool_response>") == 2
    assert '{"name": "get_weather", "content": "18 °C"}' in results["content"]
    assert parse_prompted_calls(assistant["content"], ["get_weather"])[1][0] == KOELN, (
        "the parser reads the format of the prompt"
    )


BOOKING = {
    "name": "book",
    "parameters": {
        "properties": {
            "place": {"type": "string"},
            "table": {"type": "string", "examples": ["window"]},
            "room": {"enum": ["inside", "outside"]},
            "guests": {"type": "integer"},
            "price": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "smokes": {"type": "boolean"},
            "kind": {"const": "dinner"},
            "dishes": {"type": "array", "items": {"type": "string"}},
            "who": {"$ref": "#/$defs/Person"},
            "note": {"type": "string"},
        },
        "required": ["place", "table", "room", "guests", "price", "smokes", "kind", "dishes", "who"],
    },
}


def test_example_call_follows_the_system_message_as_documented() -> None:
    page = (Path(__file__).parents[4] / "docs" / "tools.md").read_text()
    *example, asked = json.loads(re.findall(r"```json\n(\[\n  \{\"role\".+?)```", page, re.DOTALL)[0])
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}, WEATHER]

    system, *rest = prompt_with_tools([asked], tools, "auto", is_one_call=False, has_example=True)
    assert rest == [*example, asked]
    assert system == prompt_with_tools([asked], tools, "auto", is_one_call=False)[0]
    assert prompt_with_tools([asked], [], "auto", is_one_call=False, has_example=True) == [asked]


def test_example_call_has_arguments_of_the_right_types() -> None:
    (call,) = parse_prompted_calls(example_call(BOOKING)[1]["content"], ["book"])[1]

    assert json.loads(call.arguments) == {
        "place": "example", "table": "window", "room": "inside", "guests": 1, "price": 1.5, "smokes": True,
        "kind": "dinner", "dishes": [], "who": {},
    }  # fmt: skip


def test_invalid_json_arguments_stay_text() -> None:
    broken = {"id": "1", "function": {"name": "f", "arguments": "{oops"}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [broken]}]

    assert '"arguments": "{oops"' in prompt_with_tools(messages, [], None, is_one_call=False)[1]["content"]


JSON = '{"name": "get_weather", "arguments": {"city": "Köln"}}'


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (CALL, ""),
        (f"Let me see.\n{CALL}", "Let me see."),
        (CALL.removesuffix("</tool_call>"), ""),
        (f"Let me see.\n```json\n{JSON}\n```", "Let me see."),
        (f"```\n[{JSON}]\n```", ""),
        (f"\n{JSON} ", ""),
        (f"[{JSON}]", ""),
    ],
)
def test_prompted_call_of_any_form_is_parsed(text: str, rest: str) -> None:
    assert parse_prompted_calls(text, ["get_weather"]) == (rest, [KOELN])


@pytest.mark.parametrize(
    "text",
    [
        "It is warm.",
        '{"city": "Köln"}',
        '{"name": "Ann", "arguments": {}}',
        f"Write `{JSON}` here.",
        "```json\n{}\n```",
        "",
    ],
)
def test_json_that_calls_no_offered_tool_is_the_answer(text: str) -> None:
    assert parse_prompted_calls(text, ["get_weather"]) == (text, [])


def test_marked_call_of_an_unknown_tool_is_parsed() -> None:
    assert [
        call.name for call in parse_prompted_calls(CALL.replace("get_weather", "get_rich"), ["get_weather"])[1]
    ] == ["get_rich"]


@pytest.mark.parametrize("text", ["```{" * 100_000, "```" + "{] " * 100_000, "{" * 300_000, "[" * 300_000 + "]"])
def test_prompted_calls_take_linear_time(text: str) -> None:
    started = time.perf_counter()

    assert parse_prompted_calls(text, ["get_weather"]) == (text, [])
    assert time.perf_counter() - started < 2


async def check(name: str, arguments: str) -> str | None:
    return None if (name, arguments) == ("get_weather", KOELN.arguments) else f"{name} does not take {arguments}"


@pytest.mark.parametrize(
    ("text", "choice", "faults"),
    [
        (CALL, "auto", []),
        ("It is warm.", "auto", []),
        (CALL, NAMED, []),
        (CALL.replace("Köln", "Bonn"), "auto", ['get_weather does not take {"city":"Bonn"}']),
        ('<tool_call>{"name": "get_wea', "auto", ["not a JSON object"]),
        (f"{CALL}<tool_call>{{oops}}</tool_call>", "auto", ["not a JSON object"]),
        ("It is warm.", "required", ["No tool was called; one has to be."]),
        ("It is warm.", NAMED, ["No tool was called; get_weather has to be."]),
        (CALL.replace("get_weather", "f"), NAMED, ["f does not take", "No other tool than get_weather"]),
    ],
)
async def test_call_faults_are_described(text: str, choice: Any, faults: list[str]) -> None:
    found = await find_call_faults(*parse_prompted_calls(text, ["get_weather"]), choice, check)

    assert len(found) == len(faults)
    assert all(words in fault for words, fault in zip(faults, found, strict=True))


async def test_number_of_call_faults_is_limited() -> None:
    calls = [ParsedCall("", str(i), "{}") for i in range(100)]

    assert len(await find_call_faults("", calls, "auto", check)) == 5


def test_correction_repeats_the_answer_and_its_faults() -> None:
    said, asked = correction_messages("<tool_call>{oops", ["What stands there is no JSON.", "And more."])

    assert said == {"role": "assistant", "content": "<tool_call>{oops"}
    assert "- What stands there is no JSON.\n- And more.\n" in asked["content"]
