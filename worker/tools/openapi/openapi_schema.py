"""Converts schemas of an OpenAPI document to self-contained JSON Schemas (2020-12) for tools; sans-IO.

References are kept, so cycles are possible: their targets are collected in `$defs`. Keywords that are unknown, malformed or
of no use to a model are left out: providers refuse a schema with one of them, and a document has many.
Spec: https://spec.openapis.org/oas/v3.1.1.html#schema-object
Spec: https://spec.openapis.org/oas/v3.0.4.html#schema-object
"""

import re
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from stagebus.shared.errors import BadTool
from stagebus.shared.json_schema.json_pointer import MISSING, find_target
from stagebus.worker.tools.portable_schema import LISTS_OF_SCHEMAS, MAPS_OF_SCHEMAS, SINGLE_SCHEMAS, has_form

Schema = dict[str, Any]

DEPTH_MAX: Final = 60
REFERENCES_MAX: Final = 32

# References are rewritten to one place, so that the definitions of an inner schema are not needed.
_MAPS: Final = MAPS_OF_SCHEMAS - {"$defs", "definitions"}
_SETTINGS: Final = frozenset(
    {"type", "enum", "const", "default", "description", "format", "pattern", "contentEncoding", "contentMediaType"}
    | {"required", "dependentRequired", "uniqueItems", "minLength", "maxLength", "minItems", "maxItems", "minContains"}
    | {"maxContains", "minProperties", "maxProperties", "multipleOf", "minimum", "exclusiveMinimum", "maximum"}
    | {"exclusiveMaximum"}
)
_DEF_NAME: Final = re.compile(r"[^A-Za-z0-9_-]")


def follow(document: Mapping[str, Any], node: Any) -> Any:
    """Resolves a node that may be a reference, or a chain of them.

    Raises:
        BadTool: a reference leads out of the document, or its target is missing.
    """
    for _ in range(REFERENCES_MAX):
        if not (isinstance(node, Mapping) and isinstance(node.get("$ref"), str)):
            return node
        node = _find(document, node["$ref"])
    raise BadTool("a reference refers to itself")


def _find(document: Mapping[str, Any], reference: str) -> Any:
    if not reference.startswith("#/"):
        raise BadTool(f"{reference[:200]!r} leads out of the document; only internal references (#/…) are supported")
    node = find_target(document, reference)
    if node is MISSING:
        raise BadTool(f"the target of {reference[:200]!r} is missing")
    return node


