"""What may go to a terminal of the texts that models, tools and clients write."""

from typing import Final

_CONTROLS: Final = frozenset(
    chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
)  # fmt: skip


def sanitize(text: str, keep: str = "") -> str:
    """`text` without what a terminal would obey: escape sequences, bidirectional overrides, line ends."""
    if text.isprintable():
        return text
    return "".join(c if c not in _CONTROLS or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)
