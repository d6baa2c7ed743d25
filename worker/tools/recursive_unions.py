"""Limits how deep arguments may nest whose types are unions that contain themselves; sans-IO.

    class And(BaseModel):
        items: list["And | Or | Leaf"]

pydantic (2.14) tries each member of a union at each level, so that this takes 2 ** depth steps, and no other code of the
process runs meanwhile. Of a union with a discriminator it tries one member.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

# A try takes about a microsecond.
_TRIES_MAX: Final = 30_000


def nesting_max(schema: Mapping[str, Any]) -> int | None:
    """Returns how many objects within one another pydantic validates in some 50 ms, or None if any number is fine.

    Args:
        schema: the JSON Schema that pydantic wrote for the type.
    """
    names_by_definition = {name: set(_referred(inner)) for name, inner in schema.get("$defs", {}).items()}
    recursive = {name for name in names_by_definition if name in _reachable(name, names_by_definition)}
    width = max((_width(node, recursive) for node in _nodes(schema)), default=0)
    return math.floor(math.log(_TRIES_MAX, width)) if width > 1 else None


def nests_deeper(value: Any, objects_max: int) -> bool:
    """Returns whether more than `objects_max` objects of a JSON value are within one another."""
    waiting = [(value, 0)]
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, dict):
            depth += 1
            waiting += [(inner, depth) for inner in node.values()]
        elif isinstance(node, list):
            waiting += [(inner, depth) for inner in node]
        if depth > objects_max:
            return True
    return False


def _width(node: Mapping[str, Any], recursive: set[str]) -> int:
    """Returns the number of a union's members that can contain the union again."""
    if "discriminator" in node:
        return 0
    members = [member for union in ("anyOf", "oneOf") for member in node.get(union, ())]
    return sum(1 for member in members if recursive & set(_referred(member)))


def _referred(schema: Any) -> Iterator[str]:
    return (node["$ref"].rpartition("/")[2] for node in _nodes(schema) if isinstance(node.get("$ref"), str))


def _reachable(name: str, names_by_definition: Mapping[str, Iterable[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = set(names_by_definition.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return found


def _nodes(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the schema and every object within it."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
