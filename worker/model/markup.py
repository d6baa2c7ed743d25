r"""What models write into their text that is no text: thoughts and calls; sans-IO.

    <think>…</think>                                              DeepSeek R1, Qwen
    <tool_call>{"name": "f", "arguments": {…}}</tool_call>        Hermes, Qwen
    <tool_call>f<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>    GLM
    <|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{…}<|tool_call_end|>    Kimi
    <function=f><parameter=city>Paris</parameter></function>      Qwen Coder; with JSON inside: Llama
    <|python_tag|>{"name": "f", "parameters": {…}}; …             Llama; also f.call(city="Paris")
    [TOOL_CALLS][{"name": "f", "arguments": {…}}, …]              Mistral; also f[ARGS]{…} and f{…}

A server without the right parser for its model passes these on as content. They are
looked at once, in the whole text, so that it does not matter where it was cut. What
only resembles a call stays text.
Source: https://github.com/vllm-project/vllm/tree/main/vllm/entrypoints/openai/tool_parsers
"""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import orjson

from worker.model.calls import Call, arguments_text

_MARKER: Final = re.compile(
    r"(?:<\|tool_calls_section_begin\|>\s*)?(<tool_call>|<\|python_tag\|>|\[TOOL_CALLS\]|<function=|<\|tool_call_begin\|>)"
)
_GLM_NAME: Final = re.compile(r"\s*([\w.:-]+)\s*(?=<arg_key>)")
# No value reaches into the next call, so that many calls without an end cost no more than their length.
_GLM_ARGUMENT: Final = re.compile(
    r"\s*<arg_key>([^<]*)</arg_key>\s*<arg_value>((?:(?!<tool_call>).)*?)</arg_value>", re.DOTALL
)
_KIMI_NAME: Final = re.compile(r"\s*(?:functions\.)?([\w.-]+)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*(?=\{)")
_KIMI_END: Final = re.compile(r"\s*<\|tool_call_end\|>(?:\s*<\|tool_calls_section_end\|>)?")
_SPACE: Final = re.compile(r"\s*")
_CLOSING: Final = re.compile(r"\s*</tool_call>")
_BETWEEN_LLAMA: Final = re.compile(r"[\s;]*(?:<\|(?:eom_id|eot_id)\|>)?")
_FUNCTION: Final = re.compile(r"\s*(?:<function=)?([\w.:-]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER: Final = re.compile(r"<parameter=([\w.:-]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_MISTRAL_NAME: Final = re.compile(r"\s*([\w.:-]+)\s*(?:\[CALL_ID\]\s*(\w+))?\s*(?:\[ARGS\])?\s*(?=\{)")
_PYTHON_CALL: Final = re.compile(r"\s*([\w.]+)\(.*?\)(?=\s*(?:;|\n|<\||\Z))", re.DOTALL)
_THOUGHTS: Final = re.compile(r"\s*<think>(.*?)(?:</think>\s*|\Z)", re.DOTALL)
# Some templates open the thoughts in the prompt, so that the answer holds nothing but their end.
_THOUGHTS_END: Final = re.compile(r"(?:^|\n)</think>\n\s*")

_JSON: Final = json.JSONDecoder(strict=False)


class _Found(NamedTuple):
    calls: list[Call]
    end: int


def split_thoughts(text: str) -> tuple[str, str]:
    """A text's answer and the thoughts that it opens with."""
    thoughts = []
    while match := _THOUGHTS.match(text):
        thoughts.append(match[1].strip())
        text = text[match.end() :]
    if not thoughts and "<think>" not in text and (match := _THOUGHTS_END.search(text)):
        return text[match.end() :], text[: match.start()].strip()
    return text, "\n".join(thoughts)


def split_calls(text: str) -> tuple[str, list[Call]]:
    """A text without the calls that it holds, and those calls."""
    kept: list[str] = []
    calls: list[Call] = []
    position = 0
    while marker := _MARKER.search(text, position):
        found = _PARSERS[marker[1]](text, marker.end())
        if found.calls:
            kept.append(text[position : marker.start()])
            calls += found.calls
        else:
            kept.append(text[position : marker.end()])
        position = found.end if found.calls else marker.end()
    if not calls:
        return text, []
    return "".join((*kept, text[position:])).strip(), calls


def _hermes(text: str, start: int) -> _Found:
    found = _objects(text, start, _SPACE)
    if not found.calls:
        found = _function(text, start)
    if not found.calls:
        found = _glm(text, start)
    closing = _CLOSING.match(text, found.end)
    return _Found(found.calls, closing.end() if closing else found.end)


def _glm(text: str, start: int) -> _Found:
    name = _GLM_NAME.match(text, start)
    if name is None:
        return _Found([], start)
    arguments: dict[str, Any] = {}
    end = name.end()
    while match := _GLM_ARGUMENT.match(text, end):
        arguments[match[1].strip()] = _loose_value(match[2].strip())
        end = match.end()
    return _Found([Call("", name[1], orjson.dumps(arguments).decode())] if arguments else [], end)


def _kimi(text: str, start: int) -> _Found:
    name = _KIMI_NAME.match(text, start)
    decoded = None if name is None else _decode(text, name.end())
    if name is None or decoded is None:
        return _Found([], start)
    arguments, end = decoded
    return _Found([Call("", name[1], arguments_text(arguments))], _skip(_KIMI_END, text, end))


def _llama(text: str, start: int) -> _Found:
    found = _objects(text, start, _BETWEEN_LLAMA)
    return found if found.calls else _python_calls(text, start)


def _mistral(text: str, start: int) -> _Found:
    calls: list[Call] = []
    end = start
    while match := _MISTRAL_NAME.match(text, end):
        decoded = _decode(text, match.end())
        if decoded is None:
            break
        arguments, end = decoded
        calls.append(Call(match[2] or "", match[1], arguments_text(arguments)))
    return _Found(calls, end) if calls else _objects(text, start, _SPACE)


def _function(text: str, start: int) -> _Found:
    match = _FUNCTION.match(text, start)
    if match is None:
        return _Found([], start)
    body = match[2].strip()
    if body.startswith("{"):
        decoded = _decode(body, 0)
        if decoded is None:
            return _Found([], start)
        return _Found([Call("", match[1], arguments_text(decoded[0]))], match.end())
    arguments = {name: _loose_value(value) for name, value in _PARAMETER.findall(body)}
    return _Found([Call("", match[1], orjson.dumps(arguments).decode())], match.end())


def _loose_value(text: str) -> Any:
    """A parameter's value: JSON where it is some, or else the text itself."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _objects(text: str, start: int, between: re.Pattern[str]) -> _Found:
    """Calls as JSON objects, or lists of them, one after the other."""
    calls: list[Call] = []
    end = start
    while decoded := _decode(text, _skip(between, text, end)):
        value, after = decoded
        these = [_call(item) for item in (value if isinstance(value, list) else [value])]
        if not these or None in these:
            break
        calls += [call for call in these if call is not None]
        end = _skip(between, text, after)
    return _Found(calls, end)


def _skip(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


def _decode(text: str, start: int) -> tuple[Any, int] | None:
    if text[start : start + 1] not in ("{", "["):
        return None
    try:
        return _JSON.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None


def _call(value: object) -> Call | None:
    if not isinstance(value, Mapping):
        return None
    function = value.get("function")
    holder = function if isinstance(function, Mapping) else value
    name = holder.get("name") or (function if isinstance(function, str) else None)
    if not isinstance(name, str):
        return None
    arguments = next((holder[key] for key in ("arguments", "parameters") if key in holder), None)
    call_id = value.get("id")
    return Call(call_id if isinstance(call_id, str) else "", name, arguments_text(arguments) or "{}")


def _python_calls(text: str, start: int) -> _Found:
    calls: list[Call] = []
    end = start
    while match := _PYTHON_CALL.match(text, end):
        call = _python_call(match[0].strip())
        if call is None:
            break
        calls.append(call)
        end = _skip(_BETWEEN_LLAMA, text, match.end())
    return _Found(calls, end)


def _python_call(source: str) -> Call | None:
    """The call that `f.call(city="Paris")` asks for; nothing of it is run."""
    try:
        node = ast.parse(source, mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            return None
        arguments = dict(_keywords(node))
        return Call("", ast.unparse(node.func).removesuffix(".call"), orjson.dumps(arguments).decode())
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _keywords(node: ast.Call) -> Iterator[tuple[str, Any]]:
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("a mapping in the place of a keyword")
        yield keyword.arg, ast.literal_eval(keyword.value)


_PARSERS: Final[Mapping[str, Callable[[str, int], _Found]]] = {
    "<tool_call>": _hermes,
    "<|python_tag|>": _llama,
    "[TOOL_CALLS]": _mistral,
    "<function=": _function,
    "<|tool_call_begin|>": _kimi,
}
