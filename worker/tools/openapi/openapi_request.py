"""Builds the HTTP request of a call from its arguments; sans-IO.

A value from a model stays in the place of its parameter: it cannot leave its path segment or add a header or a
parameter.
Spec: https://spec.openapis.org/oas/v3.1.1.html#style-values
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from stagebus.shared.runtime.json_text import compact_json
from stagebus.worker.tools.openapi.openapi_document import OpenApiOperation, OpenApiParameter
from stagebus.worker.tools.signature import BadArguments

_DELIMITERS: Final = {"form": ",", "spaceDelimited": "%20", "pipeDelimited": "%7C"}
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]{0,4096}")
# Servers and proxies mostly accept 8 KB.
_URL_VALUE_MAX_BYTES: Final = 2**14
_DEEP_MAX: Final = 10
_EXACT_MAX: Final = 2**53
_SEGMENTS: Final = re.compile(r"[/\\]")


@dataclass(slots=True)
class OperationRequest:
    """The request of a call."""

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


def build_request(
    operation: OpenApiOperation, arguments: Mapping[str, Any], query: Mapping[str, str]
) -> OperationRequest:
    """Builds the request of a call whose arguments fit the operation's schema.

    Args:
        query: further query parameters that the operator has set.

    Raises:
        BadArguments: a value is not possible in the place of its parameter.
    """
    given = [*((operation.parameters[key], value) for key, value in arguments.items()), *operation.fixed]
    reserved = {*query, *(parameter.name for parameter, _ in operation.fixed)}
    path = operation.path
    pairs = [(quote(name, safe=""), quote(value, safe="")) for name, value in query.items()]
    request = OperationRequest(operation.method.upper(), "")
    body: Any = None
    for parameter, value in given:
        if parameter.place in ("path", "query"):
            _check_length(parameter, value)
        if parameter.place == "body":
            body = value
        elif parameter.place == "path":
            path = path.replace(f"{{{parameter.name}}}", _path_value(parameter, value))
        elif value is None:
            continue
        elif parameter.place == "query":
            if isinstance(value, dict) and reserved & value.keys():
                raise BadArguments(f"{parameter.name}: {', '.join(sorted(reserved & value.keys()))} cannot be set")
            pairs += _query_pairs(parameter, value)
        else:
            request.headers[parameter.name] = _header_value(parameter, value)
    if operation.fixed_body:
        body = {**(body if isinstance(body, dict) else {}), **operation.fixed_body}
    if body is not None:
        request.headers["Content-Type"] = operation.media_type
        request.body = compact_json(body).encode()
    written = "&".join(f"{name}={value}" for name, value in pairs)
    separator = "&" if "?" in path else "?"
    request.url = f"{operation.base_url}{path}{f'{separator}{written}' if written else ''}"
    return request


def _check_length(parameter: OpenApiParameter, value: Any) -> None:
    if len(compact_json(value)) > _URL_VALUE_MAX_BYTES:
        raise BadArguments(f"{parameter.name}: more than {_URL_VALUE_MAX_BYTES} bytes, which is too long for a URL")


def _path_value(parameter: OpenApiParameter, value: Any) -> str:
    text = compact_json(value) if parameter.is_json else ",".join(_flat(value, explode=parameter.explode))
    # A server that decodes the path too early would resolve such a part.
    if not text or "\0" in text or any(part in (".", "..") for part in _SEGMENTS.split(text)):
        raise BadArguments(f"{parameter.name}: {text!r} cannot be part of a path")
    return quote(text, safe=",")


def _header_value(parameter: OpenApiParameter, value: Any) -> str:
    text = compact_json(value) if parameter.is_json else ",".join(_flat(value, explode=parameter.explode))
    if not _HEADER_VALUE.fullmatch(text):
        raise BadArguments(f"{parameter.name}: a header's value is at most 4096 characters of printable ASCII")
    return text


def _query_pairs(parameter: OpenApiParameter, value: Any) -> Iterator[tuple[str, str]]:
    name = quote(parameter.name, safe="")
    if parameter.is_json:
        yield name, quote(compact_json(value), safe="")
    elif isinstance(value, dict | list) and parameter.style == "deepObject":
        yield from _deep_pairs(name, value, 0)
    elif isinstance(value, dict) and parameter.explode:
        yield from ((quote(str(key), safe=""), _quoted(inner)) for key, inner in value.items())
    elif isinstance(value, list) and parameter.explode:
        yield from ((name, _quoted(part)) for part in value)
    else:
        delimiter = _DELIMITERS.get(parameter.style, ",")
        yield name, delimiter.join(quote(part, safe="") for part in _flat(value, explode=False))


def _deep_pairs(name: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:
    """Yields `name[key]` for members, `name[]` for items, and `name[0][key]` for members of items.

    The specification leaves all but the first open; this is the form that PHP, Rails, qs and Stripe read.
    """
    if depth > _DEEP_MAX:
        raise BadArguments(f"{name.partition('[')[0]}: nested deeper than {_DEEP_MAX} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _deep_pairs(f"{name}[{quote(key, safe='')}]", inner, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            place = index if isinstance(item, dict | list) else ""
            yield from _deep_pairs(f"{name}[{place}]", item, depth + 1)
    else:
        yield name, _quoted(value)


def _flat(value: Any, *, explode: bool) -> Iterable[str]:
    """Returns the parts of a value that OpenAPI's simple and form styles join."""
    if isinstance(value, list):
        return [_text(part) for part in value]
    if isinstance(value, dict):
        if explode:
            return [f"{key}={_text(inner)}" for key, inner in value.items()]
        return [part for key, inner in value.items() for part in (str(key), _text(inner))]
    return [_text(value)]


def _quoted(value: Any) -> str:
    return quote(_text(value), safe="")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_MAX:
        value = int(value)  # 5.0 is an integer in JSON, but not in a URL
    return "" if value is None else compact_json(value)
