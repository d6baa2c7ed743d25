"""Fits the values of a call's arguments to the types in the tool's schema; sans-IO.

    {"id": 5.0}              integer                     5
    {"numbers": "[1, 2]"}    array                       [1, 2]
    {"precise": null}        not required, not null      left out: the tool's default applies

A value without such a plain reading stays as it is, and the tool says what is wrong with it. So do arguments for which this
would take long: a schema of a third party can refer to itself many times over, and a model can write megabytes.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from stagebus.shared.json_schema.json_pointer import find_target
from stagebus.shared.runtime.exact_json import PARSED_MAX_CHARS
from stagebus.worker.model.compat.call_arguments import dump_arguments, read_literal

Schema = Mapping[str, Any]

_DEPTH_MAX: Final = 20
_EXACT_MAX: Final = 2**53
# For the values and the schemas that are looked at, about 3 us each.
_STEPS_MAX: Final = 10_000
_TYPE_OF: Final[Mapping[type, str]] = {
    str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object", type(None): "null",
}  # fmt: skip


def fit_arguments(arguments: str, schema: Schema, texts: Mapping[str, str] | None = None) -> str:
    """Returns the arguments with the types of the schema.

    Args:
        arguments: JSON text; any other text is returned unchanged, and so is one that is too long.
        texts: the values that were written as plain text, by name, whose type only the schema knows.
    """
    if len(arguments) > PARSED_MAX_CHARS:
        return arguments
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if not isinstance(values, dict) or not isinstance(schema.get("properties"), Mapping):
        return arguments
    fitter = _Fitter(schema)
    try:
        typed = {name: fitter.typed(text, name) for name, text in (texts or {}).items() if name in values}
        fitted = fitter.fit({**values, **typed} if typed else values, schema)
    except _OutOfSteps:
        return arguments
    return arguments if fitted is values else dump_arguments(fitted)


class _OutOfSteps(Exception):
    """The arguments are too large, or the schema refers to itself too often."""


class _Fitter:
    """Fits values to one tool's schema, whose `$defs` it knows."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._steps_left = _STEPS_MAX

    def typed(self, text: str, name: str) -> Any:
        """Returns the value that a text means for a parameter: the text itself if that is a string."""
        schema = self._resolved(self._root["properties"].get(name))
        types = self._types(schema)
        if types <= {"string", "null"} and "string" in types and not (text == "null" and "null" in types):
            return text
        try:
            return read_literal(text)
        except ValueError:
            return text

    def fit(self, value: Any, schema: Any, depth: int = 0) -> Any:
        """Returns the value in the schema's type, and the value itself if nothing changes."""
        self._count()
        schema = self._resolved(schema)
        types = self._types(schema)
        if isinstance(value, str) and types and not types & {"string"} and value.strip():
            value = _parsed(value, types)
        if isinstance(value, float) and "integer" in types and "number" not in types:
            return int(value) if value.is_integer() and abs(value) <= _EXACT_MAX else value
        shape = self._shape(schema)
        if depth < _DEPTH_MAX and isinstance(value, dict):
            return self._fit_object(value, shape, depth)
        items = shape.get("items")
        if depth < _DEPTH_MAX and isinstance(value, list) and isinstance(items, Mapping):
            fitted = [self.fit(item, items, depth + 1) for item in value]
            return value if all(map(_is_same, fitted, value)) else fitted
        return value

    def _fit_object(self, value: dict[str, Any], schema: Schema, depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        required = schema.get("required")
        required = required if isinstance(required, list) else []
        fitted = {
            name: self.fit(item, properties.get(name, schema.get("additionalProperties")), depth + 1)
            for name, item in value.items()
            if item is not None or name in required or name not in properties or self._takes_null(properties[name])
        }
        is_same = len(fitted) == len(value) and all(fitted[name] is item for name, item in value.items())
        return value if is_same else fitted

    def _takes_null(self, schema: Any) -> bool:
        types = self._types(self._resolved(schema))
        return not types or "null" in types

    def _resolved(self, schema: Any) -> Schema:
        """Follows references."""
        for _ in range(_DEPTH_MAX):
            if not isinstance(schema, Mapping):
                return {}
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                return schema
            schema = find_target(self._root, reference)
        return {}

    def _shape(self, schema: Schema) -> Schema:
        """Returns the one option that is not null, if the schema lists options."""
        options = [option for option in _options(schema) if option.get("type") != "null"]
        return self._resolved(options[0]) if len(options) == 1 else schema

    def _count(self) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise _OutOfSteps

    def _types(self, schema: Any, depth: int = 0) -> set[str]:
        """Returns the types that a schema allows; none if it does not say."""
        self._count()
        if not isinstance(schema, Mapping) or depth > _DEPTH_MAX:
            return set()
        declared = schema.get("type")
        names = declared if isinstance(declared, list) else [declared]
        types = {name for name in names if isinstance(name, str)}
        if schema.get("nullable") is True and types:
            types.add("null")
        found = [self._types(self._resolved(option), depth + 1) for option in _options(schema)]
        return types if types or not all(found) else set[str]().union(*found)


def _options(schema: Schema) -> Iterator[Schema]:
    for name in ("anyOf", "oneOf"):
        listed = schema.get(name)
        if isinstance(listed, list):
            yield from (option for option in listed if isinstance(option, Mapping))


def _parsed(text: str, types: set[str]) -> Any:
    """Returns the value of a text that is not meant as a string, if it has one of the types."""
    try:
        value = read_literal(text)
    except ValueError:
        return text
    kind = _TYPE_OF.get(type(value), "")
    is_number = kind in ("integer", "number") and bool(types & {"integer", "number"})
    return value if kind in types or is_number else text


def _is_same(fitted: Any, value: Any) -> bool:
    return fitted is value
