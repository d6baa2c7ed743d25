r"""Parses tool calls in the formats in which models write them into text; sans-IO.

    {"name": "f", "arguments": {…}}                               Hermes, Qwen, Granite, Hunyuan, Nemotron
    f<arg_key>city</arg_key><arg_value>Paris</arg_value>          GLM
    functions.f:0<|tool_call_argument_begin|>{…}                  Kimi
    f<｜tool▁sep｜>{…}                                             DeepSeek
    <function=f><parameter=city>Paris</parameter></function>      Qwen Coder, Seed; with JSON inside: Llama
    <invoke name="f"><parameter name="city">Paris</parameter></invoke>    MiniMax, and others
    call:f{city:<|"|>Paris<|"|>}                                  Gemma 4
    [f(city="Paris"), g()]                                        Llama 3.2 and 4, LFM2, Gemma

Each format has a reader. It takes the whole text and the place where the format may begin, and returns the calls
and the place after them, or no calls if this is another format. Its cost is linear in what it reads, for any text.
Source: https://github.com/vllm-project/vllm/tree/main/vllm/tool_parsers
"""

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import orjson

from stagebus.worker.model.compat.call_fragments import ParsedCall, arguments_text

_JSON: Final = json.JSONDecoder(strict=False)
_SPACE: Final = re.compile(r"\s*")
_SEPARATOR: Final = re.compile(r"[\s;]*(?:<\|(?:eom_id|eot_id)\|>)?\s*")
_NAMES: Final = ("name", "tool_name")
_ARGUMENTS: Final = ("arguments", "parameters", "args")
_CALL_KEYS: Final = frozenset({*_NAMES, *_ARGUMENTS, "type", "id"})

