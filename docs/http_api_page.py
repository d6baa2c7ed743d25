"""Makes docs/http-api.md from the served OpenAPI document, the event classes and the error classes."""

from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson
from pydantic import BaseModel

from docs.event_examples import example_frames, example_thread_frames
from stagebus.gateway.api.openapi import build_document
from stagebus.gateway.api.problems import problem_types
from stagebus.gateway.api.urls import Urls
from stagebus.gateway.endpoint_table import ENDPOINTS
from stagebus.shared.domain import events
from stagebus.shared.domain.event_schema import json_schema
from stagebus.shared.domain.thread_frames import THREAD_FRAMES
from stagebus.shared.errors import RunFailed, StagebusError

Json = dict[str, Any]

_FRAMES: Final[tuple[type[events.Event | events.Gap | events.StreamStatus], ...]] = (*events.EVENTS, *events.UNLOGGED)
LIMITS: Final = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))

_HEAD: Final = """\
# HTTP API

This page lists every endpoint, every field, every event and every error code. `make docs` makes it from the code. The
same facts are served for programs: `GET /openapi.json` (OpenAPI 3.1) and `GET /schema/events.json` (JSON Schema).

- Requests and answers are JSON in UTF-8. Streams are Server-Sent Events (`text/event-stream`).
- Send an API key or a JWT as `Authorization: Bearer …`. The page uses a session cookie, and a shared link carries a
  ticket for one run in its query. A gateway with `STAGEBUS_AUTH=open` needs none of them. See [security](security.md).
- A key or token needs the scope that an endpoint lists. `runs:own` includes those of runs, for the caller's own user.
- With the scope `on_behalf` the header `Stagebus-User` names the person within the tenant for whom a request is made.
- Errors are problem details (RFC 9457, `application/problem+json`) with a stable `code`; see [errors](#errors).
- Every answer has an `X-Request-ID`. Send your own and it is used instead; logs contain it.
- Unknown fields in a request are an error. Unknown fields in an answer or an event must be ignored: new ones may be added.
"""

_EVENTS_HEAD: Final = """\
## Events

A stream sends each event as a frame with its id, its name and its data. The id is the cursor: send the last one as
`Last-Event-ID` (or `?last_event_id=`) and the stream continues after it. An id is `<attempt>-<sequence>`; sequences of a
run are consecutive. `GET /runs/{run_id}/events` with `Accept: application/json` returns the same events in pages.
`done`, `cancel` and `error` are terminal: no event follows them. `gap` and `status` are frames without an id.
"""

_THREAD_FRAMES_HEAD: Final = """\
## Frames of a thread's stream

`GET /threads/{thread_id}/events` sends the events above, each with the id `<run id>.<attempt>-<sequence>`, and these frames.
Only `turn_snapshot` has an id.
"""

_ERRORS_HEAD: Final = """\
## Errors

```json
{
  "type": "/problems/run_not_found",
  "title": "Run not found",
  "status": 404,
  "detail": "there is no run '01J…': it never existed, or its retention time is over",
  "code": "run_not_found",
  "errors": []
}
```

`type` is a URL with the meaning of the code. `errors` names the fields of an invalid request. A problem of type
`about:blank` has no meaning beyond its status, and its code is the status's name, such as `method_not_allowed`.
`Retry-After` is set on 429 and 503.

| code | status | retry | meaning |
|---|---|---|---|
"""

_RUN_ERRORS_HEAD: Final = """\
### Codes of failed runs

The `code` of the event `error` and of a failed run's `error`.

| code | meaning |
|---|---|
"""


def http_api_page() -> str:
    """Returns docs/http-api.md."""
    openapi = build_document(ENDPOINTS, is_open=False)
    schemas: Json = openapi["components"]["schemas"]
    event_schemas: Json = json_schema()["$defs"]
    parts = [
        _HEAD,
        *_endpoints(openapi["paths"]),
        "## Objects\n",
        *(_object(name, schema) for name, schema in sorted(schemas.items())),
        _EVENTS_HEAD,
        *_events(_FRAMES, event_schemas, example_frames()),
        _THREAD_FRAMES_HEAD,
        *_events(THREAD_FRAMES, event_schemas, example_thread_frames(), prefix="thread: "),
        *(_object(name, event_schemas[name]) for name in _parts_of_events(event_schemas, known=schemas)),
        _ERRORS_HEAD + "\n".join(_error_rows()) + "\n",
        _RUN_ERRORS_HEAD + "\n".join(_run_error_rows()) + "\n",
    ]
    return "\n".join(parts)


def _endpoints(paths: Json) -> Iterator[str]:
    operations = [(method.upper(), path, entry) for path, item in paths.items() for method, entry in item.items()]
    rows = [
        f"| [`{method} {path}`](#{entry['operationId']}) | {_scope(entry)} | {_cell(entry['summary'])} |"
        for method, path, entry in operations
    ]
    yield "\n".join(["## Endpoints", "", "| endpoint | scope | |", "|---|---|---|", *rows, ""])
    for method, path, entry in operations:
        yield _endpoint(method, path, entry)


