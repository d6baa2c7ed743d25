"""Names for tools that come from elsewhere: `<source>__<tool>`, of what every provider takes in a name; sans-IO."""

import hashlib
import re
from collections.abc import Iterable
from typing import Final

NAME_MAX_CHARS: Final = 64
SEPARATOR: Final = "__"

_FOREIGN: Final = re.compile(r"[^a-zA-Z0-9_-]")
_DIGEST_CHARS: Final = 8


def name_tools(source: str, names: Iterable[str]) -> dict[str, str]:
    """The name under which each of a source's tools is offered, by its own name.

    Characters that a name may not have become `_`. One that is too long is cut, and a digest of
    the whole takes the cut part's place; the same digest tells apart two that would be called alike.
    So a tool keeps its name unless another one comes that collides with it.
    """
    plain = {name: f"{source}{SEPARATOR}{_FOREIGN.sub('_', name)}" for name in dict.fromkeys(names)}
    taken: dict[str, int] = {}
    for ours in plain.values():
        taken[ours] = taken.get(ours, 0) + 1
    named = {}
    for name, ours in plain.items():
        is_exact = ours == f"{source}{SEPARATOR}{name}"
        is_clear = taken[ours] == 1 or is_exact
        named[name] = ours if is_clear and len(ours) <= NAME_MAX_CHARS else _with_digest(ours, name)
    return named


def _with_digest(ours: str, name: str) -> str:
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:_DIGEST_CHARS]
    return f"{ours[: NAME_MAX_CHARS - _DIGEST_CHARS - 1]}_{digest}"
