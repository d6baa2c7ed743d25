"""Tools for models without native tool calls: described in the prompt, and called in text; sans-IO.

    system     … <tools>{"name": "get_weather", "description": …, "parameters": {…}}</tools> …
    assistant  <tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>
    user       <tool_response>{"name": "get_weather", "content": "18 °C"}</tool_response>

This is the format of Hermes and Qwen, on which many models were trained. `prompt_with_tools` writes the request
and `parse_prompted_calls` reads the answer. If a call is invalid, the model is asked once more and told what is
wrong (`find_call_faults`, `correction_messages`). Very small models follow examples better than instructions, so
the prompt may contain an example (`example_call`).
"""

import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from stagebus.shared.domain.stage_results import ToolCallRequest
from stagebus.worker.model.compat.call_fragments import ParsedCall
from stagebus.worker.model.compat.text_tool_calls import split_text_calls

Message = dict[str, Any]
ToolChoice = str | dict[str, Any] | None

_MARKER: Final = "<tool_call>"
_FAULTS_MAX: Final = 5
_SYSTEM_ROLES: Final = ("system", "developer")

_INTRODUCTION: Final = """\
You may call tools. Here they are, each with the JSON Schema of its arguments:
<tools>
{tools}
</tools>
To call one, write exactly this and nothing after it; its result comes in <tool_response>:
<tool_call>
{{"name": "the tool's name", "arguments": {{"the argument's name": "its value"}}}}
</tool_call>
{wish}"""
_AUTO: Final = "If you need no tool, answer as usual and write no <tool_call>."
_REQUIRED: Final = "You have to call at least one tool now, whatever you are asked."
_NAMED: Final = "You have to call the tool {name} now, and no other."
_SEVERAL: Final = "For several calls, write one <tool_call> after the other."
_ONE: Final = "Write one <tool_call> at the most."
_EXAMPLE: Final = "Show me how you call {name}."
_EXAMPLE_VALUES: Final = {"string": "example", "integer": 1, "number": 1.5, "boolean": True, "array": [], "null": None}
_AGAIN: Final = """\
That could not be carried out:
{faults}
Answer again from the start, with every <tool_call> whole and right."""

# Models that were not trained on <tool_call> put the JSON into a code block, or answer with nothing but JSON.
_FENCED: Final = re.compile(r"```(?:json|tool_call|tool_code)?\s*([\[{][^`]*[\]}])\s*```")
_AS_CALL: Final = r"<tool_call>\1</tool_call>"


def prompt_with_tools(
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    choice: ToolChoice,
    *,
    is_one_call: bool,
    has_example: bool = False,
) -> list[Message]:
    """Returns the conversation with tools, calls and results as text.

    Args:
        tools: definitions as in chat completions. Without any, only earlier calls and results become text.
        is_one_call: whether the model may make at most one call.
        has_example: whether to show an example call first.
    """
    converted = list(_as_text(messages))
    if not tools:
        return converted
    wish = f"{_choice_prompt(choice)} {_ONE if is_one_call else _SEVERAL}"
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    system, *rest = with_system_text(converted, _INTRODUCTION.format(tools=described, wish=wish))
    return [system, *(example_call(tools[0]["function"]) if has_example else ()), *rest]


def example_call(function: Mapping[str, Any]) -> list[Message]:
    """Returns a made-up question and its call. There is no result, because models would repeat it."""
    schema = function.get("parameters") or {}
    properties = schema.get("properties", {})
    arguments = {name: _example_value(properties.get(name, {})) for name in schema.get("required", ())}
    call = {"name": function["name"], "arguments": json.dumps(arguments)}
    return [
        {"role": "user", "content": _EXAMPLE.format(name=function["name"])},
        {"role": "assistant", "content": _call_text(call)},
    ]


def _example_value(schema: Mapping[str, Any]) -> Any:
    """Returns a value for a parameter: one from its schema, or else one of the right type."""
    named = [*schema.get("examples", ()), *schema.get("enum", ())]
    if named or "const" in schema:
        return named[0] if named else schema["const"]
    kinds = [schema, *schema.get("anyOf", ())]
    kind = next((kind["type"] for kind in kinds if isinstance(kind.get("type"), str)), "object")
    return _EXAMPLE_VALUES.get(kind, {})


