"""Reads a delta's content where it is not a string but parts; sans-IO.

[{"type": "text", "text": "Hello"}]
[{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": "Yes"}]    Mistral
{"type": "text", "text": {"text": "Hello"}}
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

_TEXT_PARTS: Final = ("text", "output_text")
_REASONING_PARTS: Final = ("thinking", "reasoning")
_TEXT_FIELDS: Final = ("text", "thinking", "reasoning", "summary")
_DEPTH_MAX: Final = 8


def split_parts(content: Sequence[object] | dict[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the texts of the answer and of the reasoning among content parts."""
    text: list[str] = []
    reasoning: list[str] = []
    for part in [content] if isinstance(content, dict) else content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind is None or kind in _TEXT_PARTS:
            text.extend(_texts(part))
        elif kind in _REASONING_PARTS:
            reasoning.extend(_texts(part))
    return text, reasoning


def _texts(part: object, depth: int = 0) -> Iterator[str]:
    """Yields the texts of a content part, however deeply they are nested."""
    if isinstance(part, str):
        yield part
    elif depth > _DEPTH_MAX:
        return
    elif isinstance(part, list):
        for item in part:
            yield from _texts(item, depth + 1)
    elif isinstance(part, dict):
        inner = next((part[name] for name in _TEXT_FIELDS if name in part), None)
        yield from _texts(inner, depth + 1)
