r"""Makes characters visible that would act on a terminal or a page, instead of standing there as text.

    sanitize   controls, line ends, bidirectional controls and lone surrogates: for every text that people see
    reveal     these and all other invisible characters: for text that a person approves

The escapes are those of JSON, such as `\u001b`, so escaped JSON still means the same.
Sources: https://www.unicode.org/reports/tr9/#Directional_Formatting_Characters,
https://www.unicode.org/reports/tr44/#Default_Ignorable_Code_Point
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BIDI: Final = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CODES: Final = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *_BIDI, *range(0xD800, 0xE000))
_BMP_MAX: Final = 0xFFFF
# Invisible characters that Python calls printable: joiners, fillers, variation selectors, and Braille's blank.
_BLANK: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def sanitize(text: str, keep: str = "") -> str:
    """Escapes the characters that could start a line, move a cursor or turn text around. `keep` lists exceptions."""
    return text if text.isprintable() else text.translate(_table(keep))


def reveal(text: str, keep: str = "") -> str:
    """Escapes every character that cannot be seen. `keep` lists exceptions."""
    shown = text if text.isprintable() else "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)
    return _BLANK.sub(lambda match: _escape(match[0]), shown)


@lru_cache
def _table(keep: str) -> Mapping[int, str]:
    return {code: _escape(chr(code)) for code in _CODES if chr(code) not in keep}


def _escape(character: str) -> str:
    code = ord(character)
    if code <= _BMP_MAX:
        return _SHORT.get(character, f"\\u{code:04x}")
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in (0, 2))
