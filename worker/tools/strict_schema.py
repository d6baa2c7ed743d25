"""OpenAI's strict mode: a schema that the provider can hold a model to; sans-IO.

Every property is required, and where the function has a default, null stands for it. What
strict mode cannot say, such as a text's length, is left out: the arguments are checked all
the same. What has no strict form at all is an error when the worker starts.

The openai SDK's own conversion does not do: it requires properties that have defaults
without letting them be null, and passes on objects with free keys, which the API refuses.
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
    """A part of a schema has no strict form; the message names it."""


def to_strict(schema: Schema) -> dict[str, Any]:
    """The strict form of an object's schema.

    Raises:
        NotStrict: there is none.
    """
    definitions = schema.get("$defs", {})
    strict = _convert(schema, "", definitions)
    if definitions:
        strict["$defs"] = {name: _convert(inner, name, definitions) for name, inner in definitions.items()}
    return strict


def without_nulls(schema: Schema, value: Any) -> Any:
    """A value of the strict schema as one of the schema it was made of: what is null for its default is left out.

    Args:
        schema: the one that was given to `to_strict`.
    """
    return _restore(schema, value, schema.get("$defs", {}))


def _convert(schema: Schema, where: str, definitions: Schema) -> dict[str, Any]:
    if "$ref" in schema:
        # A reference may have nothing beside it.
        ref = {"$ref": schema["$ref"]}
        return {"anyOf": [ref], "description": schema["description"]} if "description" in schema else ref
    for union in _UNIONS:
        if union in schema:
            kept = {"description": schema["description"]} if "description" in schema else {}
            return {**kept, "anyOf": [_convert(inner, where, definitions) for inner in schema[union]]}
    if "allOf" in schema:
        raise _refused(where, "it has to fit several schemas at once")
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
            raise _refused(where, "it may be of any type; give it a type")
    return strict


def _convert_object(schema: Schema, where: str, definitions: Schema) -> dict[str, Any]:
    if schema.get("additionalProperties", False) is not False or "properties" not in schema:
        raise _refused(where, "any key may stand in it; use a model with named fields, or a list of such")
    properties = {
        name: _convert_property(inner, f"{where}.{name}".lstrip("."), name in schema.get("required", ()), definitions)
        for name, inner in schema["properties"].items()
    }
    return {"properties": properties, "required": list(properties), "additionalProperties": False}


def _convert_property(schema: Schema, where: str, is_required: bool, definitions: Schema) -> dict[str, Any]:  # noqa: FBT001 - a fact of the schema
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
        raise _refused(where, "its items are of no one type; use list[…] of a type, or a model in a tuple's place")
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
    """Whether a member of a union is the value's: objects by their keys, since a strict one has all, and constants."""
    schema = _resolve(schema, definitions)
    if any(union in schema for union in _UNIONS):
        return any(_is_of(inner, value, definitions) for union in _UNIONS for inner in schema.get(union, ()))
    if isinstance(value, list):
        return schema.get("type") == "array"
    if not isinstance(value, dict) or set(schema.get("properties", ())) != set(value):
        return False
    constants = {name: inner["const"] for name, inner in schema["properties"].items() if "const" in inner}
    return all(value[name] == constant for name, constant in constants.items())
