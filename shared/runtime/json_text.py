"""JSON text that loses nothing: encoded with integers of any size, and shown to people exactly as it is.

To show it, a parser would not do: JavaScript's parser makes 9007199254740992 of 9007199254740993, every parser drops the
first of two equal keys, and a bidirectional control in a string turns the text around.
"""

import json
import re
from collections import Counter
from typing import Any, Final

from stagebus.shared.runtime.sanitize import reveal, sanitize

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_INDENT: Final = "  "
_LINE_MAX_CHARS: Final = 44


def json_line(value: Any) -> str:
    """Encodes a value as one line of JSON that any terminal can show and any parser reads back."""
    return sanitize(compact_json(value))


def compact_json(value: Any, *, sort_keys: bool = False) -> str:
    """Encodes a value without spaces, integers of any size included."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys)


def pretty_json(text: str) -> str:
    """Indents JSON text without changing a value, on one line if it is short. Other text stays, with controls visible."""
    if _parse(text) is None:
        return reveal(text, keep="\n")
    lines = _indent(_TOKEN.findall(text))
    line = re.sub(r"\n *", " ", lines)
    return line if len(line) <= _LINE_MAX_CHARS else lines


def duplicate_keys(text: str) -> list[str]:
    """Returns the keys that occur more than once in an object of a JSON text. Parsers use the last one's value."""
    found: dict[str, None] = {}

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        found.update(dict.fromkeys(key for key, count in counts.items() if count > 1))
        return {}

    _parse(text, check)
    return list(found)


def _parse(text: str, hook: Any = None) -> dict[str, Any] | list[Any] | None:
    """Returns an object or a list; None for any other text."""
    try:
        parsed = json.loads(text, object_pairs_hook=hook, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict | list) else None


def _indent(tokens: list[str]) -> str:
    parts: list[str] = []
    depth = 0
    before = ""
    for piece in tokens:
        is_end, is_first = piece in ("}", "]"), before in ("{", "[")
        depth += (before in ("{", "[")) - is_end
        if before == "," or is_first != is_end:
            parts.append(f"\n{_INDENT * depth}")
        parts.append(": " if piece == ":" else _shown(piece))
        before = piece
    return "".join(parts)


def _shown(piece: str) -> str:
    if not piece.startswith('"'):
        return piece
    # Escapes of ordinary letters would hide a word: \u0061lice is alice.
    return reveal(json.dumps(json.loads(piece), ensure_ascii=False))
