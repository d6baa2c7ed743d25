r"""What models write into their text that is no text: calls; sans-IO.

    <tool_call>{"name": "f", "arguments": {…}}</tool_call>
    <｜tool▁calls▁begin｜>…    <|python_tag|>…    [TOOL_CALLS]…    <minimax:tool_call>…    functools[…]

A server without the right parser for its model passes these on as content. They are looked at once, in the
whole text, so that it does not matter where it was cut. What only resembles a call stays text, and so does what
stands in a block of code: an answer may be about calls. How the calls themselves are written: `call_forms`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from stagebus.worker.model.compat import text_tool_call_formats as forms
from stagebus.worker.model.compat.call_fragments import ParsedCall
from stagebus.worker.model.compat.code_spans import find_code_end
from stagebus.worker.model.compat.text_tool_call_formats import FoundCalls

Reader = Callable[[str, int], FoundCalls]

_IN_TAGS: Final[Sequence[Reader]] = (
    forms.read_objects, forms.read_function, forms.read_glm, forms.read_invokes, forms.read_python,
)  # fmt: skip
_LLAMA: Final[Sequence[Reader]] = (forms.read_objects, forms.read_python)
_MISTRAL: Final[Sequence[Reader]] = (forms.read_mistral, forms.read_objects)
_OBJECTS: Final[Sequence[Reader]] = (forms.read_objects,)

# How the calls behind each marker may be written.
_READERS: Final[Mapping[str, Sequence[Reader]]] = {
    "<tool_call>": _IN_TAGS,
    "<minimax:tool_call>": _IN_TAGS,
    "<seed:tool_call>": _IN_TAGS,
    "<｜DSML｜function_calls>": _IN_TAGS,
    "<|tool_call|>": _IN_TAGS,
    "<|tool_call_start|>": _IN_TAGS,
    "<|START_ACTION|>": _OBJECTS,
    "<|action_start|><|plugin|>": _OBJECTS,
    "<TOOLCALL>": _OBJECTS,
    "<|python_tag|>": _LLAMA,
    "<|python_start|>": _LLAMA,
    "[TOOL_CALLS]": _MISTRAL,
    "<function=": (forms.read_function,),
    "<|tool_call_begin|>": (forms.read_kimi,),
    "<｜tool▁calls▁begin｜>": (forms.read_deepseek,),
    "<｜tool▁call▁begin｜>": (forms.read_deepseek,),
}
# These are plain words or common tags: they hold calls only where they name tools that were offered.
_READERS_OF_KNOWN: Final[Mapping[str, Sequence[Reader]]] = {
    "<antml:function_calls>": _IN_TAGS,
    "<function_calls>": _IN_TAGS,
    "<function_call>": _IN_TAGS,
    "<tool_calls>": _IN_TAGS,
    "functools": _OBJECTS,
    "Action: ```json": _OBJECTS,
    "```tool_code": (forms.read_python,),
    ">>>": (forms.read_functionary,),
}
_KIMI_SECTION: Final = "<|tool_calls_section_begin|>"
# Begins with a plain character in each of its branches, and so finds its places quickly.
_MARKER: Final = re.compile(
    "|".join(map(re.escape, sorted((*_READERS, *_READERS_OF_KNOWN), key=len, reverse=True)))
    + rf"|{re.escape(_KIMI_SECTION)}\s*<\|tool_call_begin\|>|<invoke(?= name=)|<antml:invoke(?= name=)"
)
_CLOSING: Final = re.compile(
    r"(?:\s*(?:"
    r"</(?:tool_calls?|minimax:tool_call|seed:tool_call|(?:｜DSML｜|antml:)?function_calls?|TOOLCALL)>"
    r"|<\|(?:tool_call_end|END_ACTION|action_end|python_end|eom_id|eot_id)\|>"
    r"|<[｜|]tool▁calls▁end[｜|]>"
    r"))+"
)
_FENCE_END: Final = re.compile(r"\s*```")
# What an answer that is all calls may end in.
_END_TOKENS: Final = re.compile(r"(?:\s|<\|(?:eom_id|eot_id|im_end|end|endoftext)\|>|</s>)*")
_BARE: Final[Sequence[Reader]] = (forms.read_bare_objects, forms.read_python, forms.read_functionary)
# After so many markers that open nothing the rest is text: each may cost a look at all that follows.
_MISSES_MAX: Final = 100
_NAMESPACES: Final = ("functions.", "default_api.", "tools.")


def split_text_calls(
    text: str, tool_names: Collection[str] | None = None, *, looks_into_code: bool = True
) -> tuple[str, list[ParsedCall]]:
    """A text without the calls that it holds, and those calls.

    Args:
        tool_names: what the model was offered; None where that is not known.
        looks_into_code: whether what stands in a block of code may be a call, too.
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
    """The call under its tool's own name, where it stands in a namespace of the model's or between spaces."""
    if call.name in tool_names:
        return call
    name = call.name.strip()
    for namespace in _NAMESPACES:
        name = name.removeprefix(namespace)
    return call._replace(name=name) if name in tool_names else call


def _read(text: str, marker: re.Match[str], tool_names: Collection[str] | None) -> FoundCalls:
    """The calls that a marker opens."""
    opened = marker[0].removeprefix(_KIMI_SECTION).lstrip()
    readers = _READERS.get(opened)
    is_of_known = readers is None
    # A tag that is a part of the call itself is read once more.
    start = marker.start() if opened.endswith(("=", "invoke")) else marker.end()
    if readers is None:
        readers = _READERS_OF_KNOWN.get(opened, (forms.read_invokes,))
    for reader in readers:
        found = reader(text, start)
        if found.calls:
            if is_of_known and not _are_known(found.calls, tool_names):
                break
            closing = (_FENCE_END if "```" in opened else _CLOSING).match(text, found.end)
            return FoundCalls(found.calls, closing.end() if closing else found.end)
    return FoundCalls([], start)


def _are_known(calls: Collection[ParsedCall], tool_names: Collection[str] | None) -> bool:
    return tool_names is not None and all(match_tool_name(call, tool_names).name in tool_names for call in calls)


def _bare_calls(text: str, tool_names: Collection[str]) -> list[ParsedCall]:
    """The calls of an answer that is nothing else: JSON or Python with no mark, as Llama's models write it."""
    for reader in _BARE:
        found = reader(text, len(text) - len(text.lstrip()))
        end = _END_TOKENS.match(text, found.end)
        if found.calls and end is not None and end.end() == len(text) and _are_known(found.calls, tool_names):
            return found.calls
    return []
