"""Converts the JSON Schema of a tool's arguments to a form that every provider accepts; sans-IO.

A provider refuses a whole request because of one schema that it does not accept:

- OpenAI: the arguments are an object with `properties` and without `anyOf`, `oneOf`, `allOf`, `not` or `enum` at the top
  level, and each array has `items`.
- Anthropic: valid JSON Schema 2020-12, and no union at the top level.
- Gemini: `required` names declared properties only.

The conversion only loosens a schema. The function or server behind the tool validates the arguments.
Spec: https://json-schema.org/draft/2020-12/json-schema-validation
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from stagebus.shared.json_schema.json_pointer import find_target

Schema = dict[str, Any]

# A schema below this level accepts anything.
DEPTH_MAX: Final = 64
REFERENCES_MAX: Final = 32
# Further alternatives at the top level are left out: references can make a small schema expand to a huge one.
ALTERNATIVES_MAX: Final = 256
# An alternative with more properties counts as several.
_PROPERTIES_PER_ALTERNATIVE: Final = 20
# So are unions within unions below this level.
_UNION_DEPTH_MAX: Final = 16

MAPS_OF_SCHEMAS: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
LISTS_OF_SCHEMAS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
SINGLE_SCHEMAS: Final = frozenset(
    {"items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"}
    | {"unevaluatedItems", "unevaluatedProperties"}
)
_UNIONS: Final = ("allOf", "anyOf", "oneOf")
_NOT_AT_TOP: Final = frozenset({"not", "enum", "const", *_UNIONS})
_TYPES: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})


def _is_type(value: Any) -> bool:
    names = value if _is_list(value) else [value]
    return all(isinstance(name, str) and name in _TYPES for name in names) and len(set(names)) == len(names)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and (isinstance(value, int) or value.is_integer())


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value) and len(set(value)) == len(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


# A keyword with a value of another form makes a schema invalid. Servers write null, or the form of an older draft.
_FORMS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "type": _is_type,
    **dict.fromkeys(("$ref", "$id", "$schema", "$anchor", "$comment", "description", "title", "format", "pattern"), _is_text),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    "multipleOf": lambda value: _is_number(value) and value > 0,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _is_count),
    **dict.fromkeys(("minContains", "maxContains"), _is_count),
    **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"), _is_flag),
    "required": _is_texts,
    "enum": _is_list,
    "examples": lambda value: isinstance(value, list),
}  # fmt: skip


def fit_for_providers(schema: Mapping[str, Any]) -> Schema:
    """Returns the schema in a form that every provider accepts; equal to `schema` if it is in one already.

    Args:
        schema: of a tool's arguments, an object.
    """
    document = _fit(schema, 0)
    root = _Flattener(document).flatten(document)
    if root.get("type") != "object":
        root = {"type": "object", **{name: value for name, value in root.items() if name != "type"}}
    root.setdefault("properties", {})
    _require_declared(root)
    _drop_dangling(root, root, {})
    return root


def _fit(schema: Any, depth: int) -> Schema:
    """Returns a valid schema, in which each array has `items`. True, which accepts anything, becomes {}."""
    if not isinstance(schema, Mapping) or depth > DEPTH_MAX:
        return {}
    fitted = {
        key: _fit_value(key, value, depth + 1)
        for key, value in schema.items()
        if isinstance(key, str) and has_form(key, value)
    }
    _add_items(fitted, schema.get("items"), depth)
    if "properties" in fitted:
        _require_declared(fitted)
    return fitted


def has_form(key: str, value: Any) -> bool:
    """Returns whether a keyword's value has a form that JSON Schema 2020-12 allows, and is JSON."""
    if key in MAPS_OF_SCHEMAS:
        return isinstance(value, Mapping)
    if key in LISTS_OF_SCHEMAS:
        return _is_list(value)
    if key in SINGLE_SCHEMAS:
        return isinstance(value, Mapping | bool)
    return (key not in _FORMS or _FORMS[key](value)) and _is_json(value)


def _fit_value(key: str, value: Any, depth: int) -> Any:
    if key in MAPS_OF_SCHEMAS:
        return {str(name): _fit(inner, depth) for name, inner in value.items() if inner is not False}
    if key in LISTS_OF_SCHEMAS:
        return [_fit(inner, depth) for inner in value]
    if key in SINGLE_SCHEMAS and (isinstance(value, Mapping) or key == "items"):
        return _fit(value, depth)
    return value


