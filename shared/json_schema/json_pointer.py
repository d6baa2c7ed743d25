"""Finds the target of a reference within a document.

    {"$ref": "#/paths/~1charges~1%7Bid%7D/get/parameters/0"}

Spec: https://www.rfc-editor.org/rfc/rfc6901#section-6
"""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

MISSING: Final = object()
_INDEX_MAX_DIGITS: Final = 7


def find_target(document: Any, reference: str) -> Any:
    """Returns the target of a reference such as `#/$defs/pet`. Returns `MISSING` if it has none, or is not a pointer."""
    if reference == "#":
        return document
    if not reference.startswith("#/"):
        return MISSING
    node = document
    for part in unquote(reference[2:]).split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isascii() and key.isdigit() and len(key) <= _INDEX_MAX_DIGITS:
            node = node[int(key)] if int(key) < len(node) else MISSING
        else:
            node = node.get(key, MISSING) if isinstance(node, Mapping) else MISSING
    return node
