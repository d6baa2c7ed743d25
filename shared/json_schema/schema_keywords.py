"""The keywords of JSON Schema 2020-12 as checks with a bounded amount of work.

A keyword with a malformed setting, such as `required: true`, allows everything: documents of third parties have many.
Not decided here: `unevaluatedProperties`, `unevaluatedItems` and references by anchor or URI.
Spec: https://json-schema.org/draft/2020-12/json-schema-validation
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

from stagebus.shared.json_schema.json_pointer import MISSING
from stagebus.shared.json_schema.schema_walk import Issue, Keyword, Place, SchemaWalk, shown

_NAMES_MAX: Final = 5


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, Mapping),
    "null": lambda value: value is None,
}


def _one(path: Any, message: str) -> list[Issue]:
    return [Issue(path, message)]


# --- any value ---------------------------------------------------------------


def _type(_walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    names = [name for name in (setting if isinstance(setting, list) else [setting]) if isinstance(name, str)]
    if not names or any(name not in _TYPES or _TYPES[name](value) for name in names):
        return []
    return _one(place.path, f"{shown(value)} is not of type {', '.join(map(repr, names))}")


def _enum(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if not isinstance(setting, list) or walk.canonical(value) in walk.canonical_options(setting):
        return []
    options = ", ".join(map(shown, setting[:_NAMES_MAX]))
    return _one(place.path, f"{shown(value)} is not one of {options}{', …' if len(setting) > _NAMES_MAX else ''}")


def _const(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if walk.canonical(setting) == walk.canonical(value):
        return []
    return _one(place.path, f"{shown(setting)} was expected")


# --- numbers -----------------------------------------------------------------


def _limit(is_kept: Callable[[Any, Any], bool], words: str) -> Keyword:
    """Returns a keyword that compares numbers."""

    def check(_walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
        if not (_is_number(value) and _is_number(setting)) or is_kept(value, setting):
            return []
        return _one(place.path, f"{shown(value)} is {words} {shown(setting)}")

    return check


def _multiple_of(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if not (_is_number(value) and _is_number(setting)) or not setting > 0:
        return []
    try:
        if isinstance(value, int) and isinstance(setting, int):
            is_multiple = value % setting == 0
        else:
            # In decimal, since 0.3 is a multiple of 0.1 to everyone but a float.
            is_multiple = Decimal(repr(value)) % Decimal(repr(setting)) == 0
    except (ArithmeticError, ValueError):
        walk.leave_unchecked(f"multipleOf {shown(setting)}")
        return []
    return [] if is_multiple else _one(place.path, f"{shown(value)} is not a multiple of {shown(setting)}")


# --- lengths -----------------------------------------------------------------


def _size(kind: type[Any], is_kept: Callable[[int, Any], bool], words: str) -> Keyword:
    """Returns a keyword that limits the length of texts, arrays or objects."""

    def check(_walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
        if not (isinstance(value, kind) and _is_number(setting)) or is_kept(len(value), setting):
            return []
        return _one(place.path, f"{shown(value)} {words.format(limit=shown(setting), size=len(value))}")

    return check


def _pattern(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if not (isinstance(value, str) and isinstance(setting, str)) or walk.matches(setting, value) is not False:
        return []
    return _one(place.path, f"{shown(value)} does not match {shown(setting)}")


# --- objects -----------------------------------------------------------------


def _required(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if not (isinstance(value, Mapping) and isinstance(setting, list)):
        return []
    walk.charge(len(setting))
    missing = [name for name in setting if isinstance(name, str) and name not in value]
    return [Issue(place.path, f"{shown(name)} is a required property") for name in missing]


def _properties(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if not (isinstance(value, Mapping) and isinstance(setting, Mapping)):
        return []
    walk.charge(len(value))
    parts = ((setting[name], inner, (place.path, name)) for name, inner in value.items() if name in setting)
    return walk.check_each(parts, place)


def _pattern_properties(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if not (isinstance(value, Mapping) and isinstance(setting, Mapping)):
        return []
    parts = (
        (schema, inner, (place.path, name))
        for pattern, schema in setting.items()
        for name, inner in value.items()
        if walk.matches(str(pattern), name)
    )
    return walk.check_each(parts, place)


def _additional_properties(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if not isinstance(value, Mapping) or setting is True:
        return []
    extras = _extras(walk, value, place.schema)
    if setting is not False:
        return walk.check_each(((setting, value[name], (place.path, name)) for name in extras), place)
    names = [shown(name) for name in itertools.islice(extras, _NAMES_MAX)]
    if not names:
        return []
    verb = "was" if len(names) == 1 else "were"
    return _one(place.path, f"additional properties are not allowed ({', '.join(names)} {verb} unexpected)")


def _extras(walk: SchemaWalk, value: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """Yields the names that neither `properties` nor `patternProperties` cover."""
    known, patterns = schema.get("properties"), schema.get("patternProperties")
    known = known if isinstance(known, Mapping) else {}
    patterns = patterns if isinstance(patterns, Mapping) else {}
    walk.charge(len(value))
    for name in value:
        if name not in known and all(walk.matches(str(pattern), name) is False for pattern in patterns):
            yield name


def _property_names(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    names = value if isinstance(value, Mapping) else ()
    return walk.check_each(((setting, name, (place.path, name)) for name in names), place)


def _dependent_required(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    issues: list[Issue] = []
    if isinstance(value, Mapping) and isinstance(setting, Mapping):
        walk.charge(len(setting))
        for name, needed in setting.items():
            if name in value:
                issues += _required(walk, needed, value, place)
    return issues


def _dependent_schemas(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if not (isinstance(value, Mapping) and isinstance(setting, Mapping)):
        return []
    walk.charge(len(setting))
    return walk.check_each(((schema, value, place.path) for name, schema in setting.items() if name in value), place)


# --- arrays ------------------------------------------------------------------


def _prefix_items(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if not (isinstance(value, list) and isinstance(setting, list)):
        return []
    pairs = enumerate(zip(setting, value, strict=False))
    return walk.check_each(((schema, item, (place.path, index)) for index, (schema, item) in pairs), place)


def _items(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if isinstance(setting, list):  # as older drafts wrote `prefixItems`
        return _prefix_items(walk, setting, value, place)
    if not isinstance(value, list):
        return []
    prefix = place.schema.get("prefixItems")
    indices = range(len(prefix) if isinstance(prefix, list) else 0, len(value))
    return walk.check_each(((setting, value[index], (place.path, index)) for index in indices), place)


def _contains(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if not isinstance(value, list):
        return []
    sure = possible = 0
    for item in value:
        unchecked = walk.unchecked_count
        if not walk.check(setting, item, place.path, place.depth + 1):
            possible += 1
            sure += walk.unchecked_count == unchecked
    least: Any = place.schema.get("minContains")
    most: Any = place.schema.get("maxContains")
    least = least if _is_number(least) else 1
    if possible < least:
        return _one(place.path, f"the array has {possible} items of the kind that it must contain; {least} are needed")
    if _is_number(most) and sure > most:
        return _one(place.path, f"the array has {sure} items of the kind that it may contain; {most} are allowed")
    return []


def _unique_items(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    if setting is not True or not isinstance(value, list):
        return []
    index_by_item: dict[str, int] = {}
    for index, item in enumerate(value):
        first = index_by_item.setdefault(walk.canonical(item), index)
        if first != index:
            return _one(place.path, f"items must be unique, but {first} and {index} are the same")
    return []


# --- combinations ------------------------------------------------------------


def _all_of(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    options = setting if isinstance(setting, list) else ()
    return walk.check_each(((schema, value, place.path) for schema in options), place)


def _any_of(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    closest: list[Issue] | None = None
    for schema in setting if isinstance(setting, list) else ():
        issues = walk.check(schema, value, place.path, place.depth + 1)
        if not issues:
            return []
        closest = issues if closest is None or len(issues) < len(closest) else closest
    return _no_option(place, setting, closest)


def _one_of(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    closest: list[Issue] | None = None
    possible = sure = 0
    for schema in setting if isinstance(setting, list) else ():
        unchecked = walk.unchecked_count
        issues = walk.check(schema, value, place.path, place.depth + 1)
        if not issues:
            possible += 1
            sure += walk.unchecked_count == unchecked
        elif closest is None or len(issues) < len(closest):
            closest = issues
    if sure > 1:
        return _one(place.path, f"{shown(value)} fits {sure} of the {len(setting)} options; it must fit exactly one")
    return [] if possible else _no_option(place, setting, closest)


def _no_option(place: Place, options: Any, closest: list[Issue] | None) -> list[Issue]:
    """Returns the issue of a value that fits no option, and the issues with the option that it misses least."""
    if closest is None:
        return []
    return [Issue(place.path, f"fits none of the {len(options)} options; what the closest one lacks follows"), *closest]


def _not(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    unchecked = walk.unchecked_count
    if walk.check(setting, value, place.path, place.depth + 1) or walk.unchecked_count != unchecked:
        return []
    return _one(place.path, f"{shown(value)} fits what it must not")


def _if(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    unchecked = walk.unchecked_count
    branch = "else" if walk.check(setting, value, place.path, place.depth + 1) else "then"
    if branch == "then" and walk.unchecked_count != unchecked:
        return []
    return walk.check(place.schema.get(branch), value, place.path, place.depth + 1)


def _ref(walk: SchemaWalk, setting: Any, value: Any, place: Place) -> list[Issue]:
    target = walk.target_of(setting) if isinstance(setting, str) else MISSING
    if target is MISSING:
        walk.leave_unchecked(f"the reference {shown(setting)}")
        return []
    return walk.check(target, value, place.path, place.depth + 1)


def _unchecked(name: str) -> Keyword:
    """Returns a keyword that is not decided here."""

    def check(walk: SchemaWalk, _setting: Any, _value: Any, _place: Place) -> list[Issue]:
        walk.leave_unchecked(name)
        return []

    return check


KEYWORDS: Final[Mapping[str, Keyword]] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    "minimum": _limit(lambda value, limit: value >= limit, "less than the minimum of"),
    "exclusiveMinimum": _limit(lambda value, limit: value > limit, "less than or equal to the exclusive minimum of"),
    "maximum": _limit(lambda value, limit: value <= limit, "greater than the maximum of"),
    "exclusiveMaximum": _limit(lambda value, limit: value < limit, "greater than or equal to the exclusive maximum of"),
    "multipleOf": _multiple_of,
    "minLength": _size(str, lambda size, limit: size >= limit, "is too short: at least {limit} characters, not {size}"),
    "maxLength": _size(str, lambda size, limit: size <= limit, "is too long: at most {limit} characters, not {size}"),
    "pattern": _pattern,
    "required": _required,
    "properties": _properties,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "propertyNames": _property_names,
    "dependentRequired": _dependent_required,
    "dependentSchemas": _dependent_schemas,
    "minProperties": _size(dict, lambda size, limit: size >= limit, "needs at least {limit} properties, not {size}"),
    "maxProperties": _size(dict, lambda size, limit: size <= limit, "may have at most {limit} properties, not {size}"),
    "prefixItems": _prefix_items,
    "items": _items,
    "contains": _contains,
    "minItems": _size(list, lambda size, limit: size >= limit, "needs at least {limit} items, not {size}"),
    "maxItems": _size(list, lambda size, limit: size <= limit, "may have at most {limit} items, not {size}"),
    "uniqueItems": _unique_items,
    "allOf": _all_of,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
    "if": _if,
    "$ref": _ref,
    "$dynamicRef": _unchecked("$dynamicRef"),
    "unevaluatedItems": _unchecked("unevaluatedItems"),
    "unevaluatedProperties": _unchecked("unevaluatedProperties"),
}
