"""Converts JSON Schemas for OpenAI's strict mode, in which the provider enforces the schema; sans-IO.

Every property is required, and null stands for the default of a parameter. Keywords that strict mode does not support,
such as a text's length, are left out; the arguments are still validated. A schema without a strict form is an error when
the worker starts.

The conversion of the openai SDK is not sufficient: it requires properties with defaults without allowing null, and keeps
objects with free keys, which the API rejects.
Spec: https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
"""

import json
from collections.abc import Mapping
from typing import Any, Final

Schema = Mapping[str, Any]

_KEPT: Final = frozenset(
    {"type", "enum", "description", "pattern", "multipleOf", "maximum", "exclusiveMaximum", "minimum",
     "exclusiveMinimum", "minItems", "maxItems"}
)  # fmt: skip
_FORMATS: Final = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_UNIONS: Final = ("anyOf", "oneOf")


class NotStrict(Exception):
    """A part of a schema has no strict form. The message names the part."""


def to_strict(schema: Schema) -> dict[str, Any]:
    """Returns the strict form of the schema of an object.

    Raises:
        NotStrict: the schema has no strict form.
    """
    definitions = schema.get("$defs", {})
    strict = _convert(schema, "", definitions)
    if definitions:
        strict["$defs"] = {name: _convert(inner, name, definitions) for name, inner in definitions.items()}
    return strict


def without_nulls(schema: Schema, value: Any) -> Any:
    """Converts a value of the strict schema to one of the original schema, without the nulls that stand for defaults.

    Args:
        schema: the original schema, as given to `to_strict`.
    """
    return _restore(schema, value, schema.get("$defs", {}))


def _convert(schema: Schema, where: str, definitions: Schema) -> dict[str, Any]:
    if "$ref" in schema:
        # A reference must not have other keywords beside it.
        ref = {"$ref": schema["$ref"]}
        return {"anyOf": [ref], "description": schema["description"]} if "description" in schema else ref
    for union in _UNIONS:
        if union in schema:
            kept = {"description": schema["description"]} if "description" in schema else {}
            return {**kept, "anyOf": [_convert(inner, where, definitions) for inner in schema[union]]}
    if "allOf" in schema:
        raise _refused(where, "it must fit several schemas at once")
    strict = {name: value for name, value in schema.items() if name in _KEPT}
    if schema.get("format") in _FORMATS:
        strict["format"] = schema["format"]
    if "const" in schema:
        strict["enum"] = [schema["const"]]
    match schema.get("type"):
        case "object":
            return strict | _convert_object(schema, where, definitions)
        case "array":
            return strict | {"items": _convert(_items(schema, where), f"{where}[]", definitions)}
        case None if "enum" not in strict:
            raise _refused(where, "it has no type; give it one")
    return strict


def _convert_object(schema: Schema, where: str, definitions: Schema) -> dict[str, Any]:
    if schema.get("additionalProperties", False) is not False or "properties" not in schema:
        raise _refused(where, "it allows any key; use a model with named fields, or a list of models")
    properties = {
        name: _convert_property(inner, f"{where}.{name}".lstrip("."), name in schema.get("required", ()), definitions)
        for name, inner in schema["properties"].items()
    }
    return {"properties": properties, "required": list(properties), "additionalProperties": False}


def _convert_property(schema: Schema, where: str, is_required: bool, definitions: Schema) -> dict[str, Any]:  # noqa: FBT001 - a property of the schema
    strict = _convert(schema, where, definitions)
    if is_required or _takes_null(schema, definitions):
        return strict
    words = [strict.pop("description", ""), _default_words(schema)]
    union = strict.get("anyOf", [strict])
    return {"anyOf": [*union, {"type": "null"}], "description": " ".join(filter(None, words))}


def _default_words(schema: Schema) -> str:
    return (
        f"Null for the default, {json.dumps(schema['default'], ensure_ascii=False)}."
        if "default" in schema
        else "Null for the default."
    )


def _items(schema: Schema, where: str) -> Schema:
    if "prefixItems" in schema or not isinstance(schema.get("items"), dict):
        raise _refused(where, "its items have different types; use list[…] of one type, or a model instead of a tuple")
    items: Schema = schema["items"]
    return items


def _refused(where: str, why: str) -> NotStrict:
    return NotStrict(f"{where or 'the arguments'}: {why}")


def _resolve(schema: Schema, definitions: Schema) -> Schema:
    while "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    return schema


def _takes_null(schema: Schema, definitions: Schema) -> bool:
    schema = _resolve(schema, definitions)
    return (
        schema.get("type") == "null"
        or None in schema.get("enum", ())
        or any(_takes_null(inner, definitions) for union in _UNIONS for inner in schema.get(union, ()))
    )


def _restore(schema: Schema, value: Any, definitions: Schema) -> Any:
    schema = _resolve(schema, definitions)
    for union in _UNIONS:
        if union in schema:
            chosen = next((inner for inner in schema[union] if _is_of(inner, value, definitions)), None)
            return value if chosen is None else _restore(chosen, value, definitions)
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [_restore(schema["items"], item, definitions) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    properties, required = schema["properties"], schema.get("required", ())
    return {
        name: _restore(properties[name], item, definitions) if name in properties else item
        for name, item in value.items()
        if item is not None or name not in properties or name in required or _takes_null(properties[name], definitions)
    }


def _is_of(schema: Schema, value: Any, definitions: Schema) -> bool:
    """Returns whether a value belongs to a union's member. Strict objects have all keys, so keys and constants decide."""
    schema = _resolve(schema, definitions)
    if any(union in schema for union in _UNIONS):
        return any(_is_of(inner, value, definitions) for union in _UNIONS for inner in schema.get(union, ()))
    if isinstance(value, list):
        return schema.get("type") == "array"
    if not isinstance(value, dict) or set(schema.get("properties", ())) != set(value):
        return False
    constants = {name: inner["const"] for name, inner in schema["properties"].items() if "const" in inner}
    return all(value[name] == constant for name, constant in constants.items())
