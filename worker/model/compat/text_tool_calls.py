r"""Finds tool calls that a model wrote into its text; sans-IO.

    <tool_call>{"name": "f", "arguments": {…}}</tool_call>
    <｜tool▁calls▁begin｜>…    <|python_tag|>…    [TOOL_CALLS]…    <minimax:tool_call>…    functools[…]

A server without the right parser for its model passes such calls on as content. The whole text is searched once,
at the end of the answer, so it does not matter where it was split. Text that only resembles a call stays text, and
so does code, since an answer may explain calls. `text_tool_call_formats` parses the calls themselves.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from stagebus.shared.model_text.code_spans import find_code_end
from stagebus.worker.model.compat import text_tool_call_formats as formats
from stagebus.worker.model.compat.call_fragments import ParsedCall
from stagebus.worker.model.compat.text_tool_call_formats import FoundCalls

Reader = Callable[[str, int], FoundCalls]

_IN_TAGS: Final[Sequence[Reader]] = (
    formats.read_objects, formats.read_function, formats.read_glm, formats.read_invokes, formats.read_python,
    formats.read_glm_name,
)  # fmt: skip
_LLAMA: Final[Sequence[Reader]] = (formats.read_objects, formats.read_python)
_MISTRAL: Final[Sequence[Reader]] = (formats.read_mistral, formats.read_objects)
_OBJECTS: Final[Sequence[Reader]] = (formats.read_objects,)

# The formats that may follow each marker.
_READERS: Final[Mapping[str, Sequence[Reader]]] = {
    "<tool_call>": _IN_TAGS,
    "<minimax:tool_call>": _IN_TAGS,
    "<seed:tool_call>": _IN_TAGS,
    "<｜DSML｜function_calls>": _IN_TAGS,
    "<｜DSML｜tool_calls>": _IN_TAGS,
    "<|DSML|function_calls>": _IN_TAGS,
    "<|DSML|tool_calls>": _IN_TAGS,
    "<|tool_call>": (formats.read_gemma,),
    "<|tool_call|>": _IN_TAGS,
    "<|tool_call_start|>": _IN_TAGS,
    "<|START_ACTION|>": _OBJECTS,
    "<|action_start|><|plugin|>": _OBJECTS,
    "<TOOLCALL>": _OBJECTS,
    "<|python_tag|>": _LLAMA,
    "<|python_start|>": _LLAMA,
    "[TOOL_CALLS]": _MISTRAL,
    "<function=": (formats.read_function,),
    "<|tool_call_begin|>": (formats.read_kimi,),
    "<｜tool▁calls▁begin｜>": (formats.read_deepseek,),
    "<｜tool▁call▁begin｜>": (formats.read_deepseek,),
}
# These markers are common words or tags: what follows is a call only if it names a tool that was offered.
_READERS_OF_KNOWN_TOOLS: Final[Mapping[str, Sequence[Reader]]] = {
    "<antml:function_calls>": _IN_TAGS,
    "<function_calls>": _IN_TAGS,
    "<function_call>": _IN_TAGS,
    "<tool_calls>": _IN_TAGS,
    "functools": _OBJECTS,
    "Action: ```json": _OBJECTS,
    "```tool_code": (formats.read_python,),
    ">>>": (formats.read_functionary,),
}
_KIMI_SECTION: Final = "<|tool_calls_section_begin|>"
# Each branch begins with a literal character, which keeps the search fast.
_MARKER: Final = re.compile(
    "|".join(map(re.escape, sorted((*_READERS, *_READERS_OF_KNOWN_TOOLS), key=len, reverse=True)))
    + rf"|{re.escape(_KIMI_SECTION)}\s*<\|tool_call_begin\|>|<[｜|]DSML[｜|]invoke(?= name=)|<invoke(?= name=)|<antml:invoke(?= name=)"
)
_CLOSING: Final = re.compile(
    r"(?:\s*(?:"
    r"</(?:tool_calls?|minimax:tool_call|seed:tool_call|antml:function_calls?|[｜|]DSML[｜|](?:tool|function)_calls?|function_calls?|TOOLCALL)>"
    r"|<tool_call\|>"
    r"|<\|(?:tool_call_end|END_ACTION|action_end|python_end|eom_id|eot_id)\|>"
    r"|<[｜|]tool▁calls▁end[｜|]>"
    r"))+"
)
_FENCE_END: Final = re.compile(r"\s*```")
# Tokens that may follow the calls of an answer without other text.
_END_TOKENS: Final = re.compile(r"(?:\s|</tool_call>|<\|(?:eom_id|eot_id|im_end|end|endoftext)\|>|</s>)*")
_BARE: Final[Sequence[Reader]] = (
    formats.read_bare_objects, formats.read_python, formats.read_functionary, formats.read_glm,
)  # fmt: skip
# GLM without the tag that separates the name from the first argument.
_GLM_JOINED: Final = re.compile(r"\s*([\w.:-]+)(?=</arg_key>)")
# How far behind a marker the name of the tool is looked for, if the call cannot be read.
_NAME_MAX_CHARS: Final = 100
# After this many markers without a call the rest is text. Each miss may cost a scan of the remaining text.
_MISSES_MAX: Final = 100
# Harmony names the addressee of a message in its header.
_ADDRESSEE: Final = re.compile(r"\bto=([\w.-]+)")
_NAMESPACES: Final = ("functions.", "default_api.", "tools.")


def split_text_calls(
    text: str, tool_names: Collection[str] | None = None, *, looks_into_code: bool = True
) -> tuple[str, list[ParsedCall]]:
    """Splits a text into the text without calls, and the calls.

    Args:
        tool_names: the tools that the model was offered, or None if they are unknown.
        looks_into_code: whether calls inside code count, too.
    """
    if tool_names is not None and (bare := _bare_calls(text, tool_names)):
        return "", bare
    kept: list[str] = []
    calls: list[ParsedCall] = []
    position = misses = 0
    while misses < _MISSES_MAX and (marker := _MARKER.search(text, position)):
        code = 0 if looks_into_code else find_code_end(text, position, marker.start())
        found = FoundCalls([], code) if code else _read(text, marker, tool_names)
        if found.calls:
            kept.append(text[position : marker.start()])
            calls += found.calls
            position = found.end
        else:
            after = code or max(marker.end(), find_code_end(text, marker.start(), marker.end()))
            kept.append(text[position:after])
            position = after
            misses += not code
    if calls:
        return "".join((*kept, text[position:])).strip(), calls
    return text, []


def match_tool_name(call: ParsedCall, tool_names: Collection[str]) -> ParsedCall:
    """Returns the call with the exact name of its tool, without what the model or its server added.

    weather_now<|channel|>commentary    a control token leaked into the name
    functions.weather_now               a namespace
    weather_nowcity</arg_key>           GLM without the tag between the name and the first argument
    """
    if call.name in tool_names:
        return call
    addressee = _ADDRESSEE.search(call.name)
    name = (addressee[1] if addressee else call.name).strip()
    for namespace in _NAMESPACES:
        name = name.removeprefix(namespace)
    name, tag, _ = name.partition("<")
    name = name.strip()
    if tag and name not in tool_names:
        name = max(
            (tool for tool in tool_names if _is_first_argument(name.removeprefix(tool), call)), key=len, default=""
        )
    return call._replace(name=name) if name in tool_names else call


def _is_first_argument(name: str, call: ParsedCall) -> bool:
    return f"{name}</arg_key>" in call.name and not call.name.startswith(name) and f'"{name}"' in call.arguments


def _read(text: str, marker: re.Match[str], tool_names: Collection[str] | None) -> FoundCalls:
    """Reads the calls after a marker."""
    opened = marker[0].removeprefix(_KIMI_SECTION).lstrip()
    readers = _READERS.get(opened)
    needs_known_tools = readers is None
    # Some markers are the start of the call itself, so the reader needs them.
    start = marker.start() if opened.endswith(("=", "invoke")) else marker.end()
    if readers is None:
        readers = _READERS_OF_KNOWN_TOOLS.get(opened, (formats.read_invokes,))
    if opened == "<tool_call>" and (joined := _read_joined_glm(text, start, tool_names or ())) is not None:
        return joined
    for reader in readers:
        found = reader(text, start)
        if found.calls:
            if (needs_known_tools or reader is formats.read_glm_name) and not _are_known(found.calls, tool_names):
                break
            closing = (_FENCE_END if "```" in opened else _CLOSING).match(text, found.end)
            return FoundCalls(found.calls, closing.end() if closing else found.end)
    return FoundCalls([], start)


def _read_joined_glm(text: str, start: int, tool_names: Collection[str]) -> FoundCalls | None:
    joined = _GLM_JOINED.match(text, start)
    tools = [tool for tool in tool_names if joined is not None and joined[1].startswith(tool)]
    if joined is None or not tools:
        return None
    tool = max(tools, key=len)
    mended = f"{tool}<arg_key>{joined[1].removeprefix(tool)}{text[joined.end() :]}"
    found = formats.read_glm(mended, 0)
    if not found.calls:
        return None
    end = len(text) - len(mended) + found.end
    closing = _CLOSING.match(text, end)
    return FoundCalls(found.calls, closing.end() if closing else end)


def has_unread_call(text: str, tool_names: Collection[str]) -> bool:
    """Returns whether an answer without readable calls is one in its model's markup: it begins or ends with it."""
    content = text.strip()
    marker = _MARKER.search(content)
    if marker is None or find_code_end(content, 0, marker.start()):
        return False
    following = content[marker.end() : marker.end() + _NAME_MAX_CHARS]
    closing = next((True for match in _CLOSING.finditer(content) if match.end() == len(content)), False)
    return (marker.start() == 0 or closing) and any(name in following for name in tool_names)


def _are_known(calls: Collection[ParsedCall], tool_names: Collection[str] | None) -> bool:
    return tool_names is not None and all(match_tool_name(call, tool_names).name in tool_names for call in calls)


def _bare_calls(text: str, tool_names: Collection[str]) -> list[ParsedCall]:
    """Returns the calls of an answer that consists only of calls in JSON or Python, as Llama's models write them."""
    for reader in _BARE:
        found = reader(text, len(text) - len(text.lstrip()))
        end = _END_TOKENS.match(text, found.end)
        if found.calls and end is not None and end.end() == len(text) and _are_known(found.calls, tool_names):
            return found.calls
    return []
