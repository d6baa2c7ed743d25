"""Names of tools from sources: `<source>__<tool>`, in the characters that every provider accepts; sans-IO."""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

NAME_MAX_CHARS: Final = 64
SEPARATOR: Final = "__"

_FOREIGN: Final = re.compile(r"[^a-zA-Z0-9_-]")
_DIGEST_CHARS: Final = 8


def name_tools(source: str, names: Iterable[str]) -> dict[str, str]:
    """Returns the offered name of each tool of a source, by the tool's original name.

    Invalid characters become `_`. A name that is too long is cut and gets a digest of the original name, and so do names
    that would collide. A tool keeps its offered name unless another tool collides with it.
    """
    plain = {name: f"{source}{SEPARATOR}{_FOREIGN.sub('_', name)}" for name in dict.fromkeys(names)}
    taken: dict[str, int] = {}
    for offered in plain.values():
        taken[offered] = taken.get(offered, 0) + 1
    named = {}
    for name, offered in plain.items():
        is_exact = offered == f"{source}{SEPARATOR}{name}"
        is_unique = taken[offered] == 1 or is_exact
        named[name] = offered if is_unique and len(offered) <= NAME_MAX_CHARS else _with_digest(offered, name)
    return named


def _with_digest(offered: str, name: str) -> str:
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:_DIGEST_CHARS]
    return f"{offered[: NAME_MAX_CHARS - _DIGEST_CHARS - 1]}_{digest}"
