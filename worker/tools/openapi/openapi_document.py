"""Reads the chosen operations of an OpenAPI 3 document; sans-IO.

The rest of the document is not read, since real documents have many faults, and those elsewhere do not matter.
Spec: https://spec.openapis.org/oas/v3.1.1.html
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin

import orjson
import yaml

from stagebus.shared.errors import BadTool
from stagebus.worker.tools.openapi.openapi_schema import SchemaConverter, follow
from stagebus.worker.tools.sources import SCHEMA_MAX_BYTES

METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_IDEMPOTENT: Final = frozenset({"get", "put", "delete", "options", "head"})
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

    @property
    def names(self) -> tuple[str, str]:
        """The two names by which the tools file can refer to it: the name, and `GET /path`."""
        return self.name, f"{self.method.upper()} {self.path}"

    @property
    def is_idempotent(self) -> bool:
        """Returns whether the HTTP method is idempotent."""
        return self.method in _IDEMPOTENT


def parse_document(text: bytes) -> Mapping[str, Any]:
    """Parses a document in JSON or YAML.

    Raises:
        BadTool: the text is neither, or not an OpenAPI 3 document.
    """
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as exc:
            raise BadTool(
                f"the document is neither JSON nor YAML: {str(exc).splitlines()[0] if str(exc) else type(exc).__name__}"
            ) from None
    if not isinstance(document, Mapping) or not str(document.get("openapi", "")).startswith(("3.0", "3.1")):
        raise BadTool("the document is not OpenAPI 3.0 or 3.1")
    return document


def read_operations(
    document: Mapping[str, Any], chosen: Iterable[str], *, base_url: str | None, location: str, fixed: Mapping[str, Any]
) -> list[OpenApiOperation]:
    """Reads the chosen operations, named by operationId or as `GET /path`.

    Args:
        base_url: replaces the document's servers.
        location: the URL of the document, if it has one, for relative server URLs.
        fixed: values of parameters and body properties that the model does not see.

    Raises:
        BadTool: an operation is missing or cannot be offered; the message says which and why.
    """
    operations = []
    unused = set(fixed)
    for wanted in chosen:
        method, path, item, operation = _choose(document, wanted)
        try:
            made = _Reader(document, fixed).read(method, path, item, operation)
            url = base_url or _server(document, item, operation, location)
        except BadTool as exc:
            raise BadTool(f"operation {wanted!r}: {exc}") from None
        unused -= {parameter.name for parameter, _ in made.fixed} | made.fixed_body.keys()
        operations.append(made.at(url))
    if unused:
        raise BadTool(f"fixed: no chosen operation has a parameter {', '.join(sorted(unused))}")
    return operations


def _choose(document: Mapping[str, Any], wanted: str) -> tuple[str, str, Mapping[str, Any], Mapping[str, Any]]:
    known = []
    for method, path, item, operation in _all(document):
        named = f"{method.upper()} {path}"
        if wanted in (named, operation.get("operationId")):
            return method, path, item, operation
        known.append(str(operation.get("operationId") or named))
    raise BadTool(f"there is no operation {wanted!r}; available operations: {', '.join(known[:50]) or 'none'}")


def _all(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    paths = document.get("paths")
    for path, node in paths.items() if isinstance(paths, Mapping) else ():
        item = follow(document, node) if isinstance(node, Mapping) else {}
        for method in METHODS:
            if isinstance(item.get(method), Mapping):
                yield method, str(path), item, item[method]


def _server(document: Mapping[str, Any], item: Mapping[str, Any], operation: Mapping[str, Any], location: str) -> str:
    """Returns the first server of the operation, of its path or of the document."""
    servers: Any = next((node["servers"] for node in (operation, item, document) if node.get("servers")), [])
    server = servers[0] if isinstance(servers, list) and servers and isinstance(servers[0], Mapping) else {}
    url = str(server.get("url", "/"))
    variables = server.get("variables")
    for name, variable in variables.items() if isinstance(variables, Mapping) else ():
        url = url.replace(f"{{{name}}}", str(variable.get("default", "")))
    url = str(urljoin(location, url))
    if not url.startswith(("http://", "https://")):
        raise BadTool("the document names no server; set base_url")
    return url


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

    def __init__(self, document: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
        self._document = document
        self._converter = SchemaConverter(document)
        self._values = fixed
        self._parameters: dict[str, OpenApiParameter] = {}
        self._properties: dict[str, Any] = {}
        self._required: list[str] = []
        self._fixed: list[tuple[OpenApiParameter, Any]] = []
        self._fixed_body: dict[str, Any] = {}

    def read(self, method: str, path: str, item: Mapping[str, Any], operation: Mapping[str, Any]) -> _Read:
        for node in self._all_parameters(item, operation):
            self._add_parameter(node)
        if operation.get("requestBody") is not None:
            self._add_body(follow(self._document, operation["requestBody"]))
        missing = [part.partition("}")[0] for part in path.split("{")[1:]]
        known = {p.name for p in (*self._parameters.values(), *(p for p, _ in self._fixed)) if p.place == "path"}
        if set(missing) - known:
            raise BadTool(f"the path has undeclared parameters: {', '.join(sorted(set(missing) - known))}")
        words = [str(operation[key]) for key in ("summary", "description") if operation.get(key)]
        made = {
            "name": str(operation.get("operationId") or f"{method}{path}"),
            "method": method,
            "path": path,
            "description": "\n\n".join(dict.fromkeys(words)),
            "parameters": self._parameters,
            "schema": self._schema(),
        }
        return _Read(made, tuple(self._fixed), self._fixed_body)

    def _all_parameters(self, *nodes: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Returns the parameters of the path and of the operation; the latter override the former."""
        by_place: dict[tuple[str, str], Mapping[str, Any]] = {}
        for node in nodes:
            for parameter in node.get("parameters") or ():
                found = follow(self._document, parameter)
                by_place[str(found.get("in")), str(found.get("name"))] = found
        return list(by_place.values())

    def _add_parameter(self, node: Mapping[str, Any]) -> None:
        name, place = str(node.get("name")), str(node.get("in"))
        is_required = node.get("required") is True or place == "path"
        if place == "cookie" or (place == "header" and name.lower() in _IGNORED_HEADERS):
            if is_required and place == "cookie":
                raise BadTool(f"it needs the cookie {name!r}, but cookies are not supported")
            return
        styles = _STYLES.get(place)
        if styles is None:
            raise BadTool(f"parameter {name!r} is in {place!r}, which is not a valid place")
        style = str(node.get("style") or styles[0])
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
        media = next((value for kind, value in content.items() if _is_json(str(kind))), None)
        if media is None:
            if node.get("required") is True:
                raise BadTool(f"the body is {' or '.join(map(str, content)) or 'empty'}; only JSON is supported")
            return
        schema = self._converter.convert(media.get("schema", {}))
        properties = follow({"$defs": self._converter.definitions}, schema).get("properties", {}) if schema else {}
        self._fixed_body = {name: value for name, value in self._values.items() if name in properties}
        if self._fixed_body:
            schema = _without(follow({"$defs": self._converter.definitions}, schema), self._fixed_body)
        self._offer("body", OpenApiParameter("body", "body"), schema, is_required=node.get("required") is True)

    def _described(self, schema: Any, description: Any) -> Any:
        made = self._converter.convert(schema)
        return {**made, "description": str(description)} if description and isinstance(made, dict) else made

    def _offer(self, name: str, parameter: OpenApiParameter, schema: Any, *, is_required: bool) -> None:
        key = (
            "".join(char if char.isascii() and (char.isalnum() or char in "_.-") else "_" for char in name)[:64] or "_"
        )
        while key in self._parameters:
            key = (
                f"{parameter.place}_{key}"[:64]
                if not key.startswith(parameter.place)
                else f"{key[:60]}_{len(self._parameters)}"
            )
        self._parameters[key] = parameter
        self._properties[key] = schema
        if is_required:
            self._required.append(key)

    def _schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object", "properties": self._properties, "additionalProperties": False}
        if self._required:
            schema["required"] = self._required
        if self._converter.definitions:
            schema["$defs"] = self._converter.definitions
        try:
            size = len(orjson.dumps(schema))
        except TypeError as exc:
            raise BadTool(f"the schema has no JSON form: {exc}") from None
        if size > SCHEMA_MAX_BYTES:
            raise BadTool(f"the schema has {size} bytes, the limit is {SCHEMA_MAX_BYTES}")
        return schema


def _is_json(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _without(schema: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Returns an object's schema without the given properties."""
    left = {name: inner for name, inner in schema.get("properties", {}).items() if name not in set(names)}
    required = [name for name in schema.get("required", []) if name not in set(names)]
    return {**schema, "properties": left, "required": required}