def parse_prompted_calls(text: str, tool_names: Collection[str]) -> tuple[str, list[ParsedCall]]:
    """Splits a text into the text without calls, and the calls. Tool names and arguments are not checked."""
    rest, calls = split_text_calls(text, tool_names)
    if calls or _MARKER in text:
        return rest, calls
    whole = text.strip()
    bare = f"<tool_call>{whole}</tool_call>" if whole[:1] in ("{", "[") else text
    for marked in (_FENCED.sub(_AS_CALL, text), bare):
        rest, calls = split_text_calls(marked)
        # JSON that does not call one of these tools is part of the answer.
        if calls and all(call.name in tool_names for call in calls):
            return rest, calls
    return text, []


async def find_call_faults(
    rest: str,
    calls: Sequence[ParsedCall | ToolCallRequest],
    choice: ToolChoice,
    check: Callable[[str, str], Awaitable[str | None]],
) -> list[str]:
    """Returns what is wrong with the calls of an answer, in words for the model.

    Args:
        rest: the answer's text without its calls.
        check: returns what is wrong with a call, given its name and arguments, or None.
    """
    faults = [fault for call in calls if (fault := await check(call.name, call.arguments))]
    if _MARKER in rest:
        faults.append('The content of a <tool_call> is not a JSON object of the form {"name": …, "arguments": {…}}.')
    name = _chosen_name(choice)
    if name and any(call.name != name for call in calls):
        faults.append(f"No other tool than {name} may be called now.")
    if not calls and not faults and (name or choice == "required"):
        faults.append(f"No tool was called; {name or 'one'} has to be.")
    return faults[:_FAULTS_MAX]


def correction_messages(answer: str, faults: Iterable[str]) -> list[Message]:
    """Returns the messages that ask the model to correct its answer."""
    listed = "\n".join(f"- {fault}" for fault in faults)
    rejected = [{"role": "assistant", "content": answer}] if answer else []
    return [*rejected, {"role": "user", "content": _AGAIN.format(faults=listed)}]


def _chosen_name(choice: ToolChoice) -> str | None:
    return choice["function"]["name"] if isinstance(choice, dict) else None


def _choice_prompt(choice: ToolChoice) -> str:
    if name := _chosen_name(choice):
        return _NAMED.format(name=name)
    return _REQUIRED if choice == "required" else _AUTO


def _as_text(messages: Iterable[Message]) -> Iterator[Message]:
    """Yields the messages with calls and results as text. Consecutive results become one message."""
    name_by_id: dict[str, str] = {}
    responses: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            name = name_by_id.get(message.get("tool_call_id", ""), "tool")
            responses.append(_response_text(name, _text_of(message.get("content"))))
            continue
        if responses:
            yield {"role": "user", "content": "\n".join(responses)}
            responses = []
        calls = message.get("tool_calls")
        if not calls:
            yield message
            continue
        name_by_id |= {call["id"]: call["function"]["name"] for call in calls}
        parts = [_text_of(message.get("content")), *(_call_text(call["function"]) for call in calls)]
        yield {"role": "assistant", "content": "\n".join(filter(None, parts))}
    if responses:
        yield {"role": "user", "content": "\n".join(responses)}


def _call_text(function: dict[str, Any]) -> str:
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        arguments = function["arguments"]
    call = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def _response_text(name: str, content: str) -> str:
    result = json.dumps({"name": name, "content": content}, ensure_ascii=False)
    return f"<tool_response>\n{result}\n</tool_response>"


def _text_of(content: object) -> str:
    """Returns a message's text, or the text of its parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def with_system_text(messages: list[Message], text: str) -> list[Message]:
    """Adds a text to the first system message, or a new one: many models accept only one system message."""
    if not messages or messages[0]["role"] not in _SYSTEM_ROLES:
        return [{"role": "system", "content": text}, *messages]
    first = messages[0]
    content = first["content"]
    added = [*content, {"type": "text", "text": text}] if isinstance(content, list) else f"{content}\n\n{text}"
    return [{**first, "content": added}, *messages[1:]]
