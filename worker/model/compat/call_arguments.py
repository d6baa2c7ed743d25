r"""Reads the arguments of a call that are nearly JSON and have one plain meaning; sans-IO.

    {"text": "line one⏎line two"}            a control character inside a string
    {"text": "match \d+"}                    an escape that JSON does not have
    {"city": "Paris"}</tool_call>            a tag or a fence around the object
    {"city": "Paris"}{"city": "Paris"}       the same object twice
    {}{"city": "Paris"}                      an empty object first
    {"city": "Paris</｜DSML｜parameter       the end tag in the place of the object's end
    {\"city\": \"Paris\"}                    an escaped object without its quotes
    {'city': 'Paris', 'wet': True,}          a Python dictionary

Anything else, such as a quotation mark inside a string, may mean several things and is left to the model.
"""

import ast
import io
import json
import re
import tokenize
import warnings
from typing import Any, Final, NoReturn

import orjson

from stagebus.shared.runtime.exact_json import PARSED_MAX_CHARS, is_shallow

# The key under which arguments without a meaning go back to a provider, since it takes nothing but objects.
UNREADABLE: Final = "invalid_json"

_KEPT_CHARS: Final = 1_000
_PYTHON_MAX_CHARS: Final = 20_000
_BEFORE: Final = re.compile(r"(?:\s|```\w*|<[^<>{}\"]{1,64}>)*(?=\{)")
_AFTER: Final = re.compile(r"(?:\s|```|</?[^<>{}\"]{1,64}>|</[^<>{}\"]{0,64}\Z|[;}])*\Z")
_ESCAPE: Final = re.compile(r'\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|(\'))?')
_DSML_END: Final = re.compile(r"\s*(?:</[｜|]DSML[｜|]\w*>?\s*)+\Z")
_END_TAGS: Final = re.compile(
    r"\s*(?:</(?:[｜|]DSML[｜|])?(?:parameter|invoke|function|tool_calls?|function_calls?|arg_value)>?\s*)+\Z"
)
_ENDINGS: Final = ("", '"}', "}")


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(strict=False, parse_constant=_reject_constant)


def clean_arguments(text: str) -> str:
    """Returns the arguments as the JSON of an object if that is what they mean, otherwise unchanged."""
    if len(text) > PARSED_MAX_CHARS:
        return text
    try:
        is_object = isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        is_object = False
    if is_object and "DSML" not in text:
        return text
    value = _read_object(text)
    return text if value is None else dump_arguments(value)


def as_object(text: str) -> str:
    """Returns arguments as the JSON of an object, whatever the model wrote. Of those that are too long, it keeps the beginning."""
    if len(text) > PARSED_MAX_CHARS:
        return dump_arguments({UNREADABLE: f"{text[:_KEPT_CHARS]}…"})
    cleaned = clean_arguments(text)
    try:
        value = orjson.loads(cleaned)
        if isinstance(value, dict) and is_shallow(value):
            return cleaned
    except orjson.JSONDecodeError:
        pass
    return dump_arguments({UNREADABLE: text}) if text.strip() else "{}"


def dump_arguments(arguments: dict[str, Any]) -> str:
    """Returns arguments as JSON text, including what orjson does not write: halves of surrogate pairs, long integers."""
    try:
        return orjson.dumps(arguments).decode()
    except TypeError:
        text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_literal(text: str) -> Any:
    """Returns the value of a JSON text or of a Python literal.

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        pass
    if len(text) > _PYTHON_MAX_CHARS:
        raise ValueError("too long for a literal")
    try:
        with warnings.catch_warnings(action="ignore"):  # about invalid escapes in the model's text
            value = ast.literal_eval(text.strip())
        json.dumps(value, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as exc:
        raise ValueError("not a literal") from exc
    return value


def _read_object(text: str) -> dict[str, Any] | None:
    value = _decode(text)
    if value is None:
        value = _decode(_ESCAPE.sub(_mend_escape, text))
    if value is None and (tags := _END_TAGS.search(text, max(0, len(text) - 256))):
        value = next(filter(None, (_decode(text[: tags.start()] + ending) for ending in _ENDINGS)), None)
    if value is None and text.lstrip().startswith('{\\"'):
        value = _decode_escaped(text)
    if value is None:
        value = _decode_python(text)
    if value is None or "DSML" not in text:
        return value
    return {name: _DSML_END.sub("", item) if isinstance(item, str) else item for name, item in value.items()}


def _decode(text: str) -> dict[str, Any] | None:
    """Returns the one object of a text: with nothing but tags around it, once or repeated, or after an empty one."""
    before = _BEFORE.match(text)
    if before is None:
        return None
    value: dict[str, Any] = {}
    position = before.end()
    try:
        while True:
            item, position = _DECODER.raw_decode(text, position)
            if not isinstance(item, dict) or (value and item not in ({}, value)):
                return None
            value = value or item
            if _AFTER.match(text, position):
                return value
            following = _BEFORE.match(text, position)
            if following is None:
                return None
            position = following.end()
    except (ValueError, RecursionError):
        return None


def _mend_escape(match: re.Match[str]) -> str:
    if match[1]:
        return match[0]
    return "'" if match[2] else "\\\\"


def _decode_escaped(text: str) -> dict[str, Any] | None:
    try:
        inner = json.loads(f'"{text.strip()}"', strict=False)
    except ValueError:
        return None
    return _decode(inner)


def _decode_python(text: str) -> dict[str, Any] | None:
    source = text.strip()
    if not source.startswith("{") or not source.endswith("}") or _has_adjacent_strings(source):
        return None
    try:
        value = read_literal(source)
    except ValueError:
        return None
    return value if isinstance(value, dict) and all(isinstance(name, str) for name in value) else None


def _has_adjacent_strings(source: str) -> bool:
    """Returns whether Python would join two strings, which are one text with quotation marks in it."""
    if len(source) > _PYTHON_MAX_CHARS:
        return False
    previous = None
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == previous == tokenize.STRING:
                return True
            previous = token.type if token.type != tokenize.NL else previous
    except (tokenize.TokenError, SyntaxError):
        return False
    return False