def _endpoint(method: str, path: str, entry: Json) -> str:
    lines = [f'<a id="{entry["operationId"]}"></a>', "", f"### `{method} {path}`", "", entry["summary"], ""]
    if "description" in entry:
        lines += [entry["description"], ""]
    lines += [f"Access: {_access(entry)}.", ""]
    parameters = [parameter for parameter in entry["parameters"] if "name" in parameter]  # not the one of all endpoints
    if parameters:
        lines += ["| parameter | in | values | |", "|---|---|---|---|"]
        lines += [
            f"| `{parameter['name']}` | {parameter['in']} | {_values(parameter['schema'])} | {_cell(parameter['description'])} |"
            for parameter in parameters
        ]
        lines.append("")
    if "requestBody" in entry:
        (content,) = entry["requestBody"]["content"].values()
        optional = "" if entry["requestBody"]["required"] else ", optional"
        lines += [f"Body: {_type(content['schema'])}{optional}.", ""]
    lines += ["| status | content | |", "|---|---|---|"]
    lines += [_answer(status, answer) for status, answer in sorted(entry["responses"].items()) if status != "default"]
    return "\n".join([*lines, ""])


def _answer(status: str, answer: Json) -> str:
    contents = [
        "problem"
        if kind == "application/problem+json"
        else f"`{kind}`"
        if not media["schema"]
        else _type(media["schema"])
        for kind, media in answer.get("content", {}).items()
    ]
    headers = [f" Header `{name}`: {header['description']}" for name, header in answer.get("headers", {}).items()]
    return f"| {status} | {', '.join(contents)} | {_cell(answer['description'] + ''.join(headers))} |"


def _scope(entry: Json) -> str:
    scopes = {scope for way in entry["security"] for names in way.values() for scope in names}
    if not entry["security"]:
        return "public"
    return ", ".join(f"`{scope}`" for scope in sorted(scopes)) or "any"


def _access(entry: Json) -> str:
    if not entry["security"]:
        return "public, no credential needed"
    ways = ", ".join(dict.fromkeys(name for way in entry["security"] for name in way))
    scope = _scope(entry)
    needed = "any scope" if scope == "any" else f"scope {scope}"
    return f"{needed}; by {ways}"


def _object(name: str, schema: Json) -> str:
    lines = [f"### {name}", ""]
    if words := schema.get("description"):
        lines += [_paragraph(words), ""]
    lines += _fields(schema) if "properties" in schema else [f"Values: {_type(schema)}."]
    return "\n".join([*lines, ""])


def _fields(schema: Json) -> Iterator[str]:
    yield "| field | type | |"
    yield "|---|---|---|"
    required = schema.get("required", ())
    for field, about in schema["properties"].items():
        default = (
            ""
            if field in required or about.get("default") in (None, [], {})
            else f"; default `{_json(about['default'])}`"
        )
        optional = "" if field in required else ", optional"
        yield f"| `{field}` | {_type(about)}{optional}{default} | {_cell(about.get('description', ''))} |"


def _events(
    frame_types: Iterable[Any], schemas: Json, frames: Mapping[type[BaseModel], str], prefix: str = ""
) -> Iterator[str]:
    for event in frame_types:
        schema = schemas[event.__name__]
        lines = [f"### {prefix}`{event.event}`", "", _paragraph(schema["description"]), "", *_fields(schema), ""]
        yield "\n".join([*lines, "```text", frames[event], "```", ""])


def _parts_of_events(schemas: Json, *, known: Json) -> list[str]:
    """Returns the objects inside of events that the API's own objects do not include."""
    names = {event.__name__ for event in (*_FRAMES, *THREAD_FRAMES)}
    return [
        name
        for name, schema in sorted(schemas.items())
        if schema.get("properties") and name not in names | known.keys()
    ]


def _error_rows() -> Iterator[str]:
    """Yields the codes of HTTP answers: other errors with status 500 end a run, or keep a process from starting."""
    for problem in sorted(problem_types(Urls()), key=lambda problem: (problem.status, problem.code)):
        if problem.status != HTTPStatus.INTERNAL_SERVER_ERROR or problem.code == StagebusError.code:
            retry = "yes" if problem.retryable else "no"
            yield f"| `{problem.code}` | {problem.status} | {retry} | {_cell(problem.description)} |"


def _run_error_rows() -> Iterator[str]:
    errors: list[type[StagebusError]] = [StagebusError, *_family(RunFailed)]
    for error in errors:
        if "code" in vars(error):
            yield f"| `{error.code}` | {_cell(' '.join((error.__doc__ or '').split()))} |"


def _type(schema: Json) -> str:
    """Returns a JSON Schema's type in words, with links to the objects in it."""
    words = str(schema.get("type", "any JSON"))
    match schema:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            words = f"[{name}](#{name.lower()})"
        case {"enum": values}:
            words = _choice(f"`{value}`" if isinstance(value, str) else _json(value) for value in values)
        case {"const": value}:
            words = f"`{value}`"
        case {"anyOf": members} | {"oneOf": members}:
            words = _choice(_type(member) for member in members)
        case {"type": "array", "items": items}:
            item = _type(items)
            words = f"array of ({item})" if " or " in item else f"array of {item}"
        case {"type": "object", "additionalProperties": dict() as values}:
            words = f"object of {_type(values)}"
    return words


def _choice(names: Iterator[str]) -> str:
    return " or ".join(dict.fromkeys(names))


def _values(schema: Json) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    limits = [f"{sign} {schema[key]}" for key, sign in LIMITS if key in schema]
    default = [f"default {schema['default']}"] if "default" in schema else []
    return ", ".join([schema.get("type", ""), *limits, *default])


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _paragraph(text).replace("|", "\\|")


def _family(error: type[StagebusError]) -> Iterator[type[StagebusError]]:
    yield error
    for child in error.__subclasses__():
        yield from _family(child)
