"""Schemas out of an OpenAPI document, made fit for a tool: JSON Schema of 2020-12 that needs no other document; sans-IO.

References stay references, so cycles do no harm: what they point to is gathered under `$defs`.
Spec: https://spec.openapis.org/oas/v3.1.1.html#schema-object
Spec: https://spec.openapis.org/oas/v3.0.4.html#schema-object
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from stagebus.shared.errors import BadTool

Schema = dict[str, Any]

# A document may share parts by YAML's aliases, or nest them, till they are more than anybody can read.
NODES_MAX: Final = 50_000
REFERENCES_MAX: Final = 32

_OF_NAMES: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs"})
_OF_MANY: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_OF_ONE: Final = frozenset(
    {"items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"}
    | {"unevaluatedItems", "unevaluatedProperties"}
)
# What says nothing to a model or a validator, at the price of tokens.
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
    """What a node is, past every reference that it may be.

    Raises:
        BadTool: a reference leads out of the document, or nowhere.
    """
    for _ in range(REFERENCES_MAX):
        if not (isinstance(node, Mapping) and isinstance(node.get("$ref"), str)):
            return node
        node = _find(document, node["$ref"])
    raise BadTool("a reference leads back to itself")


def _find(document: Mapping[str, Any], reference: str) -> Any:
    if not reference.startswith("#/"):
        raise BadTool(f"{reference!r} leads out of the document; only references within it (#/…) are followed")
    node: Any = document
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, Mapping) and key in node:
            node = node[key]
        else:
            raise BadTool(f"{reference!r} leads nowhere")
    return node


class SchemaMaker:
    """Makes schemas for one tool and gathers what they refer to."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._is_3_0 = str(document.get("openapi", "")).startswith("3.0")
        self._name_by_reference: dict[str, str] = {}
        self._nodes = 0
        self.definitions: dict[str, Any] = {}

    def make(self, schema: Any) -> Any:
        """One schema, for a request: without what only answers have.

        Raises:
            BadTool: a reference leads out of the document or nowhere, or there is too much of it.
        """
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise BadTool(f"its schema has more than {NODES_MAX} parts")
        if not isinstance(schema, Mapping):
            return schema if isinstance(schema, bool) else {}
        if isinstance(schema.get("$ref"), str):
            reference = {"$ref": f"#/$defs/{self._define(schema['$ref'])}"}
            # In 3.0 what stands beside a reference counts for nothing.
            return reference if self._is_3_0 else {**self._made(schema), **reference}
        return self._made(schema)

    def _define(self, reference: str) -> str:
        if reference in self._name_by_reference:
            return self._name_by_reference[reference]
        target = _find(self._document, reference)
        wanted = _DEF_NAME.sub("_", reference.rpartition("/")[2]) or "schema"
        name = wanted
        while name in self.definitions:
            name = f"{wanted}_{len(self.definitions)}"
        self._name_by_reference[reference] = name
        self.definitions[name] = {}  # taken, before what it holds comes back here
        self.definitions[name] = self.make(target)
        return name

    def _made(self, schema: Mapping[str, Any]) -> Schema:
        made: Schema = {}
        for key, value in schema.items():
            if not isinstance(key, str) or key in _LEFT_OUT or key == "$ref" or key.startswith("x-"):
                continue
            if key in _OF_NAMES and isinstance(value, Mapping):
                made[key] = {
                    str(name): self.make(inner) for name, inner in value.items() if not self._is_answer_s(inner)
                }
            elif key in _OF_MANY and isinstance(value, list):
                made[key] = [self.make(inner) for inner in value]
            elif key in _OF_ONE and isinstance(value, Mapping | bool):
                made[key] = self.make(value)
            else:
                made[key] = value
        if isinstance(made.get("required"), list) and isinstance(schema.get("properties"), Mapping):
            answers = {name for name, inner in schema["properties"].items() if self._is_answer_s(inner)}
            made["required"] = [name for name in made["required"] if name not in answers]
        return _of_2020(made, is_nullable=schema.get("nullable") is True) if self._is_3_0 else made

    def _is_answer_s(self, schema: Any) -> bool:
        """Whether a property is one that the service sets by itself."""
        return isinstance(schema, Mapping) and schema.get("readOnly") is True


def _of_2020(schema: Schema, *, is_nullable: bool) -> Schema:
    """OpenAPI 3.0 had a JSON Schema of its own: exclusive limits as flags, and null as one."""
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
