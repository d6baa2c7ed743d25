"""Reads request bodies up to a size limit and parses them as strict JSON.

Besides invalid JSON, it rejects NaN and Infinity, invalid UTF-8, lone surrogates, duplicate keys (two parsers
could read two different requests), and deep nesting.
Spec: https://www.rfc-editor.org/rfc/rfc8259, and https://www.rfc-editor.org/rfc/rfc7493 for the strictness
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import orjson
from starlette.requests import Request

from stagebus.shared.errors import BadJson, BodyTooLarge, InvalidRequest, UnsupportedMediaType

# Errors of every endpoint that takes a body.
BODY_ERRORS: Final = (BadJson, BodyTooLarge, UnsupportedMediaType, InvalidRequest)

DEPTH_MAX: Final = 32
VALUES_MAX: Final = 20_000
DETAIL_MAX_CHARS: Final = 200
LENGTH_MAX_DIGITS: Final = 18
KEY_SHOWN_CHARS: Final = 64

_JSON_TYPES: Final = frozenset({"", "application/json", "text/json"})


async def read_json(
    request: Request, max_bytes: int, *, is_optional: bool = False, takes_text: bool = False
) -> dict[str, Any]:
    """Reads the request's body as a JSON object.

    Args:
        is_optional: return an empty object if there is no body.
        takes_text: accept text/plain, which browsers send if a script sets no content type.

    Raises:
        UnsupportedMediaType: the body has another content type, or is compressed.
        BodyTooLarge: it is longer than `max_bytes`; the rest of it is not read.
        BadJson: it is not a JSON object.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type in _JSON_TYPES or (media_type.startswith("application/") and media_type.endswith("+json"))
    if not is_json and not (takes_text and media_type == "text/plain"):
        raise UnsupportedMediaType
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType
    body = await _read(request, max_bytes)
    return {} if is_optional and not body else parse_object(body)


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    # Check the number of digits first: Python refuses to convert thousands of them.
    if declared.isdecimal() and (len(declared) > LENGTH_MAX_DIGITS or int(declared) > max_bytes):
        raise BodyTooLarge(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLarge(max_bytes)
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        BadJson: it is anything else; the message says where parsing failed.
    """
    try:
        value = orjson.loads(body)
    except ValueError as exc:
        raise BadJson(f"the body is not valid JSON: {exc}"[:DETAIL_MAX_CHARS]) from exc
    if not isinstance(value, dict):
        raise BadJson('the body must be a JSON object, such as {"user_prompt": "Hello"}')
    _check_size(value)
    # orjson is stricter than the standard parser, but only the latter reports duplicate keys.
    parsed: dict[str, Any] = json.loads(body, object_pairs_hook=_unique)
    return parsed


def _check_size(value: dict[str, Any]) -> None:
    """Limits the work of validation, which collects an error for every wrong value."""
    level: list[Any] = [value]
    values = 0
    for _ in range(DEPTH_MAX):
        values += sum(map(len, level))
        if values > VALUES_MAX:
            raise BadJson(f"the body contains more than {VALUES_MAX} values")
        level = [child for parent in level for child in _containers(parent)]
        if not level:
            return
    raise BadJson(f"the body is nested more than {DEPTH_MAX} levels deep")


def _containers(value: dict[str, Any] | list[Any]) -> Iterator[dict[str, Any] | list[Any]]:
    members = value.values() if isinstance(value, dict) else value
    return (member for member in members if isinstance(member, dict | list))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise BadJson(f"duplicate key {twice[:KEY_SHOWN_CHARS]!r} in an object of the body")
    return unique
