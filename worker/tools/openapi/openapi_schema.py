"""Converts schemas of an OpenAPI document to self-contained JSON Schemas (2020-12) for tools; sans-IO.

References are kept, so cycles are possible: their targets are collected in `$defs`.
Spec: https://spec.openapis.org/oas/v3.1.1.html#schema-object
Spec: https://spec.openapis.org/oas/v3.0.4.html#schema-object
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from stagebus.shared.errors import BadTool

Schema = dict[str, Any]

# YAML aliases can make a small document expand to a huge schema.
NODES_MAX: Final = 50_000
REFERENCES_MAX: Final = 32

_MAPS_OF_SCHEMAS: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs"})
_LISTS_OF_SCHEMAS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SINGLE_SCHEMAS: Final = frozenset(
    {"items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"}
    | {"unevaluatedItems", "unevaluatedProperties"}
)
# Keywords that neither a model nor a validator needs, and that cost tokens.
_LEFT_OUT: Final = frozenset(
    {
        "example",
        "examples",
        "xml",
        "externalDocs",
        "discriminator",
        "deprecated",
        "title",
        "nullable",
        "readOnly",
        "writeOnly",
    }
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
        raise BadTool(f"{reference!r} leads out of the document; only internal references (#/…) are supported")
    node: Any = document
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, Mapping) and key in node:
            node = node[key]
        else:
            raise BadTool(f"the target of {reference!r} is missing")
    return node


class SchemaConverter:
    """Converts the schemas of one tool and collects the targets of their references."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._is_3_0 = str(document.get("openapi", "")).startswith("3.0")
        self._name_by_reference: dict[str, str] = {}
        self._nodes = 0
        self.definitions: dict[str, Any] = {}

    def convert(self, schema: Any) -> Any:
        """Converts a schema for a request, without read-only properties.

        Raises:
            BadTool: a reference leads out of the document, its target is missing, or the schema is too large.
        """
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise BadTool(f"the schema has more than {NODES_MAX} nodes")
        if not isinstance(schema, Mapping):
            return schema if isinstance(schema, bool) else {}
        if isinstance(schema.get("$ref"), str):
            reference = {"$ref": f"#/$defs/{self._define(schema['$ref'])}"}
            # OpenAPI 3.0 ignores keywords beside a reference.
            return reference if self._is_3_0 else {**self._convert(schema), **reference}
        return self._convert(schema)

    def _define(self, reference: str) -> str:
        if reference in self._name_by_reference:
            return self._name_by_reference[reference]
        target = _find(self._document, reference)
        wanted = _DEF_NAME.sub("_", reference.rpartition("/")[2]) or "schema"
        name = wanted
        while name in self.definitions:
            name = f"{wanted}_{len(self.definitions)}"
        self._name_by_reference[reference] = name
        self.definitions[name] = {}  # reserves the name, since a cycle may come back here
        self.definitions[name] = self.convert(target)
        return name

    def _convert(self, schema: Mapping[str, Any]) -> Schema:
        converted: Schema = {}
        for key, value in schema.items():
            if not isinstance(key, str) or key in _LEFT_OUT or key == "$ref" or key.startswith("x-"):
                continue
            if key in _MAPS_OF_SCHEMAS and isinstance(value, Mapping):
                converted[key] = {
                    str(name): self.convert(inner) for name, inner in value.items() if not self._is_read_only(inner)
                }
            elif key in _LISTS_OF_SCHEMAS and isinstance(value, list):
                converted[key] = [self.convert(inner) for inner in value]
            elif key in _SINGLE_SCHEMAS and isinstance(value, Mapping | bool):
                converted[key] = self.convert(value)
            else:
                converted[key] = value
        if isinstance(converted.get("required"), list) and isinstance(schema.get("properties"), Mapping):
            read_only = {name for name, inner in schema["properties"].items() if self._is_read_only(inner)}
            converted["required"] = [name for name in converted["required"] if name not in read_only]
        return _from_openapi_3_0(converted, is_nullable=schema.get("nullable") is True) if self._is_3_0 else converted

    def _is_read_only(self, schema: Any) -> bool:
        """Returns whether only the service sets the property."""
        return isinstance(schema, Mapping) and schema.get("readOnly") is True


def _from_openapi_3_0(schema: Schema, *, is_nullable: bool) -> Schema:
    """Converts the JSON Schema dialect of OpenAPI 3.0: exclusive limits and null are boolean flags there."""
    for flag, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        value = schema.get(flag)
        if isinstance(value, bool):
            del schema[flag]
            if value and limit in schema:
                schema[flag] = schema.pop(limit)
    if is_nullable:
        if isinstance(schema.get("type"), str):
            schema["type"] = [schema["type"], "null"]
        if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
            schema["enum"] = [*schema["enum"], None]
    return schema
