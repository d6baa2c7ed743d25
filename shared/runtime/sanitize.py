"""Removes control characters from texts of models, tools and clients before they are printed to a terminal."""

from typing import Final

_CONTROLS: Final = frozenset(
    chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
)  # fmt: skip


def sanitize(text: str, keep: str = "") -> str:
    """Replaces control characters: escape sequences, bidirectional overrides, line ends. `keep` lists exceptions."""
    if text.isprintable():
        return text
    return "".join(c if c not in _CONTROLS or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)
