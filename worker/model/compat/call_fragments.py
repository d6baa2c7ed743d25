"""Parses the fragments of tool calls out of deltas, in all the shapes that servers use; sans-IO.

{"tool_calls": [{"index": 0, "id": "call_a", "function": {"name": "get_weather", "arguments": ""}}]}    OpenAI
{"tool_calls": {"id": "call_a", "name": "get_weather", "input": {"city": "Paris"}}}                     others
{"function_call": {"name": "get_weather", "arguments": "{}"}}            OpenAI's form before `tool_calls`
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import orjson

# The index given to the one call of a `function_call`.
LEGACY_INDEX: Final = -1

_INDEX_MAX_DIGITS: Final = 9
_ARGUMENTS_FIELDS: Final = ("arguments", "parameters", "input")
# Extra data that a provider attaches to a call for its own use, such as Gemini's thought_signature.
NO_EXTRA: Final[Mapping[str, Any]] = MappingProxyType({})


class CallFragment(NamedTuple):
    """The part of a call that one delta brings. Fields without a value are empty.

    Attributes:
        place: the fragment's position in the delta's list.
    """

    call_index: int | None
    id: str
    name: str
    arguments: str
    place: int = 0
    extra_content: Mapping[str, Any] = NO_EXTRA


class ParsedCall(NamedTuple):
    """A whole call. The id is the provider's, so it may be empty or not unique.

    Attributes:
        texts: the arguments that were written as plain text, by name. Only the tool's schema knows their types.
    """

    id: str
    name: str
    arguments: str
    extra_content: Mapping[str, Any] = NO_EXTRA
    texts: Mapping[str, str] = NO_EXTRA


def parse_call_fragments(delta: Mapping[str, Any]) -> list[CallFragment]:
    """Returns the fragments of calls in a delta."""
    entries = delta.get("tool_calls")
    if isinstance(entries, dict):
        entries = [entries]
    if isinstance(entries, list):
        return [_parse(entry, place) for place, entry in enumerate(entries) if isinstance(entry, dict)]
    legacy = delta.get("function_call")
    if isinstance(legacy, dict):
        return [CallFragment(LEGACY_INDEX, "", _text(legacy.get("name")), arguments_text(legacy.get("arguments")))]
    return []


def _parse(entry: Mapping[str, Any], place: int) -> CallFragment:
    function = entry.get("function")
    if not isinstance(function, dict):
        function = entry
    arguments = next((value for name in _ARGUMENTS_FIELDS if (value := function.get(name)) is not None), None)
    extra = entry.get("extra_content")
    return CallFragment(
        call_index=_index(entry.get("index")),
        id=_text(entry.get("id")),
        name=_text(function.get("name")),
        arguments=arguments_text(arguments),
        place=place,
        extra_content=extra if isinstance(extra, dict) else NO_EXTRA,
    )


def _index(value: object) -> int | None:
    """Returns the call's index. Some servers send -1 for "unknown"."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= _INDEX_MAX_DIGITS:
        return int(value)
    return int(value) if isinstance(value, int | float) and value >= 0 else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def arguments_text(arguments: object) -> str:
    """Returns arguments as JSON text. Some servers send the object itself."""
    if arguments is None:
        return ""
    if isinstance(arguments, str):
        return arguments
    try:
        return orjson.dumps(arguments).decode()
    except TypeError:  # half of a surrogate pair, or an integer beyond 64 bits
        return json.dumps(arguments)