# No value and no body extends into the next call, so that many unclosed calls still take linear time.
_GLM_NAME: Final = re.compile(r"\s*([\w.:-]+)\s*(?=<arg_key>)")
_GLM_ARGUMENT: Final = re.compile(
    r"\s*<arg_key>([^<]*)</arg_key>\s*<arg_value>((?:(?!<tool_call>).)*?)</arg_value>", re.DOTALL
)
_KIMI_NAME: Final = re.compile(r"\s*(?:functions\.)?([\w.-]+)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*(?=\{)")
_KIMI_END: Final = re.compile(r"\s*<\|tool_call_end\|>(?:\s*<\|tool_calls_section_end\|>)?")
_DEEPSEEK_NAME: Final = re.compile(
    r"\s*(?:<[｜|]tool▁call▁begin[｜|]>\s*)?(?:function<[｜|]tool▁sep[｜|]>)?([\w.:-]+)\s*"
    r"(?:<[｜|]tool▁sep[｜|]>\s*)?(?:```(?:json)?\s*)?(?=\{)"
)
_DEEPSEEK_END: Final = re.compile(r"\s*(?:```\s*)?<[｜|]tool▁call▁end[｜|]>")
_GLM_BARE_NAME: Final = re.compile(r"\s*([\w.:-]+)\s*(?=</tool_call>|\Z)")
_GEMMA_NAME: Final = re.compile(r"\s*call:([\w.:-]+)\s*(?=\{)")
_GEMMA_TOKEN: Final = re.compile(
    r'<\|"\|>(?P<text>.*?)<\|"\|>|(?P<json>"(?:\\.|[^"\\])*")|(?P<word>[^\s{}\[\]:,<"]+)|[{}\[\]:,]|\s+', re.DOTALL
)
_GEMMA_KEY_END: Final = re.compile(r"\s*:")
_FUNCTION_NAME: Final = re.compile(r"\s*<function=([\w.:-]+)>")
_FUNCTION_VALUE: Final = re.compile(r"\s*<parameter=([\w.:-]+)>\n?")
# A value may be code that contains such tags, so it ends only where the next parameter or the function's end follows,
# but before another call.
_FUNCTION_VALUE_END: Final = re.compile(r"\n?</parameter>(?=\s*(?:<parameter=|</function>|</tool_call>|\Z))")
_NEXT_CALL: Final = re.compile(r"</function>\s*<function=|<tool_call>")
_FUNCTION_END: Final = re.compile(r"\s*(?:</function>|(?=</tool_call>)|\Z)")
_FUNCTION: Final = re.compile(r"\s*<function=([\w.:-]+)>((?:(?!<function=).)*?)(?:</function>|\Z)", re.DOTALL)
_FUNCTION_PARAMETER: Final = re.compile(r"<parameter=([\w.:-]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_PREFIX: Final = "(?:antml:|[｜|]DSML[｜|])?"
_INVOKE: Final = re.compile(
    rf'\s*<{_PREFIX}invoke name="([^"<>]+)">((?:(?!<{_PREFIX}invoke ).)*?)</{_PREFIX}invoke>', re.DOTALL
)
_INVOKE_PARAMETER: Final = re.compile(
    rf'<{_PREFIX}parameter name="([^"<>]+)"(?: string="(true|false)")?>(\n?)(.*?)\3</{_PREFIX}parameter>', re.DOTALL
)
_MISTRAL_NAME: Final = re.compile(r"\s*([\w.:-]+)\s*(?:\[CALL_ID\]\s*(?P<id>\w+))?\s*(?:\[ARGS\])?\s*(?=\{)")
_FUNCTIONARY_NAME: Final = re.compile(r"\s*(?:>>>)?([\w.-]+)\n(?=\{)")
_PYTHON_NAME: Final = re.compile(r"\s*(?=[\w.]+\()")
_PYTHON_MARK: Final = re.compile(r"\\.|[\"'()\[\]{}]", re.DOTALL)
_PYTHON_MAX_CHARS: Final = 20_000
_CONSTANTS: Final[Mapping[str, bool | None]] = {"true": True, "false": False, "null": None}


class FoundCalls(NamedTuple):
    """The calls that a reader found, and the place after them."""

    calls: list[ParsedCall]
    end: int


def read_objects(text: str, start: int) -> FoundCalls:
    """Reads a sequence of JSON objects, or of lists of them."""
    return _read_objects(text, start, lambda _: True)


def read_bare_objects(text: str, start: int) -> FoundCalls:
    """Reads JSON objects that are certainly calls, and not other JSON such as a tool's description."""
    return _read_objects(text, start, _is_certainly_call)


def _read_objects(text: str, start: int, is_call: Callable[[Any], bool]) -> FoundCalls:
    calls: list[ParsedCall] = []
    end = start
    while decoded := _decode(text, _skip(_SEPARATOR, text, end)):
        value, after = decoded
        found = [
            _parse_call_object(item) if is_call(item) else None
            for item in (value if isinstance(value, list) else [value])
        ]
        if not found or None in found:
            break
        calls += [call for call in found if call is not None]
        end = after
    return FoundCalls(calls, _skip(_SPACE, text, end) if calls else start)


def _is_certainly_call(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value.keys() <= _CALL_KEYS:
        return False
    arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
    return isinstance(arguments, Mapping) and not {"type", "properties"} <= arguments.keys()


def read_glm(text: str, start: int) -> FoundCalls:
    """Reads one call of GLM: its name, then keys and values in tags."""
    name = _GLM_NAME.match(text, start)
    if name is None:
        return FoundCalls([], start)
    texts: dict[str, str] = {}
    end = name.end()
    while match := _GLM_ARGUMENT.match(text, end):
        texts[match[1].strip()] = match[2].strip()
        end = match.end()
    return FoundCalls([_make_text_call(name[1], texts)] if texts else [], end)


def read_glm_name(text: str, start: int) -> FoundCalls:
    """Reads one call of GLM without arguments: only its name. Other text between such tags looks the same."""
    name = _GLM_BARE_NAME.match(text, start)
    return FoundCalls([], start) if name is None else FoundCalls([_make_call(name[1], {})], name.end())


def read_gemma(text: str, start: int) -> FoundCalls:
    """Reads a sequence of calls of Gemma 4: JSON with its own quotation marks and without any around keys."""
    calls: list[ParsedCall] = []
    end = start
    while name := _GEMMA_NAME.match(text, end):
        pieces: list[str] = []
        depth = 0
        position = name.end()
        while (token := _GEMMA_TOKEN.match(text, position)) is not None:
            pieces.append(_gemma_piece(token))
            depth += (token[0] in ("{", "[")) - (token[0] in ("}", "]"))
            position = token.end()
            if depth == 0:
                break
        decoded = _decode("".join(pieces), 0)
        if decoded is None:
            break
        calls.append(ParsedCall("", name[1], arguments_text(decoded[0])))
        end = position
    return FoundCalls(calls, end)


def _gemma_piece(token: re.Match[str]) -> str:
    """Returns a part of the arguments as JSON."""
    if token["text"] is not None:
        return json.dumps(token["text"])
    word = token["word"]
    if word is None:
        return token[0]
    is_key = _GEMMA_KEY_END.match(token.string, token.end()) is not None
    return json.dumps(word) if is_key or isinstance(_json_or_text(word), str) else word


def read_kimi(text: str, start: int) -> FoundCalls:
    """Reads calls of Kimi."""
    return _read_named(text, start, _KIMI_NAME, _KIMI_END)


def read_deepseek(text: str, start: int) -> FoundCalls:
    """Reads calls of DeepSeek. V3 and R1 put the JSON into a code block."""
    return _read_named(text, start, _DEEPSEEK_NAME, _DEEPSEEK_END)


def read_mistral(text: str, start: int) -> FoundCalls:
    """Reads calls of Mistral: a name, an optional id, then arguments."""
    return _read_named(text, start, _MISTRAL_NAME)


def read_functionary(text: str, start: int) -> FoundCalls:
    """Reads calls of Functionary: a line with the name, then arguments."""
    return _read_named(text, start, _FUNCTIONARY_NAME)


def read_function(text: str, start: int) -> FoundCalls:
    """Reads one call as a tag that contains the function's name."""
    name = _FUNCTION_NAME.match(text, start)
    if name is None:
        return FoundCalls([], start)
    texts: dict[str, str] = {}
    position = name.end()
    while value := _FUNCTION_VALUE.match(text, position):
        value_end = _FUNCTION_VALUE_END.search(text, value.end())
        if value_end is None or _NEXT_CALL.search(text, value.end(), value_end.start()):
            break
        texts[value[1]] = text[value.end() : value_end.start()]
        position = value_end.end()
    end = _FUNCTION_END.match(text, position)
    if texts and end is not None:
        return FoundCalls([_make_text_call(name[1], texts)], end.end())
    match = _FUNCTION.match(text, start)
    if match is None:
        return FoundCalls([], start)
    body = match[2].strip()
    if body.startswith("{"):
        decoded = _decode(body, 0)
        return FoundCalls([ParsedCall("", match[1], arguments_text(decoded[0]))] if decoded else [], match.end())
    texts = dict(_FUNCTION_PARAMETER.findall(body))
    return FoundCalls([_make_text_call(match[1], texts)] if texts or not body else [], match.end())


def read_invokes(text: str, start: int) -> FoundCalls:
    """Reads a sequence of `invoke` tags."""
    calls: list[ParsedCall] = []
    end = start
    while match := _INVOKE.match(text, end):
        arguments = {
            name: value if is_text == "true" else _json_or_text(value)
            for name, is_text, _, value in _INVOKE_PARAMETER.findall(match[2])
        }
        texts = {name: value for name, is_text, _, value in _INVOKE_PARAMETER.findall(match[2]) if not is_text}
        calls.append(_make_call(match[1], arguments)._replace(texts=texts))
        end = match.end()
    return FoundCalls(calls, end)


def read_python(text: str, start: int) -> FoundCalls:
    """Reads a list or a sequence of Python calls. The code is parsed, never executed."""
    calls: list[ParsedCall] = []
    end = _skip(_SPACE, text, start)
    if text.startswith("[", end):
        after = _find_python_end(text, end)
        return FoundCalls(_parse_python_list(text[end:after]), after)
    while name := _PYTHON_NAME.match(text, end):
        after = _find_python_end(text, name.end())
        call = _parse_python_call(_parse_expression(text[name.end() : after]))
        if call is None:
            break
        calls.append(call)
        end = _skip(_SEPARATOR, text, after)
    return FoundCalls(calls, end)


def _read_named(
    text: str, start: int, name_pattern: re.Pattern[str], end_pattern: re.Pattern[str] | None = None
) -> FoundCalls:
    """Reads calls that consist of a name, an optional id, JSON arguments and an optional end mark."""
    calls: list[ParsedCall] = []
    end = start
    while (name := name_pattern.match(text, end)) and (decoded := _decode(text, name.end())):
        arguments, end = decoded
        calls.append(ParsedCall(name.groupdict().get("id") or "", name[1], arguments_text(arguments)))
        if end_pattern is not None:
            end = _skip(end_pattern, text, end)
    return FoundCalls(calls, end)


def _make_call(name: str, arguments: Mapping[str, Any]) -> ParsedCall:
    return ParsedCall("", name, orjson.dumps(arguments).decode())


def _make_text_call(name: str, texts: Mapping[str, str]) -> ParsedCall:
    """Makes a call of values whose types only the tool's schema tells."""
    call = _make_call(name, {key: _json_or_text(text) for key, text in texts.items()})
    return call._replace(texts=texts)


def _json_or_text(text: str) -> Any:
    """Returns a parameter's value: parsed if it is JSON, otherwise the text itself."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


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


def _parse_call_object(value: object) -> ParsedCall | None:
    if not isinstance(value, Mapping):
        return None
    function = value.get("function")
    holder = function if isinstance(function, Mapping) else value
    name = next((holder[key] for key in _NAMES if key in holder), function)
    if not isinstance(name, str):
        return None
    arguments = next((holder[key] for key in _ARGUMENTS if key in holder), None)
    call_id = value.get("id")
    return ParsedCall(call_id if isinstance(call_id, str) else "", name, arguments_text(arguments) or "{}")


def _find_python_end(text: str, start: int) -> int:
    """Returns the place after the closing bracket, or the start if there is none within the limit."""
    depth = 0
    quote = ""
    for match in _PYTHON_MARK.finditer(text, start, start + _PYTHON_MAX_CHARS):
        mark = match[0]
        if quote:
            quote = "" if mark == quote else quote
        elif mark in "\"'":
            quote = mark
        elif mark in "([{":
            depth += 1
        elif mark in ")]}":
            depth -= 1
            if depth <= 0:
                return match.end()
    return start


def _parse_python_list(source: str) -> list[ParsedCall]:
    tree = _parse_expression(source)
    calls = [_parse_python_call(node) for node in tree.elts] if isinstance(tree, ast.List) else [None]
    return [] if None in calls else [call for call in calls if call is not None]


def _parse_expression(source: str) -> ast.expr | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # about invalid escapes in the model's text
            return ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _parse_python_call(node: ast.expr | None) -> ParsedCall | None:
    """Converts an expression such as `f.call(city="Paris")` to a call."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and len(node.args) == 1
    ):
        node = node.args[0]  # Gemma wraps its calls in print()
    if not isinstance(node, ast.Call) or node.args:
        return None
    try:
        return _make_call(ast.unparse(node.func).removesuffix(".call"), dict(_keywords(node)))
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None


def _keywords(node: ast.Call) -> Iterator[tuple[str, Any]]:
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("a mapping instead of a keyword")
        yield keyword.arg, ast.literal_eval(_JsonConstants().visit(keyword.value))


class _JsonConstants(ast.NodeTransformer):
    """Replaces the names true, false and null by Python's constants."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node