class SchemaConverter:
    """Converts the schemas of one tool and collects the targets of their references.

    Args:
        max_bytes: limit of all schemas together as JSON. Aliases make a short document expand to a huge schema.

    Attributes:
        definitions: the converted targets by their names; complete after `finish`.
    """

    def __init__(self, document: Mapping[str, Any], max_bytes: int) -> None:
        self._document = document
        self._is_3_0 = str(document.get("openapi", "")).startswith("3.0")
        self._max_bytes = max_bytes
        self._bytes = 0  # at most the length of the JSON
        self._name_by_reference: dict[str, str] = {}
        self._unfinished: deque[str] = deque()  # references
        self.definitions: dict[str, Any] = {}

    def convert(self, schema: Any, depth: int = 0) -> Any:
        """Converts a schema for a request, without read-only properties. References may stay without a target.

        Raises:
            BadTool: a reference leads out of the document, or the schema is too large or nested too deep.
        """
        self.grow(2, depth)
        if not isinstance(schema, Mapping):
            return schema if isinstance(schema, bool) else {}
        if isinstance(schema.get("$ref"), str):
            reference = {"$ref": f"#/$defs/{self._define(schema['$ref'])}"}
            # OpenAPI 3.0 ignores keywords beside a reference.
            return reference if self._is_3_0 else {**self._convert(schema, depth), **reference}
        return self._convert(schema, depth)

    def finish(self) -> None:
        """Converts the targets of all references, one after the other: a chain of them can be long.

        Raises:
            BadTool: as `convert`, or the target of a reference is missing.
        """
        while self._unfinished:
            reference = self._unfinished.popleft()
            self.definitions[self._name_by_reference[reference]] = self.convert(_find(self._document, reference))

    def _define(self, reference: str) -> str:
        self.grow(len(reference))
        if reference in self._name_by_reference:
            return self._name_by_reference[reference]
        wanted = _DEF_NAME.sub("_", reference.rpartition("/")[2]) or "schema"
        name, number = wanted, len(self.definitions)
        while name in self.definitions:
            name = f"{wanted}_{number}"
            number += 1
        self._name_by_reference[reference] = name
        self.definitions[name] = {}  # reserves the name
        self._unfinished.append(reference)
        return name

    def _convert(self, schema: Mapping[str, Any], depth: int) -> Schema:
        if self._is_3_0:
            schema = _from_openapi_3_0(schema)
        converted: Schema = {}
        for key, value in schema.items():
            if key in _SETTINGS:
                copied = self._copy(value, depth)  # limits its size before anything else looks at it
                if has_form(key, copied):
                    converted[key] = copied
            elif key in _MAPS and has_form(key, value):
                converted[key] = self._convert_map(value, depth)
            elif key in LISTS_OF_SCHEMAS and has_form(key, value):
                converted[key] = [self.convert(inner, depth + 1) for inner in value]
            elif key in SINGLE_SCHEMAS and has_form(key, value):
                converted[key] = self.convert(value, depth + 1)
        properties = schema.get("properties")
        if "required" in converted and isinstance(properties, Mapping):
            read_only = {name for name, inner in properties.items() if _is_read_only(inner)}
            converted["required"] = [name for name in converted["required"] if name not in read_only]
        return converted

    def _convert_map(self, schemas: Mapping[str, Any], depth: int) -> Schema:
        converted = {}
        for name, inner in schemas.items():
            if not _is_read_only(inner):
                self.grow(len(name))
                converted[name] = self.convert(inner, depth + 1)
        return converted

    def _copy(self, value: Any, depth: int) -> Any:
        """Copies a value that is not a schema, such as an example; counts it as `convert` does."""
        self.grow(len(value) if isinstance(value, str) else 1, depth)
        if isinstance(value, list):
            return [self._copy(item, depth + 1) for item in value]
        if isinstance(value, Mapping):
            return {self._copy(name, depth): self._copy(inner, depth + 1) for name, inner in value.items()}
        return value

    def grow(self, count: int, depth: int = 0) -> None:
        """Counts bytes of the tool's schema.

        Raises:
            BadTool: there are too many, or the depth is too large.
        """
        self._bytes += count
        if self._bytes > self._max_bytes:
            raise BadTool(schema_too_long(self._max_bytes))
        if depth > DEPTH_MAX:
            raise BadTool(f"the schema is nested deeper than {DEPTH_MAX} levels")


def schema_too_long(max_bytes: int) -> str:
    """Returns the message for a schema that is too long."""
    return f"the schema has more than {max_bytes} bytes (STAGEBUS_TOOL_SCHEMA_MAX_BYTES)"


def _is_read_only(schema: Any) -> bool:
    """Returns whether only the service sets the property."""
    return isinstance(schema, Mapping) and schema.get("readOnly") is True


def _from_openapi_3_0(schema: Mapping[str, Any]) -> Schema:
    """Converts the JSON Schema dialect of OpenAPI 3.0: exclusive limits and null are boolean flags there."""
    converted = dict(schema)
    for flag, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(converted.get(flag), bool):
            is_exclusive = converted.pop(flag)
            if is_exclusive and limit in converted:
                converted[flag] = converted.pop(limit)
    if converted.get("nullable") is True:
        if isinstance(converted.get("type"), str):
            converted["type"] = [converted["type"], "null"]
        if isinstance(converted.get("enum"), list) and None not in converted["enum"]:
            converted["enum"] = [*converted["enum"], None]
    return converted
