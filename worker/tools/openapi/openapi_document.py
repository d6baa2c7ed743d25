"""Reads the chosen operations of an OpenAPI 3 document; sans-IO.

The rest of the document is not read, since real documents have many faults, and those elsewhere do not matter.
Spec: https://spec.openapis.org/oas/v3.1.1.html
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin

import orjson

from stagebus.shared.errors import BadTool
from stagebus.worker.tools.openapi.openapi_schema import SchemaConverter, follow, schema_too_long
from stagebus.worker.tools.tool_results import DESCRIPTION_MAX_BYTES, cut

JSON_TYPE: Final = "application/json"
METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_IDEMPOTENT: Final = frozenset({"get", "put", "delete", "options", "head"})
# A media type that can stand in a header, without wildcards.
_CONCRETE_TYPE: Final = re.compile(r"[\w!#$&^.+-]{1,64}/[\w!#$&^.+-]{1,64}(?:\s*;[\x20-\x7e]{0,100})?", re.ASCII)
_KNOWN_MAX: Final = 50
_SHOWN_MAX_CHARS: Final = 200
_URL_MAX_CHARS: Final = 2_000
# OpenAPI ignores header parameters with these names.
_IGNORED_HEADERS: Final = frozenset({"accept", "content-type", "authorization"})
_STYLES: Final = {
    "path": ("simple",),
    "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
    "header": ("simple",),
}


@dataclass(frozen=True, slots=True)
class OpenApiParameter:
    """A parameter: its place and its serialization. The whole body is one parameter."""

    name: str
    place: str
    style: str = "form"
    explode: bool = True
    is_json: bool = False


@dataclass(frozen=True, slots=True)
class OpenApiOperation:
    """An operation that is offered as a tool.

    Attributes:
        name: the operationId, or method and path.
        path: the path template, with `{name}` for parameters.
        parameters: by their names for the model; without those of `fixed`.
        fixed: parameters that the operator has set, with their values.
        fixed_body: properties of the body that the operator has set.
        schema: the JSON Schema of the arguments.
        media_type: the Content-Type of the body.
    """

    name: str
    method: str
    base_url: str
    path: str
    description: str
    parameters: Mapping[str, OpenApiParameter]
    fixed: tuple[tuple[OpenApiParameter, Any], ...]
    fixed_body: Mapping[str, Any]
    schema: Mapping[str, Any]
    media_type: str = JSON_TYPE

    @property
    def names(self) -> tuple[str, str]:
        """The two names by which the tools file can refer to it: the name, and `GET /path`."""
        return self.name, f"{self.method.upper()} {self.path}"

    @property
    def is_idempotent(self) -> bool:
        """Returns whether the HTTP method is idempotent."""
        return self.method in _IDEMPOTENT


def read_operations(
    document: Mapping[str, Any],
    chosen: Iterable[str],
    *,
    base_url: str | None,
    location: str,
    fixed: Mapping[str, Any],
    schema_max_bytes: int,
) -> list[OpenApiOperation]:
    """Reads the chosen operations, named by operationId or as `GET /path`.

    Args:
        base_url: replaces the document's servers.
        location: the URL of the document, if it has one, for relative server URLs.
        fixed: values of parameters and body properties that the model does not see.
        schema_max_bytes: limit of the schema of one operation's arguments.

    Raises:
        BadTool: an operation is missing or cannot be offered; the message says which and why.
    """
    operations = []
    unused = set(fixed)
    index = _index(document)
    for wanted in chosen:
        found = _choose(index, wanted)
        try:
            made = _Reader(document, fixed, schema_max_bytes).read(found)
            url = base_url or _server(document, found, location)
        except BadTool as exc:
            raise BadTool(f"operation {wanted!r}: {exc}") from None
        unused -= {parameter.name for parameter, _ in made.fixed} | made.fixed_body.keys()
        operations.append(made.at(url))
    if unused:
        raise BadTool(f"fixed: no chosen operation has a parameter {', '.join(sorted(unused))}")
    return operations


class _Found(NamedTuple):
    """An operation of the document, and the path item that contains it."""

    method: str
    path: str
    item: Mapping[str, Any]
    operation: Mapping[str, Any]


def _index(document: Mapping[str, Any]) -> Mapping[str, _Found]:
    """Returns all operations, by their operationId and as `GET /path`."""
    found: dict[str, _Found] = {}
    paths = document.get("paths")
    for path, node in paths.items() if isinstance(paths, Mapping) else ():
        item = follow(document, node) if isinstance(node, Mapping) else {}
        for method in METHODS:
            operation = item.get(method)
            if isinstance(operation, Mapping):
                for name in (operation.get("operationId"), f"{method.upper()} {path}"):
                    if isinstance(name, str):
                        found.setdefault(name, _Found(method, path, item, operation))
    return found


def _choose(found: Mapping[str, _Found], wanted: str) -> _Found:
    if wanted in found:
        return found[wanted]
    known = dict.fromkeys(_text(each.operation, "operationId") or name for name, each in found.items())
    shown = [name[:_SHOWN_MAX_CHARS] for name in itertools.islice(known, _KNOWN_MAX)]
    raise BadTool(f"there is no operation {wanted!r}; available operations: {', '.join(shown) or 'none'}")


def _server(document: Mapping[str, Any], found: _Found, location: str) -> str:
    """Returns the first server of the operation, of its path or of the document."""
    nodes = (found.operation, found.item, document)
    servers: Any = next((node["servers"] for node in nodes if node.get("servers")), [])
    server = servers[0] if isinstance(servers, list) and servers and isinstance(servers[0], Mapping) else {}
    url = _text(server, "url") or "/"
    variables = server.get("variables")
    for name, variable in variables.items() if isinstance(variables, Mapping) else ():
        url = url.replace(f"{{{name}}}", _text(variable, "default"))
        if len(url) > _URL_MAX_CHARS:
            raise BadTool("the URL of its server is too long; set base_url")
    url = urljoin(location, url)
    if not url.startswith(("http://", "https://")):
        raise BadTool("the document names no server; set base_url")
    return url


def _text(node: Mapping[str, Any], key: str) -> str:
    """Returns a member that should be text. An object or an array, which could be huge, counts as missing."""
    value = node.get(key)
    return str(value) if isinstance(value, str | int | float) else ""


@dataclass(frozen=True, slots=True)
class _Read:
    """An operation without its server."""

    operation: dict[str, Any]
    fixed: tuple[tuple[OpenApiParameter, Any], ...]
    fixed_body: Mapping[str, Any]

    def at(self, base_url: str) -> OpenApiOperation:
        return OpenApiOperation(
            base_url=base_url.rstrip("/"), fixed=self.fixed, fixed_body=self.fixed_body, **self.operation
        )


class _Reader:
    """Reads one operation."""

    def __init__(self, document: Mapping[str, Any], fixed: Mapping[str, Any], schema_max_bytes: int) -> None:
        self._document = document
        self._schema_max_bytes = schema_max_bytes
        self._converter = SchemaConverter(document, schema_max_bytes)
        self._media_type = JSON_TYPE
        self._values = fixed
        self._parameters: dict[str, OpenApiParameter] = {}
        self._properties: dict[str, Any] = {}
        self._required: list[str] = []
        self._fixed: list[tuple[OpenApiParameter, Any]] = []
        self._fixed_body: dict[str, Any] = {}

    def read(self, found: _Found) -> _Read:
        method, path, item, operation = found
        if not path.startswith("/"):
            raise BadTool("its path does not begin with /")
        for node in self._all_parameters(item, operation):
            self._add_parameter(node)
        if operation.get("requestBody") is not None:
            self._add_body(follow(self._document, operation["requestBody"]))
        missing = [part.partition("}")[0] for part in path.split("{")[1:]]
        known = {p.name for p in (*self._parameters.values(), *(p for p, _ in self._fixed)) if p.place == "path"}
        if set(missing) - known:
            raise BadTool(f"the path has undeclared parameters: {', '.join(sorted(set(missing) - known))}")
        words = [text for key in ("summary", "description") if (text := _text(operation, key))]
        made = {
            "name": _text(operation, "operationId") or f"{method}{path}",
            "method": method,
            "path": path,
            "description": cut("\n\n".join(dict.fromkeys(words)), DESCRIPTION_MAX_BYTES),
            "parameters": self._parameters,
            "schema": self._schema(),
            "media_type": self._media_type,
        }
        return _Read(made, tuple(self._fixed), self._fixed_body)

    def _all_parameters(self, *nodes: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Returns the parameters of the path and of the operation; the latter override the former."""
        by_place: dict[tuple[str, str], Mapping[str, Any]] = {}
        for node in nodes:
            for parameter in node.get("parameters") or ():
                found = follow(self._document, parameter)
                by_place[_text(found, "in"), _text(found, "name")] = found
        return list(by_place.values())

    def _add_parameter(self, node: Mapping[str, Any]) -> None:
        name, place = _text(node, "name"), _text(node, "in")
        is_required = node.get("required") is True or place == "path"
        if place == "cookie" or (place == "header" and name.lower() in _IGNORED_HEADERS):
            if is_required and place == "cookie":
                raise BadTool(f"it needs the cookie {name!r}, but cookies are not supported")
            return
        styles = _STYLES.get(place)
        if styles is None:
            raise BadTool(f"parameter {name!r} is in {place!r}, which is not a valid place")
        style = _text(node, "style") or styles[0]
        if style not in styles:
            raise BadTool(f"parameter {name!r} has the style {style!r}, which is not supported")
        content = node.get("content")
        schema = node.get("schema", {})
        if isinstance(content, Mapping) and content:
            schema = next(iter(content.values())).get("schema", {})
        explode = node.get("explode")
        parameter = OpenApiParameter(
            name, place, style, explode if isinstance(explode, bool) else style in ("form", "deepObject"), bool(content)
        )
        if name in self._values:
            self._fixed.append((parameter, self._values[name]))
            return
        self._offer(name, parameter, self._described(schema, node.get("description")), is_required=is_required)

    def _add_body(self, node: Mapping[str, Any]) -> None:
        content = node.get("content") or {}
        kinds = [kind for kind in content if _is_json(kind)]
        if not kinds:
            if node.get("required") is True:
                raise BadTool(f"the body is {' or '.join(content) or 'empty'}; only JSON is supported")
            return
        kind = JSON_TYPE if JSON_TYPE in kinds else kinds[0]
        self._media_type = kind if _CONCRETE_TYPE.fullmatch(kind) else JSON_TYPE
        schema = self._converter.convert(content[kind].get("schema", {}))
        self._converter.finish()
        properties = follow({"$defs": self._converter.definitions}, schema).get("properties", {}) if schema else {}
        self._fixed_body = {name: value for name, value in self._values.items() if name in properties}
        if self._fixed_body:
            schema = _without(follow({"$defs": self._converter.definitions}, schema), self._fixed_body)
        self._offer("body", OpenApiParameter("body", "body"), schema, is_required=node.get("required") is True)

    def _described(self, schema: Any, description: Any) -> Any:
        made = self._converter.convert(schema)
        if not (isinstance(description, str) and description and isinstance(made, dict)):
            return made
        self._converter.grow(len(description))
        return {**made, "description": description}

    def _offer(self, name: str, parameter: OpenApiParameter, schema: Any, *, is_required: bool) -> None:
        key = (
            "".join(char if char.isascii() and (char.isalnum() or char in "_.-") else "_" for char in name)[:64] or "_"
        )
        if key in self._parameters and not key.startswith(parameter.place):
            key = f"{parameter.place}_{key}"[:64]
        stem, number = key[:56], len(self._parameters)
        while key in self._parameters:
            key = f"{stem}_{number}"
            number += 1
        self._parameters[key] = parameter
        self._properties[key] = schema
        if is_required:
            self._required.append(key)

    def _schema(self) -> dict[str, Any]:
        self._converter.finish()
        schema: dict[str, Any] = {"type": "object", "properties": self._properties, "additionalProperties": False}
        if self._required:
            schema["required"] = self._required
        if self._converter.definitions:
            schema["$defs"] = self._converter.definitions
        if len(orjson.dumps(schema)) > self._schema_max_bytes:
            raise BadTool(schema_too_long(self._schema_max_bytes))
        return schema


def _is_json(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return kind in (JSON_TYPE, "*/*", "application/*") or kind.endswith("+json")


def _without(schema: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Returns an object's schema without the given properties."""
    left = {name: inner for name, inner in schema.get("properties", {}).items() if name not in set(names)}
    required = [name for name in schema.get("required", []) if name not in set(names)]
    return {**schema, "properties": left, "required": required}