def _add_items(fitted: Schema, given: Any, depth: int) -> None:
    """Adds the `items` of an array that has none, from its positional ones: the form of older drafts is a list."""
    if _is_list(given):
        fitted.setdefault("prefixItems", [_fit(inner, depth + 1) for inner in given])
    types = fitted.get("type")
    if "items" in fitted or not ("array" in types if isinstance(types, list) else types == "array"):
        return
    # By their text, since there may be thousands.
    alternatives = list({orjson.dumps(inner): inner for inner in fitted.get("prefixItems", [])}.values())
    match alternatives:
        case []:
            fitted["items"] = {}
        case [only]:
            fitted["items"] = only
        case _:
            fitted["items"] = {"anyOf": alternatives}


def _is_json(value: Any) -> bool:
    """Returns whether JSON can hold the value: no NaN, no half of a surrogate pair, no integer beyond 64 bits."""
    try:
        return bool(orjson.loads(orjson.dumps(value)) == value)
    except TypeError:
        return False


class _Flattener:
    """Moves what stands in references and unions at the top of a schema into the schema itself."""

    def __init__(self, document: Schema) -> None:
        self._document = document
        self._left = ALTERNATIVES_MAX

    def flatten(self, schema: Schema, depth: int = 0) -> Schema:
        """Returns the schema of an object without a reference or a union at its top.

        The properties of all alternatives become its own. One is required if each alternative requires it.
        """
        schema = _resolve(schema, self._document)
        flat = {key: value for key, value in schema.items() if key not in _NOT_AT_TOP}
        for union in _UNIONS:
            if union in schema:
                self._absorb(flat, self._alternatives(schema[union], depth), is_any=union != "allOf")
        return flat

    def _alternatives(self, schemas: list[Schema], depth: int) -> list[Schema]:
        flat = []
        for schema in schemas:
            if self._left > 0 and depth < _UNION_DEPTH_MAX:
                self._left -= 1
                alternative = self.flatten(schema, depth + 1)
                self._left -= len(alternative.get("properties", ())) // _PROPERTIES_PER_ALTERNATIVE
                flat.append(alternative)
        return flat

    @staticmethod
    def _absorb(flat: Schema, alternatives: list[Schema], *, is_any: bool) -> None:
        properties = dict(flat.get("properties", {}))
        for alternative in alternatives:
            for name, inner in alternative.get("properties", {}).items():
                properties[name] = _either(properties.get(name), inner)
        flat["properties"] = properties
        sets = [set(alternative.get("required", ())) for alternative in alternatives] or [set()]
        added = set.intersection(*sets) if is_any else set.union(*sets)
        if added:
            flat["required"] = [*flat.get("required", ()), *sorted(added - set(flat.get("required", ())))]


def _resolve(schema: Schema, document: Schema) -> Schema:
    """Replaces a reference at the top by its target. Keeps what stands beside it."""
    for _ in range(REFERENCES_MAX):
        target = _find(document, schema["$ref"]) if "$ref" in schema else None
        if target is None:
            break
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return {key: value for key, value in schema.items() if key != "$ref"}


def _find(document: Schema, reference: str) -> Schema | None:
    """Returns the target of a reference within the document, or None."""
    target = find_target(document, reference)
    return target if isinstance(target, dict) else None


def _either(first: Schema | None, second: Schema) -> Schema:
    """Returns a schema that accepts what one of two accepts."""
    if first is None or first == second:
        return second
    alternatives = first["anyOf"] if first.keys() == {"anyOf"} else [first]
    return first if second in alternatives else {"anyOf": [*alternatives, second]}


def _require_declared(schema: Schema) -> None:
    if "required" in schema:
        schema["required"] = [name for name in schema["required"] if name in schema["properties"]]


def _drop_dangling(schema: Schema, document: Schema, is_known: dict[str, bool]) -> None:
    """Removes references without a target. What is left of such a schema accepts more."""
    if "$ref" in schema:
        reference = schema["$ref"]
        if reference not in is_known:
            is_known[reference] = _find(document, reference) is not None
        if not is_known[reference]:
            del schema["$ref"]
    for key, value in schema.items():
        if key in MAPS_OF_SCHEMAS:
            inner = list(value.values())
        elif key in LISTS_OF_SCHEMAS:
            inner = value
        else:
            inner = [value] if key in SINGLE_SCHEMAS and isinstance(value, dict) else []
        for part in inner:
            _drop_dangling(part, document, is_known)
